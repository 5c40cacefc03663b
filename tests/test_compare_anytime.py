"""Intervals that may be looked at after every batch: by hand, their exact error rate, and against others."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from rlhf.compare.anytime import AnytimeInterval, anytime_intervals, false_decisions, looked_too_often
from rlhf.intervals import Interval, mean_interval
from tests.interval_cases import holds

STAKES = (0.8, 0.4, 0.2, 0.1, 0.05, 0.025)
TO_400 = range(10, 401, 10)
VALUES = st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), min_size=1, max_size=40)


def capital(values: list[float], mean: float) -> float:
    """K of the docstring, multiplied out one value at a time."""
    return sum(math.prod(1 - stake + stake * value / mean for value in values) for stake in STAKES) / len(STAKES)


def one_look(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    interval = AnytimeInterval(confidence).look(values)
    assert interval.low is not None and interval.high is not None
    return interval.low, interval.high


def test_only_wins_by_hand() -> None:
    end = float(brentq(lambda mean: sum((1 - c + c / mean) ** 10 for c in STAKES) / 6 - 40, 0.1, 1))  # type: ignore[arg-type]  # scipy's stubs expect a tuple
    low, high = one_look([1.0] * 10)
    assert low == pytest.approx(end, abs=2e-6) and high == 1.0
    assert low > 0.5  # ten of ten are enough
    assert one_look([1.0] * 7)[0] < 0.5  # (0.2 + 0.8 / 0.5)^7 / 6 is about 10, not 40
    assert AnytimeInterval().look([1.0] * 10) == Interval(1.0, low, 1.0, 10)
    assert one_look([0.0] * 10) == (0.0, pytest.approx(1 - end, abs=2e-6))


def test_one_value_tells_little() -> None:
    # K is 1 - s + s / m, with s the mean stake: 40 at m = s / (39 + s).
    mean_stake = sum(STAKES) / 6
    assert one_look([1.0]) == (pytest.approx(mean_stake / (39 + mean_stake), abs=2e-6), 1.0)
    assert one_look([0.5])[1] > 0.98


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_ends_are_where_the_capital_rules_means_out(values: list[float], confidence: float) -> None:
    low, high = one_look(values, confidence)
    limit = 2 / (1 - confidence)
    if low > 0:
        assert capital(values, low) >= limit * (1 - 1e-9) > capital(values, low + 1e-5)
    else:
        assert max(values) == 0
    rest = [1 - value for value in values]
    if high < 1:
        assert capital(rest, 1 - high) >= limit * (1 - 1e-9) > capital(rest, 1 - high + 1e-5)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_what_holds_at_any_look(first: list[float], second: list[float]) -> None:
    running, mirrored = AnytimeInterval(), AnytimeInterval()
    for batch in (first, second):
        seen = running.look(batch)
        other = mirrored.look([1 - value for value in batch])
        assert seen.low is not None and seen.high is not None
        assert 0 <= seen.low <= seen.mean <= seen.high <= 1
        assert (other.low, other.high) == pytest.approx((1 - seen.high, 1 - seen.low), abs=1e-5)
    alone = one_look(first + second)
    assert seen.n == len(first + second)
    assert seen.low >= alone[0] - 1e-5 and seen.high <= alone[1] + 1e-5  # earlier looks only narrow it


def test_the_order_within_a_batch_and_an_empty_batch_do_not_matter() -> None:
    values = [1.0, 0.0, 0.5, 1.0] * 12
    running = AnytimeInterval()
    first = running.look(values)
    assert AnytimeInterval().look(sorted(values)) == running.look([]) == first


def test_the_tightest_look_counts() -> None:
    # After 30 of 30 the low end is 0.8; 4 losses later a look alone would put it lower, and the mean is 0.88.
    first, second = anytime_intervals([1.0] * 30 + [0.0] * 4, [30, 34])
    assert second.low == first.low
    assert one_look([1.0] * 30 + [0.0] * 4)[0] < (first.low or 0) < second.mean


def test_a_mean_that_left_the_interval_is_told_by_the_last_look_alone() -> None:
    values = [1.0] * 30 + [0.0] * 170
    first, second = anytime_intervals(values, [30, 200])
    assert first.low is not None and second.mean == 0.15 < first.low
    assert (second.low, second.high) == one_look(values)


def test_looks_are_batches() -> None:
    values = np.random.default_rng(0).random(50)
    running = AnytimeInterval(0.9)
    one_by_one = [running.look(values[:20]), running.look(values[20:21]), running.look(values[21:])]
    assert anytime_intervals(values, [20, 21, 50], 0.9) == one_by_one
    assert anytime_intervals(values, []) == []


def test_ties_narrow_it() -> None:
    n = 200
    without = one_look([1.0, 0.0] * (n // 2))
    with_ties = one_look([1.0, 0.0, 0.5, 0.5] * (n // 4))
    assert with_ties[1] - with_ties[0] < 0.8 * (without[1] - without[0])  # the spread is 0.71 of it


@pytest.mark.parametrize("truth", [0.5, 0.6, 0.9])
def test_the_truth_is_lost_in_at_most_one_study_of_twenty_exactly(truth: float) -> None:
    """Not simulated: the probability that wins and losses ever rule the truth out, looked at after each of 60."""
    holds = np.ones((61, 61), dtype=bool)  # (looks, wins)
    for n in range(1, 61):
        for wins in range(n + 1):
            low, high = one_look([1.0] * wins + [0.0] * (n - wins))
            holds[n, wins] = low <= truth <= high
    alive = np.zeros(61)
    alive[0] = 1.0  # by number of wins, still holding the truth
    for n in range(1, 61):
        alive = truth * np.concatenate([[0], alive[:-1]]) + (1 - truth) * alive
        alive[~holds[n]] = 0
    assert 0.95 <= alive.sum() < 1


def is_called(intervals: list[Interval]) -> bool:
    return any(one.is_above(0.5) or one.is_below(0.5) for one in intervals)


def equal_policies(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.choice([0.0, 0.5, 1.0], p=[0.4, 0.2, 0.4], size=n)


def test_looking_forty_times_is_safe_here_in_a_few_studies() -> None:
    generator = np.random.default_rng(1)
    called = np.mean([is_called(anytime_intervals(equal_policies(generator, 400), TO_400)) for _ in range(150)])
    assert called <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.slow
def test_looking_forty_times_is_safe_here_and_not_with_an_interval_for_one_look() -> None:
    generator = np.random.default_rng(2)
    studies = [equal_policies(generator, 400) for _ in range(2000)]
    anytime = np.mean([is_called(anytime_intervals(values, TO_400)) for values in studies])
    assert anytime <= 0.05
    fixed = np.mean(
        [
            is_called([mean_interval(values[:n], bounds=(0, 1), num_bootstrap=400, seed=n) for n in TO_400])
            for values in studies[:300]
        ]
    )
    assert fixed >= 0.2
    assert fixed == pytest.approx(false_decisions(len(TO_400)), abs=0.09)  # three standard errors, and the bootstrap's


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.3, 0.55])
def test_all_looks_hold_the_truth_for_averaged_responses(truth: float) -> None:
    """Shares of five responses of prompts that differ in difficulty."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        values = generator.binomial(5, generator.beta(4 * truth, 4 * (1 - truth), 400)) / 5
        looks = anytime_intervals(values, TO_400)
        held += all(holds(one, truth) for one in looks)
    assert held / 1000 >= 0.95


