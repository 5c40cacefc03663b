"""Texts that are nearly the same: most of their runs of three words are shared."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil

WORDS = 3

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str) -> Shingles:
    """Every run of three words of a text, case and punctuation aside; of a shorter text the whole of it."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(tuple(words[at : at + WORDS]) for at in range(max(len(words) - WORDS + 1, min(len(words), 1))))


def similarity(a: Shingles, b: Shingles) -> float:
    """Jaccard: the share of all their runs of words that both have; 0 where neither has any."""
    return len(a & b) / len(a | b) if a or b else 0.0


def near_matches(texts: Sequence[str], others: Iterable[str], threshold: float) -> dict[int, tuple[int, float]]:
    """Which texts nearly are one of the others: by the text's place, the nearest other's place and their similarity.

    Args:
        threshold: the least similarity, over 0 and at most 1.

    Exact: of two sets as similar as that, the rarest of one's members are in the other, so only those are looked up
    (prefix filtering; Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs Similarity Search").
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, must be over 0 and at most 1")
    mine = [shingles(text) for text in texts]
    counts = Counter(one for each in mine for one in each)
    index: dict[tuple[str, ...], list[int]] = {}
    for at, each in enumerate(mine):
        rarest = sorted(each, key=lambda one: (counts[one], one))
        for one in rarest[: len(each) - ceil(threshold * len(each)) + 1]:
            index.setdefault(one, []).append(at)
    found: dict[int, tuple[int, float]] = {}
    for place, text in enumerate(others):
        theirs = shingles(text)
        for at in {at for one in theirs for at in index.get(one, ())}:
            near = similarity(mine[at], theirs)
            if near >= threshold and near > found.get(at, (0, 0.0))[1]:
                found[at] = (place, near)
    return found
