"""Replies as numbers, so that n-grams are counted by sorting: 100,000 replies take seconds, not a minute."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.words import words

_MOST = 2**62  # of a key that is held in 64 bits

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Replies laid end to end, each token a number.

    Args:
        tokens: the number of each token's kind, (tokens,), from 0.
        sizes: tokens of each reply, (replies,).
        num_kinds: above all numbers in `tokens`.
    """

    tokens: Numbers
    sizes: Numbers
    num_kinds: int

    @cached_property
    def owners(self) -> Numbers:
        """The reply of each token, (tokens,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def _left(self) -> Numbers:
        """How many tokens its reply has from each token on, that one with it, (tokens,)."""
        return np.cumsum(self.sizes)[self.owners] - np.arange(len(self.tokens))

    def owned(self, n: int, groups: Numbers) -> tuple[Numbers, Numbers]:
        """Which groups of replies have which n-grams: each n-gram of each group once, by n-gram, then by group.

        Args:
            n: tokens of an n-gram, at least 1; none lies across two replies.
            groups: the group of each reply, (replies,), from 0.

        Returns:
            A number for the n-gram, alike for the same, and the group, both (pairs,).
        """
        num_groups = int(groups.max(initial=-1)) + 1
        keys, span = self.tokens, self.num_kinds
        for more in range(1, n):
            if span * self.num_kinds > _MOST:
                keys, span = _packed(keys)
            keys, span = keys[:-1] * self.num_kinds + self.tokens[more:], span * self.num_kinds
        if span * num_groups > _MOST:
            keys, span = _packed(keys)
        whole = np.flatnonzero(self._left[: len(keys)] >= n)
        pairs = np.sort(keys[whole] * num_groups + groups[self.owners[whole]])
        pairs = pairs[_is_first(pairs)]
        grams = pairs // max(1, num_groups)
        return grams, pairs - grams * num_groups


def corpus_of_texts(texts: Iterable[str]) -> Corpus:
    """The words of each text, as `words` finds them."""
    known = _Chunks()
    return _corpus([list(chain.from_iterable(map(known.__getitem__, text.split()))) for text in texts], known.kinds)


def corpus_of_tokens(replies: Iterable[Sequence[Hashable]]) -> Corpus:
    """Replies that are tokens already."""
    kinds: dict[Hashable, int] = {}
    return _corpus([[kinds.setdefault(token, len(kinds)) for token in reply] for reply in replies], kinds)


def sole_owners(grams: Numbers, groups: Numbers, num_groups: int) -> tuple[int, Numbers]:
    """Of what `Corpus.owned` found: how many n-grams there are, and how many only each group has, (groups,)."""
    first = _is_first(grams)
    sole = first & np.append(first[1:], True)
    return int(first.sum()), np.bincount(groups[sole], minlength=num_groups)


class _Chunks(dict[str, list[int]]):
    """What stands between two spaces, as the numbers of its words: no word has a space in it."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[Hashable, int] = {}

    def __missing__(self, chunk: str) -> list[int]:
        numbers = self[chunk] = [self.kinds.setdefault(word, len(self.kinds)) for word in words(chunk)]
        return numbers


def _corpus(replies: list[list[int]], kinds: dict[Hashable, int]) -> Corpus:
    sizes = np.array([len(reply) for reply in replies], dtype=np.int64)
    return Corpus(np.fromiter(chain.from_iterable(replies), np.int64, int(sizes.sum())), sizes, len(kinds))


def _packed(keys: Numbers) -> tuple[Numbers, int]:
    """The same keys from 0 on without gaps, and how many there are."""
    kept, packed = np.unique(keys, return_inverse=True)
    return packed.astype(np.int64, copy=False), len(kept)


def _is_first(ordered: Numbers) -> NDArray[np.bool_]:
    """Whether each of a sorted array is the first of its kind."""
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
