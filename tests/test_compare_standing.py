"""Where policies stand: by hand where that can be, and against the rooms' own functions where not."""

import dataclasses
from math import comb, log

import pytest

from rlhf.compare.anytime import anytime_intervals
from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.sections import standing
from tests.test_compare_report import study, wins


def test_the_matrix_the_tests_and_the_scale_of_two() -> None:
    """70 wins of 100: 0.7 and 0.3, the binomial tail, and log(0.7/0.3) with half a prior win a side."""
    report = build_report(study(wins(0.7), None))
    numbers = report["standing"]["judges"]["gold"]
    assert numbers["win_rates"] == [[0.5, 0.3], [0.7, 0.5]]
    assert numbers["ties"][0][1] == 0.0
    pair = numbers["pairs"][0]
    assert pair["sign"] == {"wins": 30, "losses": 70, "ties": 0, "p_value": pair["sign"]["p_value"]}
    tail = 2 * sum(comb(100, k) for k in range(31)) / 2**100
    assert pair["sign"]["p_value"] == pytest.approx(tail, abs=1e-6)
    assert pair["holm"] == pair["benjamini_hochberg"] == pair["permutation"]["p_value"]  # one comparison
    assert numbers["scale"]["sft"]["mean"] == 0.0
    assert numbers["scale"]["dpo"]["mean"] == pytest.approx(log(0.7 / 0.3), abs=0.03)
    assert pair["more_prompts"] == 0 and standing.view(report)["judges"][0]["open"] == []


def test_what_is_undecided_says_how_many_prompts_would_decide_it() -> None:
    report = build_report(study(wins(0.53), None))
    (sentence,) = standing.view(report)["judges"][0]["open"]
    assert sentence.startswith("if sft goes on to win 47.0%, about ")
    assert sentence in render_page(study(wins(0.53), None), report)


def test_correction_for_many_comparisons_is_warned_of() -> None:
    """Against each other alone 61 of 100 is decided (p = 0.035); among six comparisons it is not."""
    rows = [[0.0] * 100, [1.0 if at < 61 else -1.0 for at in range(100)]]
    more = [[0.001 * (-1) ** at for at in range(100)], [0.001 * (-1) ** (at // 2) for at in range(100)]]
    report = build_report(study(rows + more, None))
    found = standing.warnings(report)
    assert any(line.startswith("sft against dpo is decided alone, but not among 4 policies") for line in found), found


def test_one_policy_has_no_standing() -> None:
    assert "standing" not in build_report(study([[0.0, 1.0]], None))


def test_every_judge_has_a_table() -> None:
    report = build_report(study(wins(0.7), wins(0.4)))
    assert [one["label"] for one in standing.view(report)["judges"]] == ["gold", "the reward model"]
    assert "By the reward model" in render_page(study(wins(0.7), wins(0.4)), report)


def test_looking_again_has_an_interval_of_its_own() -> None:
    """60% of 200 prompts: decided by the interval for one look, not over three."""
    made = study([[0.0] * 200, [1.0 if at % 5 < 3 else -1.0 for at in range(200)]], None)
    made = dataclasses.replace(made, settings=made.settings | {"looks": [50, 100]})
    report = build_report(made)
    (pair,) = report["standing"]["judges"]["gold"]["pairs"]
    outcomes = [0.0 if at % 5 < 3 else 1.0 for at in range(200)]  # sft's
    last = anytime_intervals(outcomes, [50, 100, 200])[-1]
    assert (pair["anytime"]["low"], pair["anytime"]["high"]) == pytest.approx((last.low, last.high), abs=1e-6)
    assert report["pairs"][0]["verdict"] == "dpo" and last.high is not None and last.high > 0.5
    first, second = standing.warnings(report)
    assert first.startswith("This 95% interval is made for one look and was looked at 3 times")
    assert second.startswith("sft against dpo is undecided over all 3 looks: the anytime-valid interval")
    assert build_report(study(wins(0.6), None))["standing"]["judges"]["gold"]["pairs"][0]["anytime"] is None
