"""Human verdicts on the pairs of K responses: from ranks, from scores, or pair by pair.

The pairs are in the order of `itertools.combinations`: (1,2) (1,3) ... (1,K) (2,3) ... (K-1,K). A
verdict is 0 where the two are equal, 1 where the first is better, 2 where the second is.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

Verdicts = tuple[int, ...]

_WORDS = {
    0: {"0", "tie", "equal", "same", "both", "neither", "bothbad", "tie (bothbad)", "tie(bothbad)"},
    1: {"1", "a", "first", "left", "model_a", "answer_a", "response_a"},
    2: {"2", "b", "second", "right", "model_b", "answer_b", "response_b"},
}


def parse_verdict(value: Any) -> int | None:
    """0, 1 or 2 from a number or a usual word such as `tie` or `model_a`; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value) if value in (0, 1, 2) else None
    word = str(value).strip().lower()
    return next((verdict for verdict, words in _WORDS.items() if word in words), None)


def from_ranks(ranks: Sequence[float]) -> Verdicts:
    """The verdicts that ranks imply; the lower rank is the better one."""
    return tuple(0 if a == b else 1 if a < b else 2 for a, b in combinations(ranks, 2))


def from_scores(scores: Sequence[float]) -> Verdicts:
    """The verdicts that scores imply; the higher score is the better one."""
    return from_ranks([-score for score in scores])


def weak_order(num_responses: int, verdicts: Verdicts) -> tuple[int, ...] | None:
    """Ranks (1 is best, equal ranks are ties) that agree with every verdict, or None.

    A response's rank is one more than the number of responses that beat it (Copeland's losses).
    Where any ranking agrees with all verdicts, this one does, for then the responses that beat one
    are just those ranked above it. Where people said A = B, B = C and A > C, none does: to rank
    them would change a verdict.
    """
    losses = [0] * num_responses
    for (a, b), verdict in zip(combinations(range(num_responses), 2), verdicts, strict=True):
        if verdict:
            losses[b if verdict == 1 else a] += 1
    ranks = tuple(1 + count for count in losses)
    return ranks if from_ranks(ranks) == verdicts else None
