"""Figures that are one sum over another, such as nats a token: their intervals over prompts."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, drawn_counts

Sums = NDArray[np.float64]  # (prompts,)
_SHRINKAGE = 0.5  # clusters' worth that a resample's variance is pulled to the sample's, as in rlhf.intervals


def ratio(above: Sums, below: Sums, bootstrap: Bootstrap) -> Interval | None:
    """All of `above` over all of `below`, both at least 0, with the interval over prompts; None where `below` is 0."""
    interval = _interval([(above, below)], bootstrap)
    if interval is None:
        return None
    low = 0.0 if interval.low is None else max(0.0, interval.low)
    return Interval(interval.mean, low, interval.high, interval.n)


def ratio_difference(a: tuple[Sums, Sums], b: tuple[Sums, Sums], bootstrap: Bootstrap) -> Interval | None:
    """The ratio of `a`, (above, below), less that of `b` on the same prompts; None where either has none.

    Raises ValueError where the two are not of as many prompts.
    """
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a difference needs the same prompts, these are {len(a[0])}, {len(b[0])}")
    return _interval([a, b], bootstrap)


def _interval(ratios: Sequence[tuple[Sums, Sums]], bootstrap: Bootstrap) -> Interval | None:
    """The first ratio, less the second where there is one, with the studentised bootstrap's interval.

    The standard error is that of the linearised ratio (Cochran 1977, "Sampling techniques", section 6.4), anew in
    each resample (Efron and Tibshirani 1993, chapter 12); Student's t for fewer than four clusters.
    """
    table = _by_cluster(np.stack([column for pair in ratios for column in pair], 1), bootstrap.clusters)
    if not table.sum(0)[1::2].all():
        return None
    n, width = table.shape
    (mean,), (variance,) = _estimates(table.sum(0)[None], (table.T @ table)[None], n)
    if n == 1:
        return Interval(float(mean), None, None, 1)
    tail = (1 - bootstrap.confidence) / 2
    error = math.sqrt(variance)
    if n < 4:
        reach = -float(stdtrit(n - 1, tail)) * error
        return Interval(float(mean), float(mean - reach), float(mean + reach), n)
    products = (table[:, :, None] * table[:, None, :]).reshape(n, -1)
    shifts = []
    for counts in drawn_counts(n, bootstrap.num_bootstrap, bootstrap.seed):
        sums = counts @ table
        there = sums[:, 1::2].all(1)  # a resample without any token has no ratio
        squares = (counts @ products).reshape(-1, width, width)[there]
        means, variances = _estimates(sums[there], squares, n)
        shrunk = ((n - 1) * variances + _SHRINKAGE * variance) / (n - 1 + _SHRINKAGE)
        shifts.append(np.divide(means - mean, np.sqrt(shrunk), out=np.zeros_like(means), where=shrunk > 0))
    lower, upper = np.quantile(np.concatenate(shifts), [tail, 1 - tail])
    return Interval(float(mean), float(mean - max(upper, 0) * error), float(mean - min(lower, 0) * error), n)


def _estimates(
    sums: NDArray[np.float64], squares: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The figure and its squared standard error of samples of n clusters.

    Args:
        sums: above, below, and so for the second ratio: (samples, 2 or 4).
        squares: sums of their products, (samples, 2 or 4, 2 or 4).
        n: clusters.
    """
    ratios = sums[:, ::2] / sums[:, 1::2]
    signs = np.array([1.0, -1.0])[: ratios.shape[1]]
    weights = np.empty_like(sums)  # of each column in the linearised figure
    weights[:, ::2] = signs / sums[:, 1::2]
    weights[:, 1::2] = -signs * ratios / sums[:, 1::2]
    variances = np.einsum("si,sij,sj->s", weights, squares, weights) * n / max(n - 1, 1)
    return (ratios * signs).sum(1), np.maximum(variances, 0)


def _by_cluster(table: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """The sums of each cluster's rows."""
    if clusters is None:
        return table
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.zeros((len(numbers), table.shape[1]))
    np.add.at(sums, index, table)
    return sums


def exponential(interval: Interval) -> Interval:
    """The exponential of a figure and of its ends: nats a token to perplexity, a difference to "so many times"."""
    low, high = (None if end is None else _exp(end) for end in (interval.low, interval.high))
    return Interval(math.exp(min(interval.mean, 700.0)), low or 0.0, high, interval.n)


def _exp(value: float) -> float | None:
    return math.exp(value) if value < 700 else None  # of few prompts an end can be anything


def less_one(interval: Interval) -> Interval:
    """A ratio of two figures as how much more the first is, a share of the second."""
    low, high = (None if end is None else end - 1 for end in (interval.low, interval.high))
    return Interval(interval.mean - 1, low, high, interval.n)
