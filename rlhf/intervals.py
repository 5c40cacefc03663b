"""How sure a mean is: bootstrap intervals that resample whole clusters (prompts), never single values."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

# A resample's variance is pulled this many clusters' worth towards the sample's own, so that a
# resample that drew one cluster only does not divide by zero.
_SHRINKAGE = 0.5
# So many numbers of a (resample, cluster) table are held at a time: 0.8 MB stay in the processor's cache, which is
# several times as fast as 32 MB.
_TABLE = 100_000
_NARROW = 32  # columns
# Draws of up to so many numbers, a byte each, are kept: the next column of as many clusters is drawn the same way.
_MOST_KEPT = 200_000_000
_DRAWS_KEPT = 4  # at once, 800 MB at most


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `n` is the number of clusters that it rests on.

    An end is None where nothing bounds it: one cluster, and a value that may be anything.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`."""
        return self.low is not None and self.low > value

    def is_below(self, value: float) -> bool:
        """Whether the whole interval lies below `value`."""
        return self.high is not None and self.high < value


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float | None, float | None] = (None, None),
    confidence: float = 0.95,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of `values` and its bootstrap interval over clusters.

    Args:
        values: (num_values,), finite.
        clusters: the cluster (prompt) of each value; each value its own where None.
        bounds: what a value can be at least and at most, None for no limit. Give (0, 1) for shares
            and win rates: their interval is then honest where few or all of them are 0 or 1.
        confidence: share of studies whose interval holds the true mean.
        num_bootstrap: resamples.
        seed: of the resampling; the same seed gives the same interval.

    The mean is that of all values; the interval accounts for clusters of unlike size. Between two
    bounds it is the percentile bootstrap, widened as Student's t widens the normal (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", section 4.3), of the clusters and one more at each bound
    (in the manner of Agresti and Coull 1998: without them ten wins of ten would be "100% to 100%").
    Otherwise it is the studentised bootstrap (Efron and Tibshirani 1993, chapter 12), which follows
    the skew of lengths and KL; with fewer than four clusters it is Student's t. One cluster gives the
    bounds. tests/test_compare_coverage.py measures how often each holds the truth.

    Raises ValueError where there are no values, or ones that are not finite or out of bounds.
    """
    flat = np.asarray(values, dtype=float).ravel()
    return mean_intervals(flat[None], clusters, bounds, confidence, num_bootstrap, seed)[0]


def mean_intervals(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float | None, float | None] = (None, None),
    confidence: float = 0.95,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """`mean_interval` of each row of `values`, (means, num_values), whose columns are of the same clusters.

    All rows are resampled together, which is many times as fast as one by one.
    """
    rows = np.asarray(values, dtype=float)
    if not len(rows):
        return []
    _check(rows, bounds)
    sums, sizes = _by_cluster(rows, clusters)
    n, means, (low, high) = len(sizes), rows.mean(1), bounds
    if n == 1:
        return [Interval(float(mean), low, high, n) for mean in means]
    tail = (1 - confidence) / 2
    if low is not None and high is not None:
        ends = _percentile(sums, sizes, low, high, tail, num_bootstrap, seed)
    elif n < 4:
        ends = _student(sums, sizes, means, tail)
    else:
        ends = _studentised(sums, sizes, means, tail, num_bootstrap, seed)
    # Rounding and the added clusters must never leave the mean outside, nor an end where no value can be.
    below, above = np.clip(np.minimum(ends[0], means), low, None), np.clip(np.maximum(ends[1], means), None, high)
    each = zip(means.tolist(), below.tolist(), above.tolist(), strict=True)
    return [Interval(mean, least, most, n) for mean, least, most in each]


def _check(values: NDArray[np.float64], bounds: tuple[float | None, float | None]) -> None:
    low, high = bounds
    if values.size == 0:
        raise ValueError("an interval needs at least one value")
    if not np.isfinite(values).all():
        raise ValueError("an interval needs finite values")
    if (low is not None and values.min() < low) or (high is not None and values.max() > high):
        raise ValueError(f"values from {values.min()} to {values.max()} are not within the bounds {low} and {high}")


def _by_cluster(
    rows: NDArray[np.float64], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums (clusters, rows) and the numbers (clusters,) of the clusters' values, in the order of their first."""
    if clusters is None:
        return rows.T, np.ones(rows.shape[1])
    if len(clusters) != rows.shape[1]:
        raise ValueError(f"{len(clusters)} clusters for {rows.shape[1]} values")
    index = cluster_index(clusters)
    if index[-1] == len(index) - 1:  # each its own
        return rows.T, np.ones(rows.shape[1])
    sums = np.stack([np.bincount(index, row).astype(float) for row in rows], 1)
    return sums, np.bincount(index).astype(float)


