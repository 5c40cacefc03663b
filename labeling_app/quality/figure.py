"""A number with its interval and what it rests on, or why there is none; and how intervals are made."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from rlhf.intervals import mean_interval

TAIL = 0.025  # on each side of every interval: 95 in 100 hold the truth
# From seed to seed an end moves by about 3% of the interval's width: enough, and fast enough for a page.
NUM_BOOTSTRAP = 500
# So many numbers of a (resample, cluster) table are held at a time: 32 MB.
_TABLE = 4_000_000


@dataclass(frozen=True)
class Figure:
    """A value and its 95% interval, from `n` things; `reason` says in words why a part of it is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None


def missing(reason: str, n: int = 0) -> Figure:
    """No value, and why."""
    return Figure(None, n=n, reason=reason)


def mean_figure(values: ArrayLike, clusters: Sequence[Hashable], reason: str, seed: int = 0) -> Figure:
    """The mean of values between 0 and 1 with a bootstrap interval that resamples whole clusters (tasks).

    `n` is the number of values; `reason` is why there is none where there are no values.
    """
    flat = np.asarray(values, dtype=float)
    if not flat.size:
        return missing(reason)
    found = mean_interval(flat, clusters, (0.0, 1.0), 1 - 2 * TAIL, NUM_BOOTSTRAP, seed)
    return Figure(found.mean, found.low, found.high, flat.size)


def wilson(num_right: int, n: int, reason: str) -> Figure:
    """A share of `n` independent answers with Wilson's score interval (1927, JASA 22:209, "Probable inference").

    tests/test_label_quality_known.py holds it equal to statsmodels' and scipy's.
    """
    if not n:
        return missing(reason)
    z, share = float(-ndtri(TAIL)), num_right / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Figure(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), n)


def resampled_sums(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The column sums of rows (clusters) drawn with replacement: (clusters, columns) -> (NUM_BOOTSTRAP, columns)."""
    n = len(table)
    generator = np.random.default_rng(seed)
    step = max(1, _TABLE // n)
    parts = []
    for start in range(0, NUM_BOOTSTRAP, step):
        rows = min(step, NUM_BOOTSTRAP - start)
        drawn = generator.integers(0, n, (rows, n)) + np.arange(0, rows * n, n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each was drawn
        parts.append(counts.astype(float) @ table)
    return np.concatenate(parts)


def percentile_ends(resamples: NDArray[np.float64], n: int) -> tuple[float, float]:
    """The ends of the percentile interval of resamples of `n` >= 2 clusters.

    Widened as Student's t widens the normal (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 4.3): with few clusters the plain percentiles are too narrow.
    """
    tail = ndtr(sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL))
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return float(low), float(high)


def as_json(figure: Figure, **more: Any) -> dict[str, Any]:
    """A figure as the admin page takes it, with what else belongs to it; floats rounded to what can be read."""
    ends = {name: getattr(figure, name) for name in ("value", "low", "high")}
    rounded = {name: None if end is None else round(float(end), 6) for name, end in ends.items()}
    return {**rounded, "n": int(figure.n), "reason": figure.reason, **more}
