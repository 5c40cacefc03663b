"""Where policies stand: by hand where that can be, and against the rooms' own functions where not."""

import dataclasses
import re
from math import comb, log

import pytest

from rlhf.compare.anytime import anytime_intervals
from rlhf.compare.markdown import render_markdown
from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.sections import standing
from tests.study_cases import study, wins


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


def test_two_policies_in_a_sentence() -> None:
    """70 wins of 100, Wilson's interval 60% to 78%; dpo is always longer, so nothing is said of equal length."""
    report = build_report(study(wins(0.7), None))
    (sentence,) = standing.sentences(report)
    assert sentence.endswith("; 95% intervals, 100 prompts")
    found = re.match(r"by gold against sft: dpo wins 70% \((\d+)% to (\d+)%\), p (= 0\.000\d|<\xa00\.0001)", sentence)
    assert found and 58 <= int(found[1]) <= 62 and 76 <= int(found[2]) <= 80, sentence
    report["standing"]["judges"]["gold"]["pairs"][0]["length_controlled"] = {
        "win_rate": {"mean": 0.375, "low": 0.25, "high": 0.5, "n": 100},  # sft's
        "longer": 0.5,
    }
    assert "%), at equal length 62% (50% to 75%), p" in standing.sentences(report)[0]
    assert sentence in render_markdown(build_report(study(wins(0.7), None))).replace("\\", "")


def test_three_policies_are_told_against_the_baseline_and_on_one_scale() -> None:
    n = 40
    rows = [[0.0] * n, [1.0] * n, [2.0] * n]
    first, second = standing.sentences(build_report(study(rows, None)))
    assert first.startswith("by gold against sft: dpo wins 100% (9") and "; ppo wins 100% (9" in first
    assert first.count("(Holm)") == 2 and first.endswith("; 95% intervals, 40 prompts") and "against dpo" not in first
    places = [second.index(f"{name} ") for name in ("ppo", "dpo", "sft")]
    assert second.startswith("by gold on one scale, in logits: ppo ") and places == sorted(places)


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
