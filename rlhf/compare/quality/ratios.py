"""Figures that are one sum over another, such as nats a token: their intervals over prompts."""

import math

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

Sums = NDArray[np.float64]  # (prompts,)


def ratio(above: Sums, below: Sums, bootstrap: Bootstrap) -> Interval | None:
    """All of `above` over all of `below`, both at least 0, with the interval over prompts; None where `below` is 0.

    The interval is that of the linearised ratio (Cochran 1977, "Sampling techniques", section 6.4): the mean of
    r + (above - r * below) / mean(below), which is r.
    """
    values = _linearised(above, below)
    if values is None:
        return None
    interval = bootstrap.interval(values, (None, None))
    low = 0.0 if interval.low is None else max(0.0, interval.low)
    return Interval(interval.mean, low, interval.high, interval.n)


def ratio_difference(a: tuple[Sums, Sums], b: tuple[Sums, Sums], bootstrap: Bootstrap) -> Interval | None:
    """The ratio of `a`, (above, below), less that of `b` on the same prompts; None where either has none.

    Raises ValueError where the two are not of as many prompts.
    """
    if len(a[0]) != len(b[0]):
        raise ValueError(f"a difference needs the same prompts, these are {len(a[0])}, {len(b[0])}")
    first, second = _linearised(*a), _linearised(*b)
    return None if first is None or second is None else bootstrap.interval(first - second, (None, None))


def _linearised(above: Sums, below: Sums) -> Sums | None:
    if not below.sum():
        return None
    whole = above.sum() / below.sum()
    return whole + (above - whole * below) / below.mean()


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
