"""Tests of "a beats b" over the same prompts, their correction for many comparisons, and how many more would decide.

Outcomes are arrays (prompts,) in [0, 1]: how often a response of `a` beat one of `b` to that prompt, ties
half, as `rlhf.compare.statistics.prompt_wins` gives them. A prompt is one observation, however many
responses it had; all p-values are two-sided.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri, stdtr, stdtrit

from rlhf.intervals import Interval, cluster_index

Outcomes = NDArray[np.float64]  # (prompts,)

_ROUNDING = 1e-9  # sums of thirds and their like come out a little off
_MOST_ENUMERATED = 20  # prompts whose 2^20 sign flips are still listed one by one: 8 MB
_MOST_PROMPTS = 10**12


@dataclass(frozen=True)
class SignTest:
    """On how many prompts each side won more often, and how likely so uneven a split is by chance."""

    wins: int
    losses: int
    ties: int
    p_value: float


@dataclass(frozen=True)
class PermutationTest:
    """`exact` where every one of the `num_permutations` sign flips was counted, not drawn."""

    p_value: float
    num_permutations: int
    exact: bool


@dataclass(frozen=True)
class PairedT:
    """The mean difference over `n` prompts, in units of the scores, and its t statistic."""

    mean: float
    t: float
    p_value: float
    n: int


def prompt_means(values: ArrayLike, clusters: Sequence[Hashable]) -> Outcomes:
    """One value a prompt, where prompts come more than once: the mean of each cluster's values.

    Args:
        values: (rows,).
        clusters: the prompt of each row.

    Returns:
        (prompts,), in the order in which the prompts come first.
    """
    flat = np.asarray(values, dtype=float)
    if flat.shape != (len(clusters),):
        raise ValueError(f"{len(clusters)} clusters for values of shape {flat.shape}")
    index = cluster_index(clusters)
    return np.bincount(index, flat) / np.bincount(index)


def sign_test(outcomes: ArrayLike) -> SignTest:
    """The exact sign test, which for one response a prompt is McNemar's exact test.

    A prompt with more than one half is a win of `a`, with less a win of `b`, with one half a tie.
    Ties are counted, then left out: among the prompts that tell the two apart, each side would win
    half if they were equally good, so p = min(1, 2 P(X <= min(wins, losses))) with X ~ Binomial(wins + losses,
    1/2) (McNemar 1947; Dixon and Mood 1946). All ties give p = 1. By how much a prompt was won is
    not used; `permutation_test` uses it.

    Raises ValueError where outcomes are missing, not finite or out of [0, 1].
    """
    off = _off_half(outcomes)
    wins, losses = int((off > 0).sum()), int((off < 0).sum())
    return SignTest(wins, losses, len(off) - wins - losses, _binomial_p(wins, losses))


def _binomial_p(wins: int, losses: int) -> float:
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


def permutation_test(outcomes: ArrayLike, num_permutations: int = 10_000, seed: int = 0) -> PermutationTest:
    """The paired permutation test of a mean outcome of one half.

    Were the two policies the same, their names could be swapped on any prompt: each outcome's
    distance from one half could as well have the other sign. The p-value is the share of all sign
    flips whose mean is as far from one half as the one seen (Fisher 1935, section 21). Ties stay: they
    are the same either way. Up to 20 prompts that are no ties, all flips are counted; beyond, flips are drawn and
    p = (1 + as far) / (1 + num_permutations), which is never 0 (Phipson and Smyth 2010).

    Args:
        outcomes: (prompts,) in [0, 1].
        num_permutations: flips drawn where there are too many to count.
        seed: of the draws; the same seed gives the same p-value.

    Raises ValueError where outcomes are missing, not finite or out of [0, 1], and for no permutations.
    """
    if num_permutations < 1:
        raise ValueError(f"num_permutations is {num_permutations}, must be at least 1")
    off = _off_half(outcomes)
    seen = abs(off.sum())
    sizes = np.abs(off[off != 0])
    exact = len(sizes) <= _MOST_ENUMERATED
    sums = _all_flips(sizes) if exact else _drawn_flips(sizes, num_permutations, seed)
    as_far = int((np.abs(sums) >= seen - _ROUNDING).sum())
    p_value = as_far / len(sums) if exact else (1 + as_far) / (1 + len(sums))
    return PermutationTest(p_value, len(sums), exact)


def _all_flips(sizes: Outcomes) -> NDArray[np.float64]:
    """The sum under each of the 2^n choices of signs, (2^n,)."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return sums