def cluster_index(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """The number of each value's cluster, (num_values,), counted in the order of their first values."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) == len(clusters):
        return np.arange(len(clusters))
    return np.fromiter(map(numbers.__getitem__, clusters), np.intp, len(clusters))


def _percentile(
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    low: float,
    high: float,
    tail: float,
    num_bootstrap: int,
    seed: int,
) -> NDArray[np.float64]:
    """The ends, (2, means)."""
    size = sizes.mean()
    added = np.repeat([[low * size], [high * size]], sums.shape[1], 1)
    sums, sizes = np.concatenate([sums, added]), np.concatenate([sizes, [size, size]])
    n = len(sums)
    totals = resampled_sums(np.column_stack([sums, sizes]), num_bootstrap, seed)  # (num_bootstrap, means + 1)
    widened = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, tail))
    return np.quantile(totals[:, :-1] / totals[:, -1:], [widened, 1 - widened], axis=0)


def _student(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], means: NDArray[np.float64], tail: float
) -> NDArray[np.float64]:
    width = -stdtrit(len(sums) - 1, tail) * np.sqrt(_variances(sums, sizes, means))
    return np.stack([means - width, means + width])


def _studentised(
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    means: NDArray[np.float64],
    tail: float,
    num_bootstrap: int,
    seed: int,
) -> NDArray[np.float64]:
    """The ends, (2, means)."""
    n = len(sums)
    variances = _variances(sums, sizes, means)
    off = sums - means * sizes[:, None]  # how far each cluster's sum is from what the mean predicts
    table = np.column_stack([off, off**2, off * sizes[:, None], sizes, sizes**2])
    m = len(means)
    places = [m, 2 * m, 3 * m, 3 * m + 1]
    sums_drawn = np.split(resampled_sums(table, num_bootstrap, seed), places, axis=1)
    total, squares, products, size, sizes_squared = sums_drawn
    shift = total / size  # a resample's mean less the sample's
    spread = np.maximum(squares - 2 * shift * products + shift**2 * sizes_squared, 0)
    resampled = spread / size**2 * n / (n - 1)
    shrunk = ((n - 1) * resampled + _SHRINKAGE * variances) / (n - 1 + _SHRINKAGE)
    some = variances > 0  # the others' ends are their means
    lower, upper = np.zeros((2, len(means)))
    ratios = shift[:, some] / np.sqrt(shrunk[:, some])
    lower[some], upper[some] = np.quantile(ratios, [tail, 1 - tail], axis=0)
    below, above = means - upper * np.sqrt(variances), means - lower * np.sqrt(variances)
    if n >= 8:  # by now the mean lies among the clusters' own: at most 2 in 2^8 miss it on one side
        own = sums / sizes[:, None]
        below, above = np.maximum(below, own.min(0)), np.minimum(above, own.max(0))
    return np.stack([below, above])


def _variances(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The squared standard errors of ratios of sums (linearised; Cochran 1977, section 6.4), (means,)."""
    n = len(sums)
    return ((sums - means * sizes[:, None]) ** 2).sum(0) / sizes.sum() ** 2 * n / (n - 1)


def drawn_counts(
    num_clusters: int, num_bootstrap: int, seed: int, at_once: int = _TABLE, dtype: Any = np.float64
) -> Iterator[NDArray[Any]]:
    """How often each resample draws each cluster, (some resamples, num_clusters) at a time.

    The same arguments give the same draws, which are made once and kept where they are not too many.

    Args:
        num_clusters: that are drawn from, and how many each resample draws.
        num_bootstrap: resamples.
        seed: of the draws.
        at_once: about how many counts come at a time; more where much is done with each.
        dtype: of the counts.
    """
    if num_clusters * num_bootstrap > _MOST_KEPT:
        for counts in _draw(num_clusters, num_bootstrap, seed):
            yield counts.astype(dtype)
        return
    kept = _kept_draws(num_clusters, num_bootstrap, seed)
    step = max(1, at_once // num_clusters)
    for start in range(0, num_bootstrap, step):
        yield kept[start : start + step].astype(dtype)


def resampled_sums(table: NDArray[Any], num_bootstrap: int, seed: int) -> NDArray[Any]:
    """What each resample's clusters add up to, (num_bootstrap, columns), from a table (clusters, columns).

    In the table's own precision: float32 takes half the time of float64, where a millionth of the sum of the
    columns' sizes does not matter.
    """
    # Products with wide tables cost less the more rows they have; with narrow ones the counts should stay in the cache.
    at_once = _TABLE if table.shape[1] <= _NARROW else 25 * _TABLE
    draws = drawn_counts(len(table), num_bootstrap, seed, at_once, table.dtype)
    return np.concatenate([counts @ table for counts in draws])


@lru_cache(maxsize=_DRAWS_KEPT)
def _kept_draws(num_clusters: int, num_bootstrap: int, seed: int) -> NDArray[np.uint8]:
    # A byte holds every count: of n clusters one is drawn n times at most, and 256 times with a chance under 1 / 256!.
    parts = [counts.astype(np.uint8) for counts in _draw(num_clusters, num_bootstrap, seed)]
    kept = np.concatenate(parts) if parts else np.zeros((0, num_clusters), np.uint8)
    kept.flags.writeable = False
    return kept


def _draw(num_clusters: int, num_bootstrap: int, seed: int) -> Iterator[NDArray[np.intp]]:
    generator = np.random.default_rng(seed)
    step = max(1, _TABLE // num_clusters)
    for start in range(0, num_bootstrap, step):
        rows = min(step, num_bootstrap - start)
        offsets = np.arange(0, rows * num_clusters, num_clusters)[:, None]
        drawn = generator.integers(0, num_clusters, (rows, num_clusters)) + offsets
        yield np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters)
