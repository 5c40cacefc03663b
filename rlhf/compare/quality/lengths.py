"""How long replies are, short and long ones apart: quantiles with intervals over prompts."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from rlhf.compare.quality.replies import QUANTILES
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, drawn_counts

Lengths = NDArray[np.float64]  # (prompts, responses)


def length_quantiles(
    lengths: Lengths, bootstrap: Bootstrap, draws: NDArray[np.float64] | None = None
) -> dict[float, Interval]:
    """The 5%, 25%, 50%, 75% and 95% quantiles over all replies, as numpy's `linear` ones, each with its interval.

    The interval is the percentile bootstrap over prompts, widened as Student's t widens the normal (Hesterberg
    2015, section 4.3). Where so few prompts may well all lie on one side of a quantile (the 95% one of fewer than
    72), nothing bounds it there: its high end is None, or its low end 0. `draws` is `length_draws`, where known.
    """
    draws = length_draws(lengths, bootstrap) if draws is None else draws
    found = _intervals(np.quantile(lengths, QUANTILES), draws, lengths, bootstrap)
    tail = (1 - bootstrap.confidence) / 2
    return {
        at: Interval(
            one.mean,
            0.0 if (1 - at) ** one.n > tail else one.low,
            None if at**one.n > tail else one.high,
            one.n,
        )
        for at, one in found.items()
    }


def quantile_differences(
    a: Lengths,
    b: Lengths,
    bootstrap: Bootstrap,
    draws: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> dict[float, Interval]:
    """Each quantile of `a` less that of `b`, with the same prompts drawn for both.

    `draws` is `length_draws` of both, where known. Raises ValueError where the two are not of as many prompts.
    """
    if len(a) != len(b):
        raise ValueError(f"policies must have answered the same prompts, these answered {len(a)}, {len(b)}")
    estimate = np.quantile(a, QUANTILES) - np.quantile(b, QUANTILES)
    first, second = (length_draws(a, bootstrap), length_draws(b, bootstrap)) if draws is None else draws
    return _intervals(estimate, first - second, a, bootstrap)


def length_draws(lengths: Lengths, bootstrap: Bootstrap) -> NDArray[np.float64]:
    """The quantiles of each resample, (num_bootstrap, quantiles)."""
    numbers: dict[Hashable, int] = {}
    rows = [numbers.setdefault(cluster, len(numbers)) for cluster in _clusters(lengths, bootstrap)]
    flat = lengths.ravel()
    order = np.argsort(flat, kind="stable")
    values, owners = flat[order], np.repeat(rows, lengths.shape[1])[order]
    values, firsts = np.unique(values, return_index=True)
    found = []
    for counts in drawn_counts(len(numbers), bootstrap.num_bootstrap, bootstrap.seed):
        # Of each resample: how many of its replies are at most so long.
        upto = np.add.reduceat(counts[:, owners], firsts, axis=1).cumsum(1)
        found.append(np.stack([_quantile(values, upto, at) for at in QUANTILES], 1))
    return np.concatenate(found)


def _clusters(lengths: Lengths, bootstrap: Bootstrap) -> Sequence[Hashable]:
    return range(len(lengths)) if bootstrap.clusters is None else bootstrap.clusters


def _quantile(values: NDArray[np.float64], upto: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """numpy's `linear` quantile of each resample, (resamples,)."""
    place = (upto[:, -1] - 1) * at
    below, above = np.floor(place), np.ceil(place)
    low, high = (values[(upto <= rank[:, None]).sum(1)] for rank in (below, above))
    return low + (place - below) * (high - low)


def _intervals(
    estimate: NDArray[np.float64],
    draws: NDArray[np.float64],
    lengths: Lengths,
    bootstrap: Bootstrap,
) -> dict[float, Interval]:
    n = len(set(_clusters(lengths, bootstrap)))
    if n == 1:
        return {at: Interval(float(one), None, None, 1) for at, one in zip(QUANTILES, estimate, strict=True)}
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - bootstrap.confidence) / 2)))
    ends = np.quantile(draws, [tail, 1 - tail], axis=0)
    return {
        at: Interval(float(one), float(min(low, one)), float(max(high, one)), n)
        for at, one, low, high in zip(QUANTILES, estimate, *ends, strict=True)
    }
