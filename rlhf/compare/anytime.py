"""Win rates that may be looked at after every batch, and what looking too often does to those that may not.

An ordinary 95% interval holds the truth in 95 of 100 studies if it is looked at once, after a number of
prompts fixed beforehand. Whoever looks after each batch, and stops when one policy is ahead, calls equal
policies different far more often (`false_decisions`). The intervals here hold the truth at all looks
together, so that one may look at any time and stop for any reason.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from rlhf.intervals import Interval

# The shares of the capital that are staked, an equal part of it on each. A stake of m d / variance finds out best that
# the mean is d above m: 0.8 where ten prompts tell, 0.025 where ten thousand are needed.
_STAKES = 0.8 * 2.0 ** -np.arange(6)
_HALVINGS = 20  # of the stretch that an end is searched in: to a millionth
_SMALLEST = 1e-9  # a mean above 0, to divide by
_MOST_LOOKS = 300


class AnytimeInterval:
    """The interval of a mean of values in [0, 1] that arrive in batches, valid at all looks together.

    A gambler bets against each candidate mean m that values come out higher. Of the capital 1 at the start an equal
    part plays each stake c in [0, 1): it becomes, after values x_1 ... x_t,

        K_t(m) = mean over c of prod_i (1 - c + c x_i / m).

    If the mean is m, every bet is fair, so K is a nonnegative martingale and ever exceeds 1 / a with
    probability at most a (Ville's inequality). The lower end is the largest m against which K has come to
    2 / (1 - confidence), the upper end the same for 1 - x. This is the hedged capital of Waudby-Smith and Ramdas 2023,
    "Estimating means of bounded random variables by betting", section 4, for fixed stakes that are mixed (their
    diversified Kelly bets; Cover 1991's universal portfolio). Their plug-in stakes, which follow the variance so
    far, decide later: tests/test_compare_anytime.py measures both. K falls as m rises, so the ends need no grid.
    Spread is learned from the values: ties narrow the interval. Near one half it is about 1.6 times as wide as one
    for a single look, and errs in about 1% of studies of 400 prompts: it keeps the rest for looks that never came.

    It holds for values whose mean given all before them is the same: prompts in random order, each
    once (average its responses first), neither sorted by topic nor repeated.
    """

    def __init__(self, confidence: float = 0.95) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}, must be between 0 and 1")
        self._threshold = float(np.log(2 / (1 - confidence)))
        self._values = np.zeros(0)
        self._low, self._low_of_rest = 0.0, 0.0  # the lower ends of the mean of x and of that of 1 - x

    def look(self, values: ArrayLike) -> Interval:
        """Add one batch of prompts and give the interval of the mean of all so far.

        Args:
            values: (prompts,) of this batch in [0, 1], one a prompt.

        The ends are the tightest of all looks (the running intersection). Should the mean since have
        left them, the interval is that of this look alone: it is wider, so still valid, and holds the mean.

        Raises ValueError for values that are not finite or out of [0, 1], and where there are none yet.
        """
        batch = np.asarray(values, dtype=float).ravel()
        if not ((batch >= 0) & (batch <= 1)).all():  # nan is neither
            raise ValueError("an anytime-valid interval needs finite values from 0 to 1")
        self._values = np.concatenate([self._values, batch])
        if not self._values.size:
            raise ValueError("an anytime-valid interval needs at least one value")
        distinct, counts = np.unique(self._values, return_counts=True)
        self._low = _lower_end(distinct, counts, self._low, self._threshold)
        self._low_of_rest = _lower_end(1 - distinct, counts, self._low_of_rest, self._threshold)
        low, low_of_rest, mean = self._low, self._low_of_rest, float(self._values.mean())
        if not low <= mean <= 1 - low_of_rest:
            low = _lower_end(distinct, counts, 0.0, self._threshold)
            low_of_rest = _lower_end(1 - distinct, counts, 0.0, self._threshold)
        return Interval(mean, low, 1 - low_of_rest, len(self._values))


def anytime_intervals(values: ArrayLike, looks: Sequence[int], confidence: float = 0.95) -> list[Interval]:
    """The interval at each look at one series of values.

    Args:
        values: (prompts,) in [0, 1], in the order in which they arrived.
        looks: after how many prompts, ascending and each at most the number there is.
        confidence: share of studies in which all of these intervals hold the mean.
    """
    flat = np.asarray(values, dtype=float)
    ends = list(looks)
    if flat.ndim != 1 or ends != sorted(set(ends)) or (ends and not 1 <= ends[0] <= ends[-1] <= len(flat)):
        raise ValueError(f"looks must ascend from 1 to at most {flat.size}, the number of values")
    running = AnytimeInterval(confidence)
    return [running.look(flat[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _lower_end(values: NDArray[np.float64], counts: NDArray[np.int64], known: float, threshold: float) -> float:
    """The largest mean that the bets rule out, at least `known`.

    Args:
        values: (distinct,), the values that came.
        counts: how often each did.
        known: the lower end of an earlier look.
        threshold: the logarithm of the capital that rules a mean out.
    """

    def is_ruled_out(candidate: float) -> bool:
        logs = np.log1p(_STAKES[:, None] * (values / candidate - 1)) @ counts  # (stakes,), of each stake's capital
        return bool(np.logaddexp.reduce(logs) - np.log(len(_STAKES)) >= threshold)

    # At the mean so far no stake has won: its factors' mean is 1, and so their product at most 1.
    low, high = max(known, _SMALLEST), float(values @ counts / counts.sum())
    if low >= high or not is_ruled_out(low):
        return known
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low


def false_decisions(looks: int, confidence: float = 0.95) -> float:
    """How often equal policies are called different when a fixed-n interval is looked at `looks` times.

    After equal batches, stopping at the first interval that leaves one half: the probability that the largest
    of `looks` values |S_k| / sqrt(k) exceeds the normal quantile, S_k a random walk of normal steps. By the
    recursion over looks of Armitage, McPherson and Rowe 1969, "Repeated significance tests on accumulating
    data": 5% at one look, 14% at five, 19% at ten. Beyond 300 looks it is that of 300, and too low.

    Raises ValueError for fewer than one look, or a confidence out of (0, 1).
    """
    if looks < 1 or not 0 < confidence < 1:
        raise ValueError(f"looks is {looks}, must be at least 1, and confidence {confidence} between 0 and 1")
    quantile = float(ndtri((1 + confidence) / 2))
    looks = min(looks, _MOST_LOOKS)
    # The walk's density is a sum of normals of spread 1: four nodes to a unit integrate it to six digits.
    nodes, weights = np.polynomial.legendre.leggauss(20 + int(4 * quantile * np.sqrt(looks)))
    at, mass = np.zeros(1), np.ones(1)  # where the walk may be while undecided, and how likely
    for look in range(1, looks + 1):
        end = quantile * np.sqrt(look)
        steps = np.exp(-((end * nodes[:, None] - at) ** 2) / 2) / np.sqrt(2 * np.pi)  # (nodes, nodes before)
        at, mass = end * nodes, end * weights * (steps @ mass)
    return float(1 - mass.sum())


def looked_too_often(looks: int, confidence: float = 0.95) -> str | None:
    """What to tell somebody who has looked `looks` times at an interval made for one look.

    Returns one sentence without a full stop that says how far off the interval is and what to use
    instead; None for a single look. Raises ValueError for fewer than one.
    """
    wrong = false_decisions(looks, confidence)
    if looks == 1:
        return None
    share = f"{'about' if looks <= _MOST_LOOKS else 'more than'} {wrong:.0%}"
    return (
        f"this {confidence:.0%} interval is made for one look and was looked at {looks:,} times: to stop at the first "
        f"that leaves 50% calls equal policies different in {share} of studies, not {1 - confidence:.0%}; decide by "
        "the anytime-valid interval, or fix the number of prompts beforehand and look once"
    )