def _drawn_flips(sizes: Outcomes, num_permutations: int, seed: int) -> NDArray[np.float64]:
    """The sum under random signs, (num_permutations,).

    Of `count` prompts with the same size, Binomial(count, 1/2) keep their sign. Outcomes have few
    sizes, so this takes thousands of draws and not a draw a prompt.
    """
    generator = np.random.default_rng(seed)
    sums = np.zeros(num_permutations)
    # Rounded, so that thirds that differ in their last bit are one size.
    for size, count in zip(*np.unique(sizes.round(12), return_counts=True), strict=True):
        sums += size * (2.0 * generator.binomial(count, 0.5, num_permutations) - count)
    return sums


def paired_t_test(a: ArrayLike, b: ArrayLike) -> PairedT:
    """Student's paired t-test of equal mean scores: t = mean / (s / sqrt(n)), with n - 1 degrees of freedom.

    Args:
        a: (prompts,), each prompt's mean score under policy `a`; finite.
        b: the same prompts under policy `b`.

    One prompt tells nothing: p = 1 and t = 0. So do differences that are all 0; all the same and not 0, p = 0.

    Raises ValueError where scores are missing, not finite or not of the same prompts.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape} are not one score a prompt from each")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a paired test needs finite scores")
    # What differs in the last bit only, as 0.1 + 0.2 from 0.3, is the same.
    rounding = 1e-12 * max(np.abs(first).max(), np.abs(second).max())
    differences = np.where(np.abs(first - second) <= rounding, 0.0, first - second)
    n, mean = len(differences), float(differences.mean())
    if n == 1 or not differences.any():
        return PairedT(mean, 0.0, 1.0, n)
    deviation = float(differences.std(ddof=1))
    if deviation <= rounding:
        return PairedT(mean, float(np.copysign(np.inf, mean)), 0.0, n)
    t = mean / (deviation / np.sqrt(n))
    return PairedT(mean, float(t), float(2 * stdtr(n - 1, -abs(t))), n)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected so that all verdicts together err at most as often as one (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1; none falls below a smaller one's, none exceeds 1.

    Args:
        p_values: (comparisons,) in [0, 1], in any order.

    Returns:
        (comparisons,), in the order given: a comparison counts where its value is at most 0.05.
    """
    p, order = _sorted(p_values)
    return _back(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), order)


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected so that of the verdicts found at 0.05 at most 5% are expected to be false.

    The i-th smallest of m is multiplied by m / i; none exceeds a larger one's (Benjamini and Hochberg 1995).
    Weaker than `holm`: for screening many policies, not for a claim about one. Valid for independent
    comparisons and those that rise together, which a win-rate matrix only approximates.

    Args:
        p_values: (comparisons,) in [0, 1], in any order.

    Returns:
        (comparisons,), in the order given.
    """
    p, order = _sorted(p_values)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _back(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _sorted(p_values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # nan is neither
        raise ValueError("p-values must be a list of numbers from 0 to 1")
    return p, np.argsort(p, kind="stable")


def _back(adjusted: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.float64]:
    """From ascending to the order given, and at most 1."""
    result = np.empty_like(adjusted)
    result[order] = np.minimum(adjusted, 1)
    return result


def prompts_to_decide(outcomes: ArrayLike, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """How many more prompts until the interval leaves one half, if the rate stays what it is.

    The outcomes at hand are kept. With n of them, mean 1/2 + d and standard deviation s, m more sum to
    (n + m) |d| + s sqrt(m) Z over one half's, Z standard normal. The interval of all N = n + m leaves one half where
    that sum exceeds q s sqrt(N + 2), so the answer is the least m with

        N |d| - q s sqrt(N + 2) >= z s sqrt(m),

    z the normal quantile of `power`; q is Student's quantile of `confidence` with N + 1 degrees of freedom
    times sqrt((N + 2) / (N + 1)). This is conditional power (Lachin 2005, "A review of methods for futility
    stopping based on conditional power") for the interval that `rlhf.intervals.mean_interval` gives between two
    bounds: as there, s and N + 2 count one more prompt at each bound.

    Returns:
        0 where it is decided, None where the rate is one half (or so near that over 10^12 prompts would be
        needed): then no number would do.

    The rate at hand is itself uncertain, so take the answer for its order of magnitude. And to add prompts because
    a study is undecided is to look a second time: `rlhf.compare.anytime` says what that does, and how to do without.

    Raises ValueError where outcomes are missing, not finite or out of [0, 1], or power is not in [0.5, 1).
    """
    if not 0.5 <= power < 1 or not 0 < confidence < 1:
        raise ValueError(f"power {power} must be from 0.5 to below 1 and confidence {confidence} between 0 and 1")
    off = _off_half(outcomes)
    n, distance = len(off), abs(float(off.mean()))
    spread = float(np.concatenate([off, [-0.5, 0.5]]).std())
    z, tail = float(ndtri(power)), (1 + confidence) / 2

    def decides(more: int) -> bool:
        total = n + more
        quantile = float(stdtrit(total + 1, tail)) * np.sqrt((total + 2) / (total + 1))
        return total * distance - quantile * spread * np.sqrt(total + 2) >= z * spread * np.sqrt(more)

    if decides(0):
        return 0
    too_few, enough = 0, 1
    while not decides(enough):
        if enough > _MOST_PROMPTS:
            return None
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:  # the left side less the right is convex in m: it crosses 0 once
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decides(middle) else (middle, enough)
    return enough


def paired_sentence(a: str, b: str, sign: SignTest, permutation: PermutationTest) -> str:
    """What the two tests say, in plain words, without a full stop."""
    ties = f"{_count(sign.ties, 'tie')}, which the sign test leaves out" if sign.ties else "no ties"
    flips = "all" if permutation.exact else f"{permutation.num_permutations:,} random"
    return (
        f"{a} wins more often on {_count(sign.wins, 'prompt')} and {b} on {sign.losses:,}, with {ties}; were they "
        f"equally good, chance alone would part them so far with {_shown(sign.p_value)} (exact sign test) and "
        f"{_shown(permutation.p_value)} (paired permutation test, {flips} swaps)"
    )


def decide_sentence(a: str, b: str, rate: Interval, more: int | None, power: float = 0.8) -> str:
    """How many more prompts would decide it, in plain words, without a full stop.

    Args:
        a: the policy whose win rate it is.
        b: the other one.
        rate: the win rate; its own interval says whether it is decided.
        more: from `prompts_to_decide`.
        power: that `more` was asked for.
    """
    if rate.is_above(0.5 + _ROUNDING) or rate.is_below(0.5 - _ROUNDING):
        return f"{_count(rate.n, 'prompt')} decide between {a} and {b}: no more are needed"
    if more is None:
        return f"{a} and {b} win equally often so far: no number of prompts can be named that would part them"
    return (
        f"if {a} goes on to win {rate.mean:.1%}, about {_count(_rounded(max(more, 1)), 'more prompt')} beside these "
        f"{rate.n:,} would decide it between {a} and {b} with a chance of {power:.0%}"
    )


def _off_half(outcomes: ArrayLike) -> Outcomes:
    """Each outcome's distance from one half, checked, and 0 where it is only rounding."""
    values = np.asarray(outcomes, dtype=float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"outcomes of shape {values.shape} are not one number a prompt")
    if not ((values >= 0) & (values <= 1)).all():  # nan is neither
        raise ValueError("outcomes must be finite and from 0 to 1")
    off = values - 0.5
    return np.where(np.abs(off) <= _ROUNDING, 0.0, off)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shown(p_value: float) -> str:
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def _rounded(number: int) -> int:
    """Two leading digits, upwards: more would pretend to know."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step
