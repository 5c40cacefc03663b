"""The statistics of quality: quantiles of lengths, ratios and calibration, each against another formula."""

import dataclasses
import math

import numpy as np
import pytest

from rlhf.compare.quality.lengths import length_quantiles, quantile_differences
from rlhf.compare.quality.ratios import exponential, less_one, ratio, ratio_difference
from rlhf.compare.quality.tables import span
from rlhf.compare.quality.words import view
from rlhf.compare.report import build_report
from rlhf.intervals import Interval
from tests.compare_cases import (
    FEW,
    written,
)
from tests.study_cases import study


def test_length_quantiles_of_resamples_are_numpys() -> None:
    """Independently: each resample's replies written out, and numpy's quantile of them."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 50, (12, 2)).astype(float)
    clusters = [0, 0, *range(1, 11)]
    found = length_quantiles(lengths, dataclasses.replace(FEW, clusters=clusters))
    again = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        drawn = again.integers(0, 11, 11)
        draws.append(
            np.quantile(np.concatenate([lengths[np.array(clusters) == at].ravel() for at in drawn]), [0.05, 0.5])
        )
    from scipy.stats import norm, t

    tail = norm.cdf(math.sqrt(11 / 10) * t.ppf(0.025, 10))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    for at, quantile in enumerate((0.05, 0.5)):
        assert found[quantile].mean == np.quantile(lengths, quantile) and found[quantile].n == 11
        assert found[quantile].high == pytest.approx(high[at])
    assert found[0.5].low == pytest.approx(low[1])
    # All eleven may well lie above the 5% quantile, and below the 95% one: 0.95 ** 11 is over 0.025.
    assert found[0.05].low == 0 and found[0.95].high is None and found[0.95].low is not None


def test_quantile_differences_draw_the_same_prompts() -> None:
    lengths = np.array([[1.0], [5.0], [9.0], [20.0]])
    found = quantile_differences(lengths + 3, lengths, FEW)
    assert all((one.mean, one.low, one.high, one.n) == pytest.approx((3, 3, 3, 4)) for one in found.values())
    (one, *_) = quantile_differences(lengths[:1], lengths[:1], FEW).values()
    assert (one.mean, one.low, one.high, one.n) == (0, None, None, 1)
    with pytest.raises(ValueError, match="the same prompts, these answered 4, 3"):
        quantile_differences(lengths, lengths[:3], FEW)


def test_a_ratio_and_its_interval() -> None:
    # 2 + 3 + 7 of 1 + 2 + 3 = 2. Linearised: 2 + (0, -1, 1) / 2; Student's t of three: 4.3027 * 0.5 / sqrt(3).
    one = ratio(np.array([2.0, 3.0, 7.0]), np.array([1.0, 2.0, 3.0]), FEW)
    assert one is not None and one.mean == pytest.approx(2.0) and one.n == 3
    assert (one.low, one.high) == pytest.approx((2 - 1.2421, 2 + 1.2421), abs=1e-4)
    low = ratio(np.array([0.0, 9.0]), np.array([1.0, 1.0]), FEW)
    assert low is not None and low.low == 0
    assert ratio(np.zeros(3), np.zeros(3), FEW) is None


def test_ratios_over_one_are_means() -> None:
    """The studentised bootstrap of rlhf.intervals, which is of means of clusters."""
    values = np.random.default_rng(3).lognormal(0, 1, 40)
    own = dataclasses.replace(FEW, clusters=[at // 2 for at in range(40)])
    expected = own.interval(values, (None, None))
    found = ratio(values, np.ones(40), own)
    assert found is not None and found.n == 20
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    less = ratio_difference((values + 2, np.ones(40)), (values * 0 + 1, np.ones(40)), own)
    assert less is not None and (less.low, less.high) == pytest.approx((found.low + 1, found.high + 1))  # type: ignore[operator]
    alone = ratio(np.array([6.0]), np.array([3.0]), FEW)
    assert alone is not None and (alone.mean, alone.low, alone.high, alone.n) == (2, 0, None, 1)


def test_ends_in_words() -> None:
    shown = "{:.0f}".format
    assert span({"low": 1, "high": None}, shown) == "1 or more" and span({"low": None, "high": 2}, shown) == "2 or less"
    assert (
        span({"low": None, "high": None}, shown) == "interval unknown"
        and span({"low": 1, "high": 2}, shown) == "1 to 2"
    )


def test_a_difference_of_ratios_is_paired() -> None:
    below = np.array([1.0, 2.0, 3.0, 4.0])
    first = (np.array([3.0, 1.0, 4.0, 1.0]) + below, below)
    found = ratio_difference(first, (first[0] - below, below), FEW)
    assert found is not None and (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert ratio_difference(first, (np.zeros(4), np.zeros(4)), FEW) is None
    with pytest.raises(ValueError, match="the same prompts, these are 4, 3"):
        ratio_difference(first, (below[:3], below[:3]), FEW)


def test_exponentials_of_open_and_of_huge_ends() -> None:
    assert exponential(Interval(0.0, None, None, 1)) == Interval(1.0, 0.0, None, 1)
    found = exponential(Interval(math.log(2), 0.0, 800.0, 2))
    assert found.mean == pytest.approx(2.0) and (found.low, found.high) == (1.0, None)


def test_a_share_more() -> None:
    assert less_one(Interval(1.5, None, 2.0, 3)) == Interval(0.5, None, 1.0, 3)


def test_calibration_of_the_reward_model_against_gold() -> None:
    """Scores ln 3 apart say 75%: gold prefers dpo in 30 of 40, so that the gap is 0 and Brier 0.75 * 0.25."""
    n, apart = 40, math.log(3)
    gold = [[0.0] * n, [1.0] * 30 + [-1.0] * 10]
    report = build_report(study(gold, [[0.0] * n, [apart] * n]))
    part = report["quality"]["calibration"]
    assert part["num_pairs"] == n and part["ece"]["mean"] == pytest.approx(0, abs=1e-6)
    assert part["brier"]["mean"] == pytest.approx(0.1875, abs=1e-6)
    (one,) = part["bins"]
    assert (one["said"], one["came"]["mean"]) == pytest.approx((0.25, 0.25), abs=1e-6)  # the first is sft
    shown = view(report)["parts"][-1]
    assert shown["title"] == "Can the reward model's score be taken at its word"
    assert shown["sentences"][0].startswith("What its difference in score says and how often gold then prefers the")
    assert shown["tables"][0]["rows"][0]["name"] == "25%, 40 pairs"
    assert build_report(study(gold, None))["quality"]["calibration"] is None


def test_calibration_takes_all_pairs_of_a_prompt_but_the_same_texts() -> None:
    made = written({"sft": [["a", "b"], ["c", "d"]], "dpo": [["a", "e"], ["f", "f"]]})
    score = np.zeros((2, 2, 2))
    gold = np.array([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    report = build_report(dataclasses.replace(made, scores={"gold": gold, "reward_model": score}))
    part = report["quality"]["calibration"]
    # Prompt 0: a-e tie, b-a and b-e won; prompt 1: four lost. (0.5 + 2) of 7, where 1 / 2 was said.
    assert part["num_pairs"] == 7 and part["ece"]["mean"] == pytest.approx(abs(2.5 / 7 - 0.5), abs=1e-6)
    assert part["ece"]["n"] == 2
    same = written({"sft": [["a"]], "dpo": [["a"]]})
    alike = dataclasses.replace(same, scores={"gold": np.zeros((2, 1, 1)), "reward_model": np.zeros((2, 1, 1))})
    assert build_report(alike)["quality"]["calibration"] is None
