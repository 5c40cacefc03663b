"""Whether a judge that says 80% is right in 80% of cases: calibration error and Brier score."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr, stdtrit

from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, cluster_index


@dataclass(frozen=True)
class Bin:
    """The pairs whose win probability lies in one stretch: what was said of them, and what came."""

    low: float
    high: float
    num_pairs: int
    said: float
    came: Interval


@dataclass(frozen=True)
class Calibration:
    """How far win probabilities can be taken at their word.

    Args:
        ece: expected calibration error.
        brier: the mean squared difference of probability and outcome; 0.25 for saying 0.5 always.
        bins: those with pairs, for a reliability diagram.
    """

    ece: Interval
    brier: Interval
    bins: list[Bin]


def win_probability(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """How likely a reward model says that a reply with score `a` beats one with score `b` (Bradley-Terry)."""
    return expit(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


def calibration(probabilities: ArrayLike, outcomes: ArrayLike, bootstrap: Bootstrap, num_bins: int = 10) -> Calibration:
    """How well win probabilities meet what people or gold then said.

    Args:
        probabilities: that the first of a pair wins, (pairs,), each in [0, 1].
        outcomes: 1 where it won, 0 where it lost, 0.5 for a tie, (pairs,).
        bootstrap: its clusters are the prompts of the pairs.
        num_bins: of equal width.

    The error (Guo et al. 2017, "On calibration of modern neural networks", equation 3, with a win
    probability for their confidence) is the mean over pairs of the gap of their bin. Chance alone opens
    gaps, so the figure of a sample is too high, most for few pairs. It cannot be further off than the
    gaps that chance opens add up to (the triangle inequality); the bootstrap says how much that is, and
    the interval is the figure less and plus it: wide, but it holds 0 for a judge that may be calibrated.
    The Brier score has no such bias: to compare judges, compare that.

    Raises ValueError where a value is not in [0, 1], or they are not as many.
    """
    said, came = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    if said.ndim != 1 or said.shape != came.shape or not said.size:
        raise ValueError(f"calibration needs an outcome a probability, these are {said.shape} and {came.shape}")
    for name, values in (("probability", said), ("outcome", came)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"each {name} must be from 0 to 1")
    place = np.minimum((said * num_bins).astype(int), num_bins - 1)
    clusters = range(len(said)) if bootstrap.clusters is None else bootstrap.clusters
    bins = []
    for number in np.unique(place).tolist():
        inside = np.flatnonzero(place == number)
        own = dataclasses.replace(bootstrap, clusters=[clusters[at] for at in inside.tolist()])
        observed = own.interval(came[inside], (0.0, 1.0))
        bins.append(Bin(number / num_bins, (number + 1) / num_bins, len(inside), float(said[inside].mean()), observed))
    brier = bootstrap.interval((said - came) ** 2, (0.0, 1.0))
    return Calibration(_ece(said - came, place, clusters, bootstrap), brier, bins)


def _ece(
    gaps: NDArray[np.float64], place: NDArray[np.intp], clusters: Sequence[Hashable], bootstrap: Bootstrap
) -> Interval:
    owners = cluster_index(clusters)
    n, num_bins = int(owners.max()) + 1, int(place.max()) + 1
    sums = np.bincount(owners * num_bins + place, gaps, n * num_bins).reshape(n, num_bins)
    table = np.column_stack([sums, np.bincount(owners)])  # of each cluster the gaps' sum in each bin, and its pairs
    estimate = float(np.abs(table.sum(0)[:-1]).sum() / len(gaps))
    if n == 1:
        return Interval(estimate, 0.0, 1.0, 1)
    generator = np.random.default_rng(bootstrap.seed)
    drawn = np.stack([table[generator.integers(0, n, n)].sum(0) for _ in range(bootstrap.num_bootstrap)])
    noise = np.abs(drawn[:, :-1] / drawn[:, -1:] - table.sum(0)[:-1] / len(gaps)).sum(1)
    # Widened as Student's t widens the normal, as in rlhf.intervals.
    off = float(np.quantile(noise, ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, bootstrap.confidence))))
    return Interval(estimate, max(0.0, estimate - off), min(1.0, estimate + off), n)
