"""Does the first place on screen win more than chance? Order is random, so chance is exactly one half."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labeling_app.quality.figure import Figure, mean_figure, missing
from labeling_app.quality.votes import SERIOUS
from rlhf.records import Ranking

NO_ORDER = "no answer has its order on screen recorded"
# Rounding in the Fourier transform is some 1e-16 a term: what is below this cannot be told from it.
_SMALLEST = 1e-12


def position_bias(rankings: Sequence[Ranking], seed: int = 0) -> tuple[Figure, float | None]:
    """The share of comparisons with another response that the first one on screen wins, and its p-value.

    Ties count half; `n` is the number of answers. The test is the exact permutation test: were places
    without effect, the answer would be as likely under every order on screen. For pairs it is the
    binomial test of the decided ones. Practice does not count.
    """
    kept = [ranking for ranking in rankings if ranking.kind in SERIOUS and len(ranking.shown) > 1]
    if not kept:
        return missing(NO_ORDER), None
    num_others = np.array([len(ranking.shown) - 1 for ranking in kept])
    halves = np.zeros((len(kept), int(num_others.max()) * 2 + 1))  # see _half_wins
    won = np.zeros(len(kept), dtype=np.int64)
    shares: list[float] = []
    for k in np.unique(num_others) + 1:
        at = np.flatnonzero(num_others == k - 1)
        ranks = np.array([[kept[i].ranks[id] for id in kept[i].shown] for i in at])  # (answers, places)
        half_wins = _half_wins(ranks)
        np.add.at(halves, (np.repeat(at, k), half_wins.ravel()), 1 / k)
        won[at] = half_wins[:, 0]
    # One value a comparison, so that an answer with more responses counts for more, as in the test.
    shares = [share for got, of in zip(won, num_others, strict=True) for share in [got / 2 / of] * int(of)]
    tasks = [ranking.task_id for ranking in kept for _ in ranking.shown[1:]]
    figure = mean_figure(shares, tasks, NO_ORDER, seed)
    return Figure(figure.value, figure.low, figure.high, len(kept)), permutation_p(halves, int(won.sum()))


def _half_wins(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each response gets from the others, 2 a win and 1 a tie: (answers, k) -> (answers, k)."""
    better = (ranks[:, :, None] < ranks[:, None, :]).sum(2)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(2) - 1
    return 2 * better + tied


def permutation_p(steps: NDArray[np.float64], observed: int) -> float:
    """How likely a sum of independent steps is to be as far from its mean as `observed`, or farther.

    Args:
        steps: (answers, values): the probability of each whole number 0, 1, ... as an answer's step.
        observed: the sum.

    The sum's distribution is exact: the product of the steps' Fourier transforms, transformed back.
    """
    unique, counts = np.unique(np.round(steps, 12), axis=0, return_counts=True)
    values = np.arange(steps.shape[1])
    highest = int((counts * np.array([np.flatnonzero(row).max() for row in unique])).sum())
    size = highest + 1
    frequencies = np.arange(size // 2 + 1)
    waves = np.exp(-2j * np.pi / size * np.outer(frequencies, values))  # (frequencies, values)
    chances = np.fft.irfft(np.prod((waves @ unique.T) ** counts, axis=1), size)
    mean = float(counts @ (unique @ values))
    farther = np.abs(np.arange(size) - mean) >= abs(observed - mean) - 1e-6
    return float(min(1.0, max(_SMALLEST, chances[farther].sum())))
