"""reward against KL: best-of-n by brute force, curves and areas worked out by hand, and falls that are only noise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.compare.frontier import (
    BEST_OF_N,
    Point,
    best_of_n,
    best_of_n_kl,
    best_of_n_points,
    figures,
    frontier_areas,
    matched_kl,
    over_optimisation,
    pareto,
    resample,
)
from rlhf.compare.statistics import UNDECIDED, Bootstrap
from tests.interval_cases import holds

FEW = Bootstrap(num_bootstrap=300)
INTEGERS = st.integers(-3, 3)


def _point(run: str, kl: float, gold: float, score: float | None = None, num_prompts: int = 4) -> Point:
    """A point whose prompts are all the same, so that its figures are certain."""
    constant = np.ones(num_prompts)
    return Point(run, f"at {kl:g}", kl * constant, gold * constant, None if score is None else score * constant)


def _noisy(run: str, kl: float, gold: np.ndarray, score: np.ndarray | None = None) -> Point:
    return Point(run, f"at {kl:g}", np.full(len(gold), kl), gold, score)


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
    point = Point("ppo", "step 1", np.array([0.0, 2.0]), np.array([1.0, 3.0]), np.array([5.0, 5.0]))
    told = figures(point, Bootstrap())
    assert (told.run, told.setting, told.kl.mean, told.gold.mean) == ("ppo", "step 1", 1.0, 2.0)
    assert told.kl.low == 0 and told.gold.low == pytest.approx(2 - 12.706, abs=1e-2)  # Student's t, one degree
    assert told.score is not None and told.score.mean == 5 and not told.kl_is_bound
    assert figures(_point("ppo", 1, 1), Bootstrap()).score is None
    sampled = Point("ppo", "step 1", np.array([-1.0, 2.0]), np.array([1.0, 3.0]))  # sampled KL may be negative
    low = figures(sampled, Bootstrap()).kl.low
    assert low is not None and low < 0


def test_the_frontier_by_hand() -> None:
    points = [_point("a", 3, 2), _point("b", 1, 1), _point("a", 2, 3), _point("b", 1, 0.5), _point("a", 4, 3)]
    assert [(p.run, p.setting) for p in pareto(points)] == [("b", "at 1"), ("a", "at 2")]
    assert pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_the_frontier(pairs: list[tuple[int, int]]) -> None:
    kept = {(p.kl[0], p.gold[0]) for p in pareto([_point("a", kl, gold) for kl, gold in pairs])}
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


# ---- At equal KL


def test_matched_kl_by_hand() -> None:
    # ppo: 0 at 0, 2 at 2, 3 at 4. dpo: 1 at 1, 1 at 5. Both cover 1 to 4: ppo is 1, 1.5, 2.5, 3 at 1, 1.5, 3, 4.
    points = [_point("ppo", 4, 3), _point("ppo", 0, 0), _point("ppo", 2, 2), _point("dpo", 1, 1), _point("dpo", 5, 1)]
    found = matched_kl(resample(points, FEW), "ppo", "dpo", at=[0.5, 1, 1.5, 3, 4, 4.5])
    assert (found.low, found.high, found.kl, found.reason) == (1, 4, (1, 1.5, 3, 4), None)
    assert [one.mean for one in found.differences] == pytest.approx([0, 0.5, 1.5, 2])
    # Trapezoids from 1 to 2 (0, 1) and from 2 to 4 (1, 2), over 3 nats.
    assert found.average is not None and found.average.mean == pytest.approx((0.5 + 3) / 3)
    assert found.average.n == 4 and found.verdict == "ppo"
    back = matched_kl(resample(points, FEW), "dpo", "ppo")
    assert back.average is not None and back.average.mean == pytest.approx(-3.5 / 3) and back.verdict == "ppo"
    assert len(back.kl) == 21 and (back.kl[0], back.kl[-1]) == (1, 4)


def test_the_start_is_every_runs_first_point() -> None:
    points = [_point("ppo", 4, 4), _point("dpo", 2, 4)]
    found = matched_kl(resample(points, FEW, start=_point("sft", 0, 0)), "ppo", "dpo", at=[0, 1, 2])
    assert [one.mean for one in found.differences] == pytest.approx([0, -1, -2])


def test_points_at_the_same_kl_are_averaged() -> None:
    points = [_point("a", 0, 0), _point("a", 2, 1), _point("a", 2, 3), _point("b", 0, 0), _point("b", 3, 0)]
    found = matched_kl(resample(points, FEW), "a", "b", at=[1, 2])
    assert [one.mean for one in found.differences] == pytest.approx([1, 2])


def test_no_kl_in_common() -> None:
    points = [_point("ppo", 6, 3), _point("ppo", 9, 3), _point("dpo", 1, 1), _point("dpo", 5, 1), _point("sft", 3, 1)]
    draws = resample(points, FEW)
    found = matched_kl(draws, "ppo", "dpo")
    assert found.average is None and found.differences == () and found.low is None and found.verdict == UNDECIDED
    assert found.reason == "no KL in common: ppo covers 6 to 9 and dpo covers 1 to 5 nats"
    reason = matched_kl(draws, "dpo", "sft").reason
    assert reason == "sft is measured at one KL only; measure more of its checkpoints, or the start"
    areas = frontier_areas(draws, {"PPO": ["ppo"], "DPO": ["dpo"]})
    assert areas.reason == "no KL in common: PPO covers 6 to 9 and DPO covers 1 to 5 nats"
    assert (areas.low, areas.areas, areas.differences) == (None, {}, {})


def test_an_undecided_match() -> None:
    generator = np.random.default_rng(3)
    points = [_noisy(run, kl, generator.normal(0, 1, 40)) for run in "ab" for kl in (0.0, 1.0, 2.0)]
    assert matched_kl(resample(points, FEW), "a", "b").verdict == UNDECIDED


def test_policies_that_write_the_same_are_never_told_apart() -> None:
    generator = np.random.default_rng(10)
    for _ in range(20):
        gold = [generator.normal(0, 1, 37) for _ in range(3)]
        points = [_noisy(run, kl, gold[kl], gold[0]) for run in "abcde" for kl in range(3)]
        draws = resample(points, FEW)
        found = matched_kl(draws, "b", "e")
        assert found.average is not None and found.verdict == UNDECIDED
        assert (found.average.low, found.average.mean, found.average.high) == (0, 0, 0)
        same = [_noisy("ppo", kl, gold[0], gold[1] + kl) for kl in range(9)]
        assert over_optimisation(resample(same, FEW), "ppo").reason is not None


def test_one_prompt_decides_nothing() -> None:
    points = [_point(run, kl, gold, num_prompts=1) for run, gold in (("a", 9.0), ("b", 0.0)) for kl in (0.0, 1.0)]
    found = matched_kl(resample(points, FEW), "a", "b")
    assert found.average is not None and (found.average.low, found.average.high) == (None, None)
    assert found.verdict == UNDECIDED


def test_prompts_that_are_the_same_are_one_cluster() -> None:
    generator = np.random.default_rng(4)
    once = [_noisy(run, kl, generator.normal(0, 1, 30)) for run in "ab" for kl in (0.0, 1.0)]
    twice = [_noisy(p.run, float(p.kl[0]), np.repeat(p.gold, 3)) for p in once]
    clusters = np.repeat(np.arange(30), 3).tolist()
    apart = matched_kl(resample(once, FEW), "a", "b").average
    joined = matched_kl(resample(twice, Bootstrap(clusters, num_bootstrap=300)), "a", "b").average
    assert apart is not None and joined is not None and joined.n == 30
    assert (joined.low, joined.high) == pytest.approx((apart.low, apart.high))


def test_pairing_narrows_the_interval() -> None:
    """Prompts differ much more than runs do: the same prompts are drawn for both."""
    generator = np.random.default_rng(5)
    ease = generator.normal(0, 10, 50)
    lifts = {"a": 0.5, "b": 0.0}
    points = [_noisy(run, kl, ease + lifts[run] + generator.normal(0, 0.1, 50)) for run in lifts for kl in (0, 1)]
    found = matched_kl(resample(points, FEW), "a", "b")
    assert found.average is not None and found.average.high is not None and found.average.low is not None
    assert found.verdict == "a" and found.average.high - found.average.low < 0.15


def test_resampling_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    points = [_noisy("a", kl, generator.normal(0, 1, 9)) for kl in (0.0, 1.0)]
    whole = resample(points, FEW)
    monkeypatch.setattr("rlhf.compare.frontier._TABLE", 9 * 7)
    assert np.array_equal(resample(points, FEW).gold, whole.gold)


@pytest.mark.parametrize(
    ("points", "bootstrap", "words"),
    [
        ([], FEW, "same prompts"),
        ([_point("a", 1, 1), _point("a", 1, 1, num_prompts=3)], FEW, r"same prompts, these are of \[3, 4\]"),
        ([_point("a", 1, 1)], Bootstrap(["p"]), "1 clusters for 4 prompts"),
    ],
)
def test_what_cannot_be_resampled(points: list[Point], bootstrap: Bootstrap, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resample(points, bootstrap)


def test_a_run_that_is_not_there() -> None:
    draws = resample([_point("ppo", 1, 1)], FEW, start=_point("sft", 0, 0))
    with pytest.raises(ValueError, match="no point is of the run `sft`"):
        matched_kl(draws, "ppo", "sft")


# ---- The area under the frontier


def test_areas_by_hand() -> None:
    # PPO's sweep: 0 at 0, 2 at 2, then 1 at 3 (beaten) and 4 at 6. DPO: 0 at 0, 3 at 1, 1 at 4: level from 1 on.
    points = [_point("p1", 0, 0), _point("p1", 2, 2), _point("p2", 3, 1), _point("p2", 6, 4)]
    points += [_point("d", 0, 0), _point("d", 1, 3), _point("d", 4, 1)]
    found = frontier_areas(resample(points, FEW), {"PPO": ["p1", "p2"], "DPO": ["d"]})
    assert (found.low, found.high, found.reason) == (0, 4, None)
    # PPO: 2 up to 2 nats, then from 2 to 3 (half way to 4) over 2 nats. DPO: 1.5, then 3 over 3 nats.
    assert found.areas["PPO"].mean == pytest.approx(2 + 5)
    assert found.areas["DPO"].mean == pytest.approx(1.5 + 9)
    assert found.differences["PPO", "DPO"].mean == pytest.approx(-3.5)
    assert found.differences["PPO", "DPO"].is_below(0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), INTEGERS), min_size=2, max_size=8))
def test_the_area_is_that_of_many_thin_strips(pairs: list[tuple[int, int]]) -> None:
    points = [_point("a", kl, gold) for kl, gold in pairs]
    if len({kl for kl, _ in pairs}) < 2:
        return
    found = frontier_areas(resample(points, Bootstrap(num_bootstrap=2)), {"a": ["a"]})
    kept = pareto(points)
    assert found.low is not None and found.high is not None
    strips = np.linspace(found.low, found.high, 60_001)
    middles = (strips[1:] + strips[:-1]) / 2
    heights = np.interp(middles, [p.kl[0] for p in kept], [p.gold[0] for p in kept])
    assert found.areas["a"].mean == pytest.approx(heights.mean() * (found.high - found.low), abs=1e-3)


# ---- Over-optimisation


def _rise_and_fall(generator: np.random.Generator) -> list[Point]:
    """Gold peaks at 4 nats, the score rises all the way; 200 prompts."""
    return [
        _noisy("ppo", kl, generator.normal(gold, 0.5, 200), generator.normal(score, 0.5, 200))
        for kl, gold, score in [(1.0, 0.5, 1.0), (2.0, 0.8, 2.0), (4.0, 1.0, 3.0), (8.0, 0.6, 4.0), (16.0, 0.0, 5.0)]
    ]


def test_gold_that_falls_while_the_score_rises() -> None:
    points = _rise_and_fall(np.random.default_rng(0))
    found = over_optimisation(resample(points, FEW, start=_point("sft", 0, 0, 0, 200)), "ppo")
    assert (found.kl, found.setting, found.seen_at, found.reason) == (4.0, "at 4", 8.0, None)
    assert found.fall is not None and found.fall.is_below(0)
    assert found.fall.mean == pytest.approx(points[3].gold.mean() - points[2].gold.mean())
    assert found.rise is not None and found.rise.mean == pytest.approx(1, abs=0.2)


def test_the_order_of_the_points_does_not_matter() -> None:
    points = _rise_and_fall(np.random.default_rng(0))
    one, other = (over_optimisation(resample(each, FEW), "ppo") for each in (points, points[::-1]))
    assert (one.kl, one.seen_at) == (other.kl, other.seen_at) == (4.0, 8.0)


def test_a_run_that_only_loses_gold_is_over_optimised_from_the_start() -> None:
    generator = np.random.default_rng(7)
    point = _noisy("ppo", 3.0, generator.normal(-1, 0.5, 100), generator.normal(2, 0.5, 100))
    found = over_optimisation(resample([point], FEW, start=_point("sft", 0, 0, 0, 100)), "ppo")
    assert (found.kl, found.seen_at) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([_point("ppo", 1, 1, 1)], "it takes two points and two prompts to see a fall"),
        (
            [_point("ppo", 1, 2, 1, 1), _point("ppo", 2, 1, 2, 1)],
            "it takes two points and two prompts to see a fall",
        ),
        ([_point("ppo", 1, 1, 1), _point("ppo", 2, 2, 2)], "gold is highest at the largest KL that was measured"),
        ([_point("ppo", 1, 2, 1), _point("ppo", 2, 1)], "the judge that was trained for has not scored every point"),
        (
            [_point("ppo", 1, 2, 2), _point("ppo", 2, 1, 2)],
            "gold falls, but the judge's score is not sure to rise meanwhile",
        ),
    ],
)
def test_no_over_optimisation(points: list[Point], reason: str) -> None:
    found = over_optimisation(resample(points, FEW), "ppo")
    assert (found.reason, found.kl, found.fall) == (reason, None, None)


def test_a_dip_that_recovers_is_none() -> None:
    points = [_point("ppo", 1, 2, 1), _point("ppo", 2, 1, 2), _point("ppo", 3, 3, 3)]
    assert (
        over_optimisation(resample(points, FEW), "ppo").reason == "gold is highest at the largest KL that was measured"
    )


def test_a_fall_within_chance_is_none() -> None:
    generator = np.random.default_rng(8)
    points = [
        _noisy("ppo", kl, generator.normal(gold, 1, 20), generator.normal(kl, 0.1, 20))
        for kl, gold in [(1.0, 0.2), (2.0, 0.0)]
    ]
    gold = [point.gold.mean() for point in points]
    assert gold[0] > gold[1]
    assert over_optimisation(resample(points, FEW), "ppo").reason == "no later point has less gold by more than chance"


@pytest.mark.parametrize("num_prompts", [5, 20, 100])
def test_noise_is_hardly_ever_over_optimisation(num_prompts: int) -> None:
    """Ten checkpoints whose gold is the same, and a score that surely rises: at most 5% have a "fall"."""
    generator = np.random.default_rng(num_prompts)
    studies, found = 300, 0
    for study in range(studies):
        ease = generator.normal(0, 1, num_prompts)
        points = [
            _noisy("ppo", kl, ease + generator.normal(0, 1, num_prompts), generator.normal(3 * kl, 0.1, num_prompts))
            for kl in range(10)
        ]
        found += over_optimisation(resample(points, Bootstrap(num_bootstrap=300, seed=study)), "ppo").reason is None
    assert found / studies <= 0.07


def test_a_fall_is_found_as_often_as_it_should() -> None:
    """Half a standard deviation on 200 prompts is far beyond chance, also among ten pairs."""
    generator = np.random.default_rng(9)
    found = [
        over_optimisation(resample(_rise_and_fall(generator), Bootstrap(num_bootstrap=200, seed=study)), "ppo").kl
        for study in range(50)
    ]
    assert found.count(4.0) >= 48


# ---- Do the intervals hold the truth?


def _study(generator: np.random.Generator, n: int) -> list[Point]:
    """Two runs of noisy KL and gold that share their prompts' ease; a's gold is 1 - exp(-kl), b's is half of it."""
    ease = generator.normal(0, 1, n)
    points = []
    for run, scale in (("a", 1.0), ("b", 0.5)):
        for kl in (1.0, 2.0, 3.0, 4.0):
            gold = scale * (1 - math.exp(-kl)) + ease + generator.normal(0, 1, n)
            points.append(Point(run, f"at {kl:g}", generator.gamma(kl, 1.0, n), gold))
    return points


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 100])
def test_intervals_hold_the_truth(n: int) -> None:
    generator = np.random.default_rng(n)
    true = [1 - math.exp(-kl) for kl in (1.0, 2.0, 3.0, 4.0)]
    studies, held, held_area, held_inside = 300, 0, 0, 0
    for study in range(studies):
        draws = resample(_study(generator, n), Bootstrap(num_bootstrap=300, seed=study))
        found = matched_kl(draws, "a", "b", at=[2.0])
        areas = frontier_areas(draws, {"a": ["a"], "b": ["b"]})
        assert found.average is not None and found.low is not None and found.high is not None
        low, high = found.low, found.high
        at = np.linspace(low, high, 200)
        truth = 0.5 * np.interp(at, [1, 2, 3, 4], true).mean()
        held += holds(found.average, truth)
        held_inside += holds(found.differences[0], 0.5 * true[1])
        area = areas.differences["a", "b"]
        held_area += holds(area, truth * (high - low))
    for count in (held, held_inside, held_area):
        assert count / studies >= 0.91
