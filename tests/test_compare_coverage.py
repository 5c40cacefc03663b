"""Do 95% intervals hold the truth 95 times of 100? Measured on made-up studies whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from rlhf.compare.statistics import UNDECIDED, Bootstrap, compare_pair
from rlhf.intervals import mean_interval
from tests.interval_cases import holds

STUDIES, RESAMPLES = 400, 400
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _share_of_wins(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6], size=n)  # mean 0.7


def _mostly_won(generator: np.random.Generator, n: int) -> np.ndarray:
    return (generator.random(n) < 0.9).astype(float)


def _scores(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.normal(1.0, 2.0, n)


def _lengths(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.gamma(2.0, 20.0, n)  # skewed to the right, mean 40


@pytest.mark.parametrize("n", [30, 150])
@pytest.mark.parametrize(
    ("draw", "truth", "bounds"),
    [
        (_share_of_wins, 0.7, (0, 1)),
        (_mostly_won, 0.9, (0, 1)),
        (_scores, 1.0, (None, None)),
        (_lengths, 40.0, (0, None)),
    ],
)
def test_intervals_hold_the_truth(draw: Draw, truth: float, bounds: tuple, n: int) -> None:
    generator = np.random.default_rng(n)
    held = 0
    for study in range(STUDIES):
        interval = mean_interval(draw(generator, n), bounds=bounds, num_bootstrap=RESAMPLES, seed=study)
        held += holds(interval, truth)
    assert 0.92 <= held / STUDIES <= 0.98


def test_intervals_of_clusters_hold_the_truth() -> None:
    """Five responses a prompt that share their prompt's difficulty: as if each were one would be far too sure."""
    generator = np.random.default_rng(0)
    held = held_if_apart = 0
    clusters = np.repeat(np.arange(40), 5).tolist()
    for study in range(STUDIES):
        values = (generator.normal(0, 1, (40, 1)) + generator.normal(0, 0.5, (40, 5))).ravel()
        right = mean_interval(values, clusters, num_bootstrap=RESAMPLES, seed=study)
        wrong = mean_interval(values, None, num_bootstrap=RESAMPLES, seed=study)
        held += holds(right, 0)
        held_if_apart += holds(wrong, 0)
    assert 0.92 <= held / STUDIES <= 0.98
    assert held_if_apart / STUDIES < 0.75


@pytest.mark.parametrize("n", [3, 6, 20, 100])
@pytest.mark.parametrize("num_responses", [1, 4])
def test_a_policy_is_hardly_ever_called_better_than_itself(n: int, num_responses: int) -> None:
    """Both draw from the same five grades, so that ties are common; prompts differ in difficulty."""
    generator = np.random.default_rng(n)
    called = 0
    for study in range(STUDIES):
        easy = generator.random((n, 1))
        a, b = (generator.binomial(4, easy, (n, num_responses)).astype(float) for _ in range(2))
        pair = compare_pair("a", "b", "gold", a, b, Bootstrap(num_bootstrap=RESAMPLES, seed=study))
        called += pair.verdict != UNDECIDED
    assert called / STUDIES <= 0.07


def test_a_real_difference_is_found() -> None:
    """60% against 50% with 200 prompts: about four times in five, as configs/compare.yaml says."""
    generator = np.random.default_rng(5)
    found = 0
    for study in range(STUDIES):
        a = (generator.random((200, 1)) < 0.6).astype(float)
        pair = compare_pair("a", "b", "gold", a, 1 - a, Bootstrap(num_bootstrap=RESAMPLES, seed=study))
        found += pair.verdict == "a"
    # Normal approximation: 1 - Phi(1.96 - 0.1 / sqrt(0.24 / 200)) = 0.82.
    assert 0.75 <= found / STUDIES <= 0.88
