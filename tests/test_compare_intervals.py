"""intervals: hand-worked ends, clusters, bounds, and what must hold for any values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.intervals import Interval, cluster_index, drawn_counts, mean_interval, mean_intervals

# Student's t at 97.5% with one and two degrees of freedom, from a printed table.
T_1, T_2 = 12.706, 4.303
NUMBERS = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_two_values_by_hand() -> None:
    # Mean 2, variance 2, standard error sqrt(2 / 2) = 1.
    interval = mean_interval([1.0, 3.0])
    assert interval.mean == 2 and interval.n == 2
    assert interval.low == pytest.approx(2 - T_1, abs=1e-2)
    assert interval.high == pytest.approx(2 + T_1, abs=1e-2)


def test_three_values_by_hand() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.high == pytest.approx(2 + T_2 / math.sqrt(3), abs=1e-3)


def test_clusters_of_unlike_size_by_hand() -> None:
    # Sums 3 and 4, sizes 3 and 1, mean 7/4; residuals 3 - 3 * 7/4 = -9/4 and 4 - 7/4 = 9/4, so the
    # variance is 2 * (81/16) / 4^2 * 2/1 = 81/64 and the standard error 9/8.
    interval = mean_interval([1, 4, 1, 1], ["a", "b", "a", "a"])
    assert (interval.mean, interval.n) == (1.75, 2)
    assert interval.high == pytest.approx(1.75 + T_1 * 9 / 8, abs=1e-2)


def test_one_cluster_says_nothing() -> None:
    assert mean_interval([0.25, 0.75], ["a", "a"]) == Interval(0.5, None, None, 1)
    assert mean_interval([1.0], bounds=(0, 1)) == Interval(1.0, 0, 1, 1)
    assert mean_interval([5.0], bounds=(0, None)) == Interval(5.0, 0, None, 1)


def test_large_normal_samples_agree_with_student() -> None:
    values = np.random.default_rng(0).normal(3, 2, 300)
    interval = mean_interval(values, num_bootstrap=10_000)
    low, high = stats.t.interval(0.95, 299, values.mean(), stats.sem(values))
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)


def test_ten_wins_of_ten_are_not_certainty() -> None:
    # Ten ones, and one more cluster at each bound: a resample of 12 has Binomial(12, 1/12) zeros.
    interval = mean_interval([1.0] * 10, bounds=(0, 1), num_bootstrap=20_000)
    tail = stats.norm.cdf(math.sqrt(12 / 11) * stats.t.ppf(0.025, 11))
    zeros = stats.binom.ppf(1 - tail, 12, 1 / 12)
    assert interval.low == pytest.approx(1 - zeros / 12)
    assert interval.high == 1 and interval.is_above(0.5) and not interval.is_above(0.75)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_clean_sweep_of_a_few_prompts_decides_nothing(count: int) -> None:
    # The sign test agrees: five of five has p = 2 / 2^5 = 0.0625.
    assert not mean_interval([1.0] * count, bounds=(0, 1)).is_above(0.5)


def test_skew_is_followed() -> None:
    values = np.random.default_rng(1).lognormal(0, 1, 60)
    interval = mean_interval(values, bounds=(0, None))
    assert interval.low is not None and interval.high is not None
    assert interval.high - interval.mean > 1.2 * (interval.mean - interval.low)


def test_which_side() -> None:
    assert Interval(0.7, 0.6, 0.8, 9).is_above(0.5) and not Interval(0.7, 0.5, 0.8, 9).is_above(0.5)
    assert Interval(0.3, 0.2, 0.4, 9).is_below(0.5) and not Interval(0.3, 0.2, 0.5, 9).is_below(0.5)
    assert not Interval(9.0, None, None, 1).is_above(0.5) and not Interval(-9.0, None, None, 1).is_below(0.5)


def test_copies_within_a_prompt_are_no_evidence() -> None:
    values = np.random.default_rng(2).random(40)
    for bounds in [(None, None), (0.0, 1.0)]:
        once = mean_interval(values, bounds=bounds)
        copied = mean_interval(np.repeat(values, 5), np.repeat(np.arange(40), 5).tolist(), bounds)
        assert copied.n == 40
        assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
        assert copied.low != pytest.approx(mean_interval(np.repeat(values, 5), bounds=bounds).low)


@pytest.mark.parametrize(
    ("values", "clusters", "bounds", "words"),
    [
        ([], None, (None, None), "at least one value"),
        ([1.0, math.nan], None, (None, None), "finite values"),
        ([1.0, math.inf], None, (None, None), "finite values"),
        ([0.5, 1.5], None, (0, 1), "values from 0.5 to 1.5 are not within the bounds 0 and 1"),
        ([1.0, 2.0], ["a"], (None, None), "1 clusters for 2 values"),
    ],
)
def test_what_cannot_have_an_interval(values: list, clusters: list | None, bounds: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mean_interval(values, clusters, bounds)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=30), st.integers(0, 3))
def test_the_mean_is_inside_and_the_seed_decides(values: list[float], seed: int) -> None:
    interval = mean_interval(values, num_bootstrap=200, seed=seed)
    assert interval.low is not None and interval.high is not None
    assert interval.low <= interval.mean <= interval.high
    assert interval == mean_interval(values, num_bootstrap=200, seed=seed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30))
def test_a_share_stays_a_share(values: list[float]) -> None:
    interval = mean_interval(values, bounds=(0, 1), num_bootstrap=200)
    assert interval.low is not None and interval.high is not None
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-100, 100))
def test_units_do_not_matter(values: list[float], scale: float, shift: float) -> None:
    plain = mean_interval(values, num_bootstrap=200)
    moved = mean_interval([scale * value + shift for value in values], num_bootstrap=200)
    assert plain.low is not None and plain.high is not None
    assert (moved.low, moved.high) == pytest.approx((scale * plain.low + shift, scale * plain.high + shift), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=6, max_size=30))
def test_more_confidence_is_wider(values: list[float]) -> None:
    for bounds in [(None, None), (0.0, 1.0)]:
        narrow = mean_interval(values, bounds=bounds, confidence=0.8, num_bootstrap=400)
        wide = mean_interval(values, bounds=bounds, confidence=0.99, num_bootstrap=400)
        assert wide.low <= narrow.low + 1e-9 and narrow.high <= wide.high + 1e-9  # type: ignore[operator]


def _drawn_plainly(num_clusters: int, num_bootstrap: int, seed: int) -> np.ndarray:
    """How often each resample draws each cluster, all at once."""
    drawn = np.random.default_rng(seed).integers(0, num_clusters, (num_bootstrap, num_clusters))
    return np.stack([np.bincount(row, minlength=num_clusters) for row in drawn])


@pytest.mark.parametrize("num_clusters", [1, 7, 50, 3000])
@pytest.mark.parametrize("most_kept", [0, 10**9])
def test_draws_are_the_same_kept_or_not(num_clusters: int, most_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.intervals._MOST_KEPT", most_kept)
    plain = _drawn_plainly(num_clusters, 101, seed=5)
    for at_once in (10, 500, 10**6):
        counts = np.concatenate(list(drawn_counts(num_clusters, 101, 5, at_once)))
        assert counts.dtype == float and (counts == plain).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, None)])
def test_kept_draws_change_no_digit(bounds: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(2000)
    kept = [mean_interval(values + 0 * again, bounds=bounds, num_bootstrap=301) for again in range(2)]
    monkeypatch.setattr("rlhf.intervals._MOST_KEPT", 0)
    anew = mean_interval(values, bounds=bounds, num_bootstrap=301)
    for one in kept:
        assert (one.low, one.high) == pytest.approx((anew.low, anew.high), abs=1e-12)


def test_many_clusters_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(50)
    whole = mean_interval(values, num_bootstrap=301)
    monkeypatch.setattr("rlhf.intervals._TABLE", 50 * 7)  # seven resamples at a time, one left over
    monkeypatch.setattr("rlhf.intervals._MOST_KEPT", 0)
    assert mean_interval(values, num_bootstrap=301) == whole


@pytest.mark.parametrize("num_clusters", [1, 3, 7, 40])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (None, None), (0.0, None)])
@pytest.mark.parametrize("rows_each", [1, 3])
def test_many_means_at_once_are_those_one_by_one(num_clusters: int, bounds: tuple, rows_each: int) -> None:
    generator = np.random.default_rng(num_clusters)
    clusters = generator.permutation(np.repeat(np.arange(num_clusters), rows_each)).tolist()
    n = len(clusters)
    values = np.stack([generator.random(n), (generator.random(n) < 0.9).astype(float), np.full(n, 0.25)])
    together = mean_intervals(values, clusters, bounds, num_bootstrap=300, seed=4)
    for row, one in zip(values, together, strict=True):
        alone = mean_interval(row, clusters, bounds, num_bootstrap=300, seed=4)
        assert (one.mean, one.n) == (alone.mean, alone.n)
        assert (one.low is None, one.high is None) == (alone.low is None, alone.high is None)
        for end, other in ((one.low, alone.low), (one.high, alone.high)):
            assert end is None or end == pytest.approx(other, abs=1e-12)


def test_no_means_have_no_intervals() -> None:
    assert mean_intervals(np.zeros((0, 5))) == []


def test_clusters_are_numbered_in_the_order_of_their_first() -> None:
    assert cluster_index(["q", "p", "q", "r"]).tolist() == [0, 1, 0, 2]
    assert cluster_index(["q", "p"]).tolist() == [0, 1]
