"""Agreement of judges in the report, by hand."""

import pytest

from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.sections import agreement
from tests.study_cases import study


def test_two_judges_on_ten_prompts() -> None:
    """Gold: dpo wins eight, a tie, a loss. The reward model: the first six as gold, else sft. Without ties 7 of 9."""
    gold = [[0.0] * 10, [1.0] * 8 + [0.0, -1.0]]
    score = [[0.0] * 10, [1.0] * 6 + [-1.0] * 4]
    made = study(gold, score)
    report = build_report(made)
    (one,) = report["agreement"]["judges"]
    assert (one["a"], one["b"], one["num_verdicts"], one["num_decided"]) == ("gold", "reward_model", 10, 9)
    assert one["without_ties"]["mean"] == pytest.approx(7 / 9, abs=1e-6)
    assert one["with_ties"]["mean"] == pytest.approx(0.7)
    assert {place["prompt"] for place in one["apart"]} >= {"p6", "p7"}
    (sentence,) = agreement.sentences(report)
    assert sentence.startswith("gold and the reward model prefer the same response in 78% of the 9 pairs that both")
    page = render_page(made, report)
    assert "Gold and the reward model prefer the same response in 78%" in page


def test_pairs_of_policies_are_told_apart() -> None:
    gold = [[0.0] * 40, [1.0] * 40, [2.0] * 40]
    score = [[0.0] * 40, [1.0] * 40, [-1.0] * 40]
    (one,) = build_report(study(gold, score))["agreement"]["judges"]
    assert {name: part["without_ties"]["mean"] for name, part in one["pairs"].items()} == {
        "sft against dpo": 1.0,
        "sft against ppo": 0.0,
        "dpo against ppo": 0.0,
    }


def test_judges_no_better_than_chance_are_warned_of() -> None:
    gold = [[0.0] * 200, [1.0, -1.0] * 100]
    score = [[0.0] * 200, [1.0, 1.0, -1.0, -1.0] * 50]
    (warning,) = agreement.warnings(build_report(study(gold, score)))
    assert warning.startswith("Gold and the reward model agree little beyond chance (kappa 0.00): a verdict of one")


def test_one_judge_agrees_with_nobody() -> None:
    assert "agreement" not in build_report(study([[0.0], [1.0]], None))
