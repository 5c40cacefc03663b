"""over-optimisation: a fall that is sure is found, falls that are only noise are not."""

import numpy as np
import pytest

from rlhf.compare.frontier.over_optimisation import over_optimisation
from rlhf.compare.frontier.points import Point
from rlhf.compare.frontier.resampling import resample
from rlhf.compare.statistics import Bootstrap
from tests.frontier_cases import FEW, noisy, point


def _rise_and_fall(generator: np.random.Generator) -> list[Point]:
    """Gold peaks at 4 nats, the score rises all the way; 200 prompts."""
    return [
        noisy("ppo", kl, generator.normal(gold, 0.5, 200), generator.normal(score, 0.5, 200))
        for kl, gold, score in [(1.0, 0.5, 1.0), (2.0, 0.8, 2.0), (4.0, 1.0, 3.0), (8.0, 0.6, 4.0), (16.0, 0.0, 5.0)]
    ]


def test_gold_that_falls_while_the_score_rises() -> None:
    points = _rise_and_fall(np.random.default_rng(0))
    found = over_optimisation(resample(points, FEW, start=point("sft", 0, 0, 0, 200)), "ppo")
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
    only = noisy("ppo", 3.0, generator.normal(-1, 0.5, 100), generator.normal(2, 0.5, 100))
    found = over_optimisation(resample([only], FEW, start=point("sft", 0, 0, 0, 100)), "ppo")
    assert (found.kl, found.seen_at) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([point("ppo", 1, 1, 1)], "it takes two points and two prompts to see a fall"),
        (
            [point("ppo", 1, 2, 1, 1), point("ppo", 2, 1, 2, 1)],
            "it takes two points and two prompts to see a fall",
        ),
        ([point("ppo", 1, 1, 1), point("ppo", 2, 2, 2)], "gold is highest at the largest KL that was measured"),
        ([point("ppo", 1, 2, 1), point("ppo", 2, 1)], "the judge that was trained for has not scored every point"),
        (
            [point("ppo", 1, 2, 2), point("ppo", 2, 1, 2)],
            "gold falls, but the judge's score is not sure to rise meanwhile",
        ),
    ],
)
def test_no_over_optimisation(points: list[Point], reason: str) -> None:
    found = over_optimisation(resample(points, FEW), "ppo")
    assert (found.reason, found.kl, found.fall) == (reason, None, None)


def test_a_dip_that_recovers_is_none() -> None:
    points = [point("ppo", 1, 2, 1), point("ppo", 2, 1, 2), point("ppo", 3, 3, 3)]
    assert (
        over_optimisation(resample(points, FEW), "ppo").reason == "gold is highest at the largest KL that was measured"
    )


def test_a_fall_within_chance_is_none() -> None:
    generator = np.random.default_rng(8)
    points = [
        noisy("ppo", kl, generator.normal(gold, 1, 20), generator.normal(kl, 0.1, 20))
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
            noisy("ppo", kl, ease + generator.normal(0, 1, num_prompts), generator.normal(3 * kl, 0.1, num_prompts))
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
