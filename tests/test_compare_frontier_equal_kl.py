"""two methods at equal KL and the area under their frontiers: curves by hand, and do the intervals hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.compare.frontier.areas import frontier_areas
from rlhf.compare.frontier.equal_kl import matched_kl
from rlhf.compare.frontier.over_optimisation import over_optimisation
from rlhf.compare.frontier.points import Point, pareto
from rlhf.compare.frontier.resampling import resample
from rlhf.compare.statistics import UNDECIDED, Bootstrap
from tests.frontier_cases import FEW, noisy, point
from tests.interval_cases import holds

INTEGERS = st.integers(-3, 3)


# ---- At equal KL


def test_matched_kl_by_hand() -> None:
    # ppo: 0 at 0, 2 at 2, 3 at 4. dpo: 1 at 1, 1 at 5. Both cover 1 to 4: ppo is 1, 1.5, 2.5, 3 at 1, 1.5, 3, 4.
    points = [point("ppo", 4, 3), point("ppo", 0, 0), point("ppo", 2, 2), point("dpo", 1, 1), point("dpo", 5, 1)]
    found = matched_kl(resample(points, FEW), "ppo", "dpo", at=[0.5, 1, 1.5, 3, 4, 4.5])
    assert (found.low, found.high, found.kl, found.reason) == (1, 4, (1, 1.5, 3, 4), None)
    assert [one.mean for one in found.differences] == pytest.approx([0, 0.5, 1.5, 2])
    # Trapezoids from 1 to 2 (0, 1) and from 2 to 4 (1, 2), over 3 nats.
    assert found.average is not None and found.average.mean == pytest.approx((0.5 + 3) / 3)
    assert found.average.n == 4 and found.verdict == "ppo"
    back = matched_kl(resample(points, FEW), "dpo", "ppo")
    assert back.average is not None and back.average.mean == pytest.approx(-3.5 / 3) and back.verdict == "ppo"
    assert len(back.kl) == 21 and (back.kl[0], back.kl[-1]) == (1, 4)


def test_the_best_at_equal_kl_leaves_out_what_nobody_would_choose() -> None:
    # ppo: 3 at 2; 1 at 3 is beaten; 4 at 6. Its best from 2 on: 3 to 4. dpo: 2 at 1, 2 at 5.
    points = [point("ppo", 2, 3), point("ppo", 3, 1), point("ppo", 6, 4), point("dpo", 1, 2), point("dpo", 5, 2)]
    draws = resample(points, FEW)
    found = matched_kl(draws, "ppo", "dpo", at=[2, 3, 4], best=True)
    assert (found.low, found.high) == (2, 5)
    assert [one.mean for one in found.differences] == pytest.approx([1, 1.25, 1.5])
    assert found.average is not None and found.average.mean == pytest.approx((1 + 1.75) / 2)
    area = frontier_areas(draws, {"ppo": ["ppo"], "dpo": ["dpo"]}).differences["ppo", "dpo"]
    assert area.mean == pytest.approx(3 * found.average.mean)
    everything = matched_kl(draws, "ppo", "dpo", at=[3])
    assert everything.differences[0].mean == pytest.approx(-1)


def test_the_start_is_every_runs_first_point() -> None:
    points = [point("ppo", 4, 4), point("dpo", 2, 4)]
    found = matched_kl(resample(points, FEW, start=point("sft", 0, 0)), "ppo", "dpo", at=[0, 1, 2])
    assert [one.mean for one in found.differences] == pytest.approx([0, -1, -2])


def test_points_at_the_same_kl_are_averaged() -> None:
    points = [point("a", 0, 0), point("a", 2, 1), point("a", 2, 3), point("b", 0, 0), point("b", 3, 0)]
    found = matched_kl(resample(points, FEW), "a", "b", at=[1, 2])
    assert [one.mean for one in found.differences] == pytest.approx([1, 2])


def test_no_kl_in_common() -> None:
    points = [point("ppo", 6, 3), point("ppo", 9, 3), point("dpo", 1, 1), point("dpo", 5, 1), point("sft", 3, 1)]
    draws = resample(points, FEW)
    found = matched_kl(draws, "ppo", "dpo")
    assert found.average is None and found.differences == () and found.low is None and found.verdict == UNDECIDED
    assert found.reason == "no KL in common: ppo covers 6 to 9 and dpo covers 1 to 5 nats"
    reason = matched_kl(draws, "dpo", "sft").reason
    assert reason == "sft is measured at one KL only; measure more of its checkpoints, or other settings"
    areas = frontier_areas(draws, {"PPO": ["ppo"], "DPO": ["dpo"]})
    assert areas.reason == "no KL in common: PPO covers 6 to 9 and DPO covers 1 to 5 nats"
    assert (areas.low, areas.areas, areas.differences) == (None, {}, {})


def test_an_undecided_match() -> None:
    generator = np.random.default_rng(3)
    points = [noisy(run, kl, generator.normal(0, 1, 40)) for run in "ab" for kl in (0.0, 1.0, 2.0)]
    assert matched_kl(resample(points, FEW), "a", "b").verdict == UNDECIDED


def test_policies_that_write_the_same_are_never_told_apart() -> None:
    generator = np.random.default_rng(10)
    for _ in range(20):
        gold = [generator.normal(0, 1, 37) for _ in range(3)]
        points = [noisy(run, kl, gold[kl], gold[0]) for run in "abcde" for kl in range(3)]
        draws = resample(points, FEW)
        found = matched_kl(draws, "b", "e")
        assert found.average is not None and found.verdict == UNDECIDED
        assert (found.average.low, found.average.mean, found.average.high) == (0, 0, 0)
        same = [noisy("ppo", kl, gold[0], gold[1] + kl) for kl in range(9)]
        assert over_optimisation(resample(same, FEW), "ppo").reason is not None


def test_one_prompt_decides_nothing() -> None:
    points = [point(run, kl, gold, num_prompts=1) for run, gold in (("a", 9.0), ("b", 0.0)) for kl in (0.0, 1.0)]
    found = matched_kl(resample(points, FEW), "a", "b")
    assert found.average is not None and (found.average.low, found.average.high) == (None, None)
    assert found.verdict == UNDECIDED


def test_prompts_that_are_the_same_are_one_cluster() -> None:
    generator = np.random.default_rng(4)
    once = [noisy(run, kl, generator.normal(0, 1, 30)) for run in "ab" for kl in (0.0, 1.0)]
    twice = [noisy(p.run, float(p.kl[0]), np.repeat(p.gold, 3)) for p in once]
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
    points = [noisy(run, kl, ease + lifts[run] + generator.normal(0, 0.1, 50)) for run in lifts for kl in (0, 1)]
    found = matched_kl(resample(points, FEW), "a", "b")
    assert found.average is not None and found.average.high is not None and found.average.low is not None
    assert found.verdict == "a" and found.average.high - found.average.low < 0.15


def test_resampling_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    points = [noisy("a", kl, generator.normal(0, 1, 9)) for kl in (0.0, 1.0)]
    whole = resample(points, FEW)
    monkeypatch.setattr("rlhf.compare.frontier.resampling._TABLE", 9 * 7)
    assert np.array_equal(resample(points, FEW).gold, whole.gold)


@pytest.mark.parametrize(
    ("points", "bootstrap", "words"),
    [
        ([], FEW, "same prompts"),
        ([point("a", 1, 1), point("a", 1, 1, num_prompts=3)], FEW, r"same prompts, these are of \[3, 4\]"),
        ([point("a", 1, 1)], Bootstrap(["p"]), "1 clusters for 4 prompts"),
    ],
)
def test_what_cannot_be_resampled(points: list[Point], bootstrap: Bootstrap, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resample(points, bootstrap)


def test_a_run_that_is_not_there() -> None:
    draws = resample([point("ppo", 1, 1)], FEW, start=point("sft", 0, 0))
    with pytest.raises(ValueError, match="no point is of the run `sft`"):
        matched_kl(draws, "ppo", "sft")


# ---- The area under the frontier


def test_areas_by_hand() -> None:
    # PPO's sweep: 0 at 0, 2 at 2, then 1 at 3 (beaten) and 4 at 6. DPO: 0 at 0, 3 at 1, 1 at 4: level from 1 on.
    points = [point("p1", 0, 0), point("p1", 2, 2), point("p2", 3, 1), point("p2", 6, 4)]
    points += [point("d", 0, 0), point("d", 1, 3), point("d", 4, 1)]
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
    points = [point("a", kl, gold) for kl, gold in pairs]
    if len({kl for kl, _ in pairs}) < 2:
        return
    found = frontier_areas(resample(points, Bootstrap(num_bootstrap=2)), {"a": ["a"]})
    kept = pareto(points)
    assert found.low is not None and found.high is not None
    strips = np.linspace(found.low, found.high, 60_001)
    middles = (strips[1:] + strips[:-1]) / 2
    heights = np.interp(middles, [p.kl[0] for p in kept], [p.gold[0] for p in kept])
    assert found.areas["a"].mean == pytest.approx(heights.mean() * (found.high - found.low), abs=1e-3)


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
