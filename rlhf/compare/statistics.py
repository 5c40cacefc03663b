"""Which of two policies is better, and how sure that is: wins, ties and their intervals.

Scores are arrays `(prompts, responses)` of one judge. A prompt is the unit of evidence: its
responses are averaged, and intervals resample prompts.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlhf.intervals import Interval, mean_intervals

UNDECIDED = "undecided"
_ROUNDING = 1e-9  # thirds and their like do not add up exactly to one half

Scores = NDArray[np.float64]  # (prompts, responses)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; `clusters` is the prompt of each row of the scores."""

    clusters: Sequence[Hashable] | None = None
    confidence: float = 0.95
    num_bootstrap: int = 2000
    seed: int = 0

    def interval(self, values: NDArray[np.float64], bounds: tuple[float | None, float | None]) -> Interval:
        """The interval of the mean of `values`, (prompts,) or (prompts, responses)."""
        return self.intervals(np.asarray(values, dtype=float)[None], bounds)[0]

    def intervals(self, values: NDArray[np.float64], bounds: tuple[float | None, float | None]) -> list[Interval]:
        """Those of many means at once, from `values` (means, prompts) or (means, prompts, responses)."""
        values = np.asarray(values, dtype=float)
        clusters = self.clusters
        if values.ndim == 3 and values.shape[2] > 1:
            each = range(values.shape[1]) if clusters is None else clusters
            clusters = [cluster for cluster in each for _ in range(values.shape[2])]
        flat = values.reshape(len(values), -1) if len(values) else values
        return mean_intervals(flat, clusters, bounds, self.confidence, self.num_bootstrap, self.seed)


@dataclass(frozen=True)
class Pair:
    """Two policies before one judge: the share of prompts on which `a` beats `b`, ties half."""

    a: str
    b: str
    judge: str
    win_rate: Interval
    ties: float

    @property
    def verdict(self) -> str:
        """The better one's name, or "undecided" where the interval holds one half."""
        if self.win_rate.is_above(0.5 + _ROUNDING):
            return self.a
        return self.b if self.win_rate.is_below(0.5 - _ROUNDING) else UNDECIDED


def prompt_wins(a: Scores, b: Scores) -> NDArray[np.float64]:
    """How often a response of `a` beats one of `b` to the same prompt, (prompts,), each in [0, 1].

    The mean over all cross pairs of a prompt's responses; an equal score counts one half.
    """
    above = a[:, :, None] > b[:, None, :]  # (prompts, responses of a, responses of b)
    equal = a[:, :, None] == b[:, None, :]
    return (above + 0.5 * equal).mean((1, 2))


def prompt_ties(a: Scores, b: Scores) -> NDArray[np.float64]:
    """The share of a prompt's cross pairs whose scores are equal, (prompts,), each in [0, 1]."""
    return (a[:, :, None] == b[:, None, :]).mean((1, 2))


def win_matrix(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """`prompt_wins` of every policy against every other.

    Args:
        scores: (policies, prompts, responses).

    Returns:
        (policies, policies, prompts): entry [a, b] is how often `a` beats `b`; [a, b] + [b, a] is 1.
    """
    return np.stack([np.stack([prompt_wins(a, b) for b in scores]) for a in scores])


def seen_from_the_other(rate: Interval) -> Interval:
    """The win rate of `b` over `a`, from that of `a` over `b`: 1 less it."""
    low, high = (None if end is None else 1 - end for end in (rate.high, rate.low))
    return Interval(1 - rate.mean, low, high, rate.n)


def compare_pair(a: str, b: str, judge: str, a_scores: Scores, b_scores: Scores, bootstrap: Bootstrap) -> Pair:
    """Two policies before one judge."""
    return compare_all([a, b], {judge: np.stack([a_scores, b_scores])}, bootstrap)[0]


def compare_all(names: Sequence[str], scores: Mapping[str, NDArray[np.float64]], bootstrap: Bootstrap) -> list[Pair]:
    """Every two policies before every judge: the first pair before each judge, then the next pair.

    All are resampled together, which is many times as fast as one by one.

    Args:
        names: the policies.
        scores: by judge, (policies, prompts, responses).
        bootstrap: how intervals are made.
    """
    asked = [(a, b, judge) for a, b in combinations(range(len(names)), 2) for judge in scores]
    wins = [prompt_wins(scores[judge][a], scores[judge][b]) for a, b, judge in asked]
    rates = bootstrap.intervals(np.array(wins), (0.0, 1.0))
    return [
        Pair(names[a], names[b], judge, rate, float(prompt_ties(scores[judge][a], scores[judge][b]).mean()))
        for (a, b, judge), rate in zip(asked, rates, strict=True)
    ]


def pair_of_wins(a: str, b: str, judge: str, wins: NDArray[np.float64], bootstrap: Bootstrap) -> Pair:
    """Two policies before a judge that compares responses; `wins` is (prompts,), NaN where it did not look."""
    seen: list[int] = np.flatnonzero(~np.isnan(wins)).tolist()
    clusters = None if bootstrap.clusters is None else [bootstrap.clusters[prompt] for prompt in seen]
    rate = replace(bootstrap, clusters=clusters).interval(wins[seen], (0.0, 1.0))
    return Pair(a, b, judge, rate, float((wins[seen] == 0.5).mean()))


def winners(scores: NDArray[np.float64]) -> list[list[int]]:
    """For each prompt the policies that win most against the others, more than one where they tie.

    Args:
        scores: (policies, prompts, responses).
    """
    wins = win_matrix(scores).sum(1)  # (policies, prompts); a policy's tie with itself adds one half to all
    best = np.isclose(wins, wins.max(0))
    return [np.flatnonzero(column).tolist() for column in best.T]


def disagreements(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each prompt, whether two judges see some pair of policies the other way round.

    Args:
        first: one judge's scores, (policies, prompts, responses).
        second: the other's.
    """
    opposed = (win_matrix(first) - 0.5) * (win_matrix(second) - 0.5) < 0
    return np.any(opposed, axis=(0, 1))
