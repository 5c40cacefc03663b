"""points of reward against KL, and best-of-n by brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.compare.frontier.points import Point, figures, pareto
from rlhf.compare.frontier.pool import BEST_OF_N, best_of_n, best_of_n_kl, best_of_n_points
from rlhf.compare.statistics import Bootstrap
from tests.frontier_cases import point

INTEGERS = st.integers(-3, 3)


# ---- Points


def test_a_point_averages_a_prompts_responses() -> None:
    point = Point.measured("ppo", "step 1", [[1.0, 3.0], [0.0, 0.0]], [[1, 2], [3, 4]], [[0.0, 1.0], [1.0, 1.0]])
    assert point.kl.tolist() == [2.0, 0.0] and point.gold.tolist() == [1.5, 3.5]
    assert point.score is not None and point.score.tolist() == [0.5, 1.0]
    assert Point.measured("ppo", "step 1", [1.0], [2.0]).score is None


@pytest.mark.parametrize(
    ("kl", "gold", "words"),
    [
        ([1.0, 2.0], [1.0], "the same prompts, these are of 2 of kl, 1 of gold"),
        ([1.0, math.nan], [1.0, 1.0], "kl must be finite"),
        ([1.0], [math.inf], "gold must be finite"),
        ([], [], r"kl must be \(prompts,\) or \(prompts, responses\), it is \(0,\)"),
        ([[[1.0]]], [1.0], r"it is \(1, 1, 1\)"),
    ],
)
def test_what_is_no_point(kl: list, gold: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Point.measured("ppo", "step 1", kl, gold)


def test_figures_of_a_point() -> None:
    one = Point("ppo", "step 1", np.array([0.0, 2.0]), np.array([1.0, 3.0]), np.array([5.0, 5.0]))
    told = figures(one, Bootstrap())
    assert (told.run, told.setting, told.kl.mean, told.gold.mean) == ("ppo", "step 1", 1.0, 2.0)
    assert told.kl.low == 0 and told.gold.low == pytest.approx(2 - 12.706, abs=1e-2)  # Student's t, one degree
    assert told.score is not None and told.score.mean == 5 and not told.kl_is_bound
    assert figures(point("ppo", 1, 1), Bootstrap()).score is None
    sampled = Point("ppo", "step 1", np.array([-1.0, 2.0]), np.array([1.0, 3.0]))  # sampled KL may be negative
    low = figures(sampled, Bootstrap()).kl.low
    assert low is not None and low < 0


def test_the_frontier_by_hand() -> None:
    points = [point("a", 3, 2), point("b", 1, 1), point("a", 2, 3), point("b", 1, 0.5), point("a", 4, 3)]
    assert [(p.run, p.setting) for p in pareto(points)] == [("b", "at 1"), ("a", "at 2")]
    assert pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_the_frontier(pairs: list[tuple[int, int]]) -> None:
    kept = {(p.kl[0], p.gold[0]) for p in pareto([point("a", kl, gold) for kl, gold in pairs])}
    undominated = {
        (kl, gold)
        for kl, gold in pairs
        if not any(k <= kl and g >= gold and (k, g) != (kl, gold) for k, g in pairs)
    }  # fmt: skip
    assert kept == undominated


# ---- Best-of-n


def _by_hand(proxy: list[int], judged: list[int], n: int) -> float:
    """The mean over all ways to draw n of the pool; of those with the highest score, each as often as another."""
    values = []
    for drawn in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[at] for at in drawn)
        top = [judged[at] for at in drawn if proxy[at] == best]
        values.append(sum(top) / len(top))
    return sum(values) / len(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(INTEGERS, INTEGERS), min_size=1, max_size=7))
def test_best_of_n_is_the_mean_over_all_draws(pool: list[tuple[int, int]]) -> None:
    proxy, judged = [list(side) for side in zip(*pool, strict=True)]
    found = best_of_n([proxy], [judged])[0]
    assert found == pytest.approx([_by_hand(proxy, judged, n) for n in range(1, len(pool) + 1)])


def test_best_of_n_by_hand() -> None:
    # Of three, sorted by the proxy: gold 5, 1, 3. One: 3. Two: (1 + 2 * 3) / 3, as the best is the second once
    # and the third twice. All: 3.
    assert best_of_n([[0.1, 0.9, 0.4]], [[5.0, 3.0, 1.0]])[0] == pytest.approx([3, 7 / 3, 3])


def test_best_of_n_of_a_large_pool() -> None:
    # Of N evenly spaced scores the largest of n is n / (n + 1) of the way from 0 to N + 1 on average.
    num_pool = 1000
    found = best_of_n([np.arange(1, num_pool + 1)], [np.arange(1, num_pool + 1)])[0]
    n = np.arange(1, num_pool + 1)
    assert found == pytest.approx(n / (n + 1) * (num_pool + 1))


def test_best_of_n_is_unbiased() -> None:
    """A small pool says on average what drawing n from the whole population gives: n / (n + 1) for uniform."""
    generator = np.random.default_rng(0)
    pool = generator.random((40_000, 4))
    assert best_of_n(pool, pool).mean(0) == pytest.approx([1 / 2, 2 / 3, 3 / 4, 4 / 5], abs=5e-3)


def test_kl_of_best_of_n() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)
    assert best_of_n_kl(64) == pytest.approx(4.158883 - 0.984375, abs=1e-6)


def test_kl_of_best_of_n_is_a_bound() -> None:
    """A policy with two replies, p and 1 - p: best of n takes the worse only where all n are it."""
    for p, n in itertools.product([0.01, 0.3, 0.5, 0.9], [1, 2, 5, 50]):
        worse = p**n
        exact = worse * math.log(worse / p) + (1 - worse) * math.log((1 - worse) / (1 - p))
        assert exact <= best_of_n_kl(n) + 1e-12


def test_points_of_best_of_n() -> None:
    generator = np.random.default_rng(1)
    proxy, gold = generator.random((5, 6)), generator.random((5, 6))
    points = best_of_n_points(proxy, gold)
    assert [p.setting for p in points] == ["1", "2", "4", "6"] and {p.run for p in points} == {BEST_OF_N}
    assert all(p.kl_is_bound for p in points)
    assert points[0].gold == pytest.approx(gold.mean(1)) and points[0].kl.tolist() == [0.0] * 5
    assert points[-1].gold == pytest.approx(gold[np.arange(5), proxy.argmax(1)])
    assert points[-1].score == pytest.approx(proxy.max(1))
    assert [p.setting for p in best_of_n_points(proxy, gold, [3])] == ["3"]


@pytest.mark.parametrize(
    ("proxy", "gold", "words"),
    [
        ([[1.0, 2.0]], [[1.0]], r"two tables \(prompts, pool\), these are \(1, 2\) and \(1, 1\)"),
        ([1.0], [1.0], "two tables"),
        ([[]], [[]], "two tables"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "finite scores"),
        ([[1.0, 2.0]], [[1.0, math.inf]], "finite scores"),
    ],
)
def test_what_is_no_pool(proxy: list, gold: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        best_of_n(proxy, gold)


@pytest.mark.parametrize("n", [0, 3])
def test_more_than_the_pool(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} cannot be told from a pool of 2 replies a prompt"):
        best_of_n_points([[1.0, 2.0]], [[1.0, 2.0]], [1, n])