def decides_after(values: np.ndarray) -> int:
    looks = anytime_intervals(values, range(10, len(values) + 1, 10))
    return next((one.n for one in looks if one.is_above(0.5)), len(values))


def plug_in_decides_after(values: np.ndarray) -> int:
    """The plug-in stakes of Waudby-Smith and Ramdas 2023, section 4, cut at 1 / (2 m), against m = 1/2."""
    t = np.arange(1, len(values) + 1)
    mean = (0.5 + np.cumsum(values)) / (t + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * np.log(2 / 0.05) / (before * t * np.log(1 + t))), 0.5 / 0.5)
    out = np.cumsum(np.log1p(bets * (values - 0.5)))[9::10] >= np.log(2 / 0.05)
    return 10 * int(out.argmax()) + 10 if out.any() else len(values)


@pytest.mark.slow
def test_it_decides_sooner_than_plug_in_stakes_and_within_half_as_many_again_as_one_planned_look() -> None:
    generator = np.random.default_rng(6)
    for rate, most in ((0.55, 1600), (0.6, 800)):
        studies = [(generator.random(most) < rate).astype(float) for _ in range(200)]
        ours = np.mean([decides_after(values) for values in studies])
        theirs = np.mean([plug_in_decides_after(values) for values in studies])
        assert ours < 0.9 * theirs
        # One look with 80% power: ((1.96 + 0.84) / (rate - 0.5))^2 rate (1 - rate).
        assert ours < 1.5 * ((1.96 + 0.84) / (rate - 0.5)) ** 2 * rate * (1 - rate)


@pytest.mark.parametrize(
    ("looks", "published"),
    [(1, 0.05), (2, 0.083), (3, 0.107), (4, 0.126), (5, 0.142), (10, 0.193), (20, 0.248), (50, 0.320), (100, 0.374)],
)
def test_false_decisions_as_armitage_mcpherson_and_rowe_published(looks: int, published: float) -> None:
    assert false_decisions(looks) == pytest.approx(published, abs=0.0006)


def test_false_decisions_agree_with_random_walks() -> None:
    walks = np.random.default_rng(7).normal(size=(20_000, 40)).cumsum(1) / np.sqrt(np.arange(1, 41))
    for confidence, quantile in ((0.95, 1.95996), (0.9, 1.64485)):
        seen = (np.abs(walks) > quantile).any(1).mean()
        assert false_decisions(40, confidence) == pytest.approx(seen, abs=0.011)  # three standard errors


def test_what_is_said_of_too_many_looks() -> None:
    assert looked_too_often(1) is None
    assert looked_too_often(5) == (
        "this 95% interval is made for one look and was looked at 5 times: to stop at the first that leaves 50% calls "
        "equal policies different in about 14% of studies, not 5%; decide by the anytime-valid interval, or fix the "
        "number of prompts beforehand and look once"
    )
    assert false_decisions(4000) == false_decisions(300)
    assert "4,000 times" in (many := looked_too_often(4000) or "") and "more than 45%" in many


def test_wrong_input() -> None:
    for confidence in (0.0, 1.0):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            AnytimeInterval(confidence)
        with pytest.raises(ValueError, match="between 0 and 1"):
            false_decisions(2, confidence)
    for wrong in ([1.1], [-0.1], [math.nan], [0.5, math.inf]):
        with pytest.raises(ValueError, match="finite values from 0 to 1"):
            AnytimeInterval().look(wrong)
    with pytest.raises(ValueError, match="at least one value"):
        AnytimeInterval().look([])
    for looks in ([2, 1], [1, 1], [0, 1], [4]):
        with pytest.raises(ValueError, match="looks must ascend from 1 to at most 3"):
            anytime_intervals([1.0, 0.0, 1.0], looks)
    for function in (false_decisions, looked_too_often):
        with pytest.raises(ValueError, match="looks is 0"):
            function(0)
