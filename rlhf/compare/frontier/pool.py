"""Best-of-n: what choosing the proxy's favourite of n replies of the start gives, from one pool of replies."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf.compare.frontier.points import Point

BEST_OF_N = "best-of-n"


def best_of_n(selecting: ArrayLike, judged: ArrayLike) -> NDArray[np.float64]:
    """The expected judgement of the best of n replies, for every n that a pool of N allows.

    Args:
        selecting: the proxy's scores of the pool, (prompts, N): the highest is chosen.
        judged: what is asked about the chosen one (gold, length, the proxy itself), (prompts, N).

    Returns:
        (prompts, N); column n-1 is for n. Of n replies drawn from the pool without replacement, the i-th
        lowest (from 1) of all is the best with probability C(i-1, n-1) / C(N, n), so that this is
        unbiased and needs no resampling (Nakano et al. 2021, "WebGPT", appendix I; used so by Gao et
        al. 2023, "Scaling laws for reward model overoptimization"). Of equal scores each is chosen as
        often as another.

    Raises ValueError where the two are not of the same replies, or not finite.
    """
    scores, values = np.asarray(selecting, dtype=float), np.asarray(judged, dtype=float)
    if scores.ndim != 2 or scores.shape != values.shape or not scores.size:
        raise ValueError(f"best-of-n needs two tables (prompts, pool), these are {scores.shape} and {values.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise ValueError("best-of-n needs finite scores")
    order = np.argsort(scores, axis=1, kind="stable")
    scores, values = np.take_along_axis(scores, order, 1), np.take_along_axis(values, order, 1)
    new = np.ones(scores.shape, dtype=bool)  # where a score differs from the one below
    new[:, 1:] = scores[:, 1:] != scores[:, :-1]
    group = (np.cumsum(new) - 1).ravel()
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return means[group].reshape(scores.shape) @ _best_of_n_weights(scores.shape[1]).T


def best_of_n_kl(n: int) -> float:
    """An upper bound on the KL of best-of-n to what it samples from, in nats: log n - (n-1)/n.

    Long taken for the KL itself; Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment
    policy" (theorem 3.1), show that it is a bound, and a loose one where few replies have most of the
    probability. A comparison at equal KL is therefore never too kind to best-of-n.
    """
    return float(np.log(n) - (n - 1) / n)


def best_of_n_points(selecting: ArrayLike, gold: ArrayLike, sizes: Sequence[int] | None = None) -> list[Point]:
    """Best-of-n as a curve: a point for each of `sizes`, by default 1, 2, 4, ... and the whole pool.

    Args:
        selecting: the proxy's scores of a pool of the start's replies, (prompts, N).
        gold: the same replies' gold.
        sizes: values of n, each from 1 to N.
    """
    proxy, judged = best_of_n(selecting, selecting), best_of_n(selecting, gold)
    num_prompts, num_pool = judged.shape
    if sizes is None:
        sizes = sorted({2**power for power in range(num_pool.bit_length())} | {num_pool})
    wrong = [n for n in sizes if not 1 <= n <= num_pool]
    if wrong:
        raise ValueError(f"best of {wrong[0]} cannot be told from a pool of {num_pool} replies a prompt")
    return [
        Point(BEST_OF_N, str(n), np.full(num_prompts, best_of_n_kl(n)), judged[:, n - 1], proxy[:, n - 1], True)
        for n in sizes
    ]


def _best_of_n_weights(num_pool: int) -> NDArray[np.float64]:
    """C(i-1, n-1) / C(N, n) as (N, N): row n-1, column i-1; each row from the one before, so nothing overflows."""
    place = np.arange(1, num_pool + 1)
    rows = [np.full(num_pool, 1 / num_pool)]
    for n in range(1, num_pool):
        rows.append(rows[-1] * np.maximum(place - n, 0) / n * (n + 1) / (num_pool - n))
    return np.array(rows)
