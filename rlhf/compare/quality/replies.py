"""What one policy's replies are like: repetition, diversity, length, whether they end.

A prompt's replies are averaged first and prompts are what intervals resample, as everywhere in this room.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rlhf.compare.quality.ngrams import Corpus, corpus_of_texts, corpus_of_tokens, sole_owners
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, cluster_index

REPEATED_N = 4  # seq-rep-4
BLEU_ORDER = 4
DISTINCT = (1, 2, 3)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "repetition": (0.0, 1.0),
    "self_bleu": (0.0, 1.0),
    "length": (0.0, None),
    "finished": (0.0, 1.0),
}
_SMOOTHING = 0.1  # matches that count for none: method 1 of Chen and Cherry 2014

Tokens = Sequence[Hashable]  # words, or token ids


# ---- Replies


@dataclass(frozen=True, eq=False)
class Replies:
    """One policy's replies.

    Args:
        texts: for each prompt its replies.
        ids: their token ids, in the same places; words stand in for tokens where None.
        lengths: tokens of each, where known without ids; by `ids` or words where None.
        finished: whether each ended by itself and was not cut, where known.

    Raises ValueError where these are not of the same replies.
    """

    texts: Sequence[Sequence[str]]
    ids: Sequence[Sequence[Sequence[int]]] | None = None
    lengths: Sequence[Sequence[float]] | NDArray[np.float64] | None = None
    finished: Sequence[Sequence[float]] | NDArray[np.float64] | None = None
    _kept: dict[tuple[int, bytes], tuple[float | None, NDArray[np.float64]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        sizes = [len(row) for row in self.texts]
        for name in ("ids", "lengths", "finished"):
            given = getattr(self, name)
            if given is not None and [len(row) for row in given] != sizes:
                raise ValueError(f"{name} must have one entry for each reply of each prompt")

    @cached_property
    def corpus(self) -> Corpus:
        """All of them, prompt after prompt, as numbers."""
        if self.ids is not None:
            return corpus_of_tokens(chain.from_iterable(self.ids))
        return corpus_of_texts(chain.from_iterable(self.texts))

    @cached_property
    def prompts(self) -> NDArray[np.int64]:
        """The prompt of each reply, (replies,)."""
        return np.repeat(np.arange(len(self.texts)), [len(row) for row in self.texts])

    @cached_property
    def measures(self) -> dict[str, NDArray[np.float64]]:
        """Each measure's mean over a prompt's replies, (prompts,); NaN where a prompt has none."""
        lengths = self._rows(self.corpus.sizes) if self.lengths is None else self.lengths
        rows = {
            "repetition": self._rows(_repetitions(self.corpus)),
            "self_bleu": [self_bleu(row) for row in self._numbers()],
            "length": lengths,
        } | ({} if self.finished is None else {"finished": self.finished})
        return {name: np.array([_mean(row) for row in values]) for name, values in rows.items()}

    def _rows(self, values: NDArray[Any]) -> list[list[float]]:
        """One value a reply, by prompt."""
        flat = iter(values.tolist())
        return [list(islice(flat, len(row))) for row in self.texts]

    def _numbers(self) -> list[list[Tokens]]:
        """The tokens' numbers, by prompt; none where all prompts have one reply, which has no other beside it."""
        if all(len(row) < 2 for row in self.texts):
            return [[] for _ in self.texts]
        flat = iter(np.split(self.corpus.tokens, np.cumsum(self.corpus.sizes)[:-1]))
        return [[one.tolist() for one in islice(flat, len(row))] for row in self.texts]

    def without_each(self, n: int, clusters: Sequence[Hashable]) -> tuple[float | None, NDArray[np.float64]]:
        """distinct-n, None without tokens, and what it is without each cluster's replies, (clusters,); kept.

        `clusters` is that of each prompt. Raises ValueError where they are not as many.
        """
        if len(clusters) != len(self.texts):
            raise ValueError(f"{len(clusters)} clusters for {len(self.texts)} prompts")
        index = cluster_index(clusters)
        key = (n, index.tobytes())
        if key not in self._kept:
            self._kept[key] = _distinct_without(self.corpus, n, index[self.prompts], int(index.max(initial=-1)) + 1)
        return self._kept[key]


def quality(replies: Replies, bootstrap: Bootstrap) -> dict[str, Interval | None]:
    """All figures of a policy's replies; None where no prompt has the figure (self-BLEU of single replies).

    `repetition`, `self_bleu`, `length` (in tokens, or words), `finished` where known: means over prompts.
    `distinct_1`, `distinct_2`, `distinct_3`: of all replies together, see `distinct`.
    """
    found: dict[str, Interval | None] = dict.fromkeys(replies.measures)
    for bounds in dict.fromkeys(_BOUNDS.values()):
        some = {name: values for name, values in replies.measures.items() if _BOUNDS[name] == bounds}
        found |= intervals_of(some, bounds, bootstrap)
    return found | {f"distinct_{n}": distinct(replies, n, bootstrap) for n in DISTINCT}


def quality_differences(a: Replies, b: Replies, bootstrap: Bootstrap) -> dict[str, Interval | None]:
    """`a` less `b` in every figure of `quality` that both have, on the same prompts.

    Raises ValueError where the two are not of as many prompts.
    """
    if len(a.texts) != len(b.texts):
        raise ValueError(f"policies must have answered the same prompts, these answered {len(a.texts)}, {len(b.texts)}")
    less = {name: a.measures[name] - b.measures[name] for name in a.measures if name in b.measures}
    found = intervals_of(less, (None, None), bootstrap)
    return found | {f"distinct_{n}": distinct_difference(a, b, n, bootstrap) for n in DISTINCT}


def quantiles(lengths: Sequence[Sequence[float]] | NDArray[np.float64]) -> dict[float, float]:
    """How lengths are spread: their 5%, 25%, 50%, 75% and 95% quantiles over all replies; empty without replies."""
    flat = [float(length) for row in lengths for length in row]
    return {at: float(np.quantile(flat, at)) for at in QUANTILES} if flat else {}


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    if len(values) == 1:
        return float(values[0])
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def intervals_of(
    measures: Mapping[str, NDArray[np.float64]], bounds: tuple[float | None, float | None], bootstrap: Bootstrap
) -> dict[str, Interval | None]:
    """The interval of each over the prompts that have it; those of the same prompts are resampled together."""
    found: dict[str, Interval | None] = dict.fromkeys(measures)
    alike: dict[bytes, list[str]] = {}
    for name, values in measures.items():
        alike.setdefault(np.isnan(values).tobytes(), []).append(name)
    for names in alike.values():
        there = np.flatnonzero(~np.isnan(measures[names[0]]))
        if there.size:
            own = bootstrap
            if bootstrap.clusters is not None:
                own = dataclasses.replace(bootstrap, clusters=[bootstrap.clusters[at] for at in there.tolist()])
            rows = np.stack([measures[name][there] for name in names])
            found |= zip(names, own.intervals(rows, bounds), strict=True)
    return found


# ---- Repetition and diversity


def ngrams(tokens: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    """All runs of n tokens, in order."""
    return zip(*(tokens[at:] for at in range(n)), strict=False)


def repetition(tokens: Tokens, n: int = REPEATED_N) -> float:
    """The share of a reply's n-grams that it has had before: 1 - distinct / all; NaN where it has no n-gram.

    seq-rep-n of Welleck et al. 2020, "Neural text generation with unlikelihood training".
    """
    num_all = len(tokens) - n + 1
    return 1 - len(set(ngrams(tokens, n))) / num_all if num_all > 0 else math.nan


def _repetitions(corpus: Corpus, n: int = REPEATED_N) -> NDArray[np.float64]:
    """`repetition` of each reply, (replies,)."""
    replies = len(corpus.sizes)
    num_all = corpus.sizes - n + 1
    num_distinct = np.bincount(corpus.owned(n, np.arange(replies))[1], minlength=replies)
    return 1 - np.divide(num_distinct, num_all, out=np.full(replies, math.nan), where=num_all > 0)


def distinct(replies: Replies, n: int, bootstrap: Bootstrap) -> Interval | None:
    """Distinct n-grams in all replies, over the tokens in them; None where there are no tokens.

    distinct-n of Li et al. 2016, "A diversity-promoting objective function for neural conversation
    models". It falls as text grows longer: compare policies by as many replies, and read it
    beside their lengths. No mean over prompts, and a bootstrap would draw the same text twice and call
    it less diverse, so the interval is the jackknife's over prompts, which errs to the wide side (Efron
    and Stein 1981, "The jackknife estimate of variance").
    """
    whole, without = _without(replies, n, bootstrap)
    return None if whole is None else _jackknife(whole, without, bootstrap, (0.0, 1.0))


def distinct_difference(a: Replies, b: Replies, n: int, bootstrap: Bootstrap) -> Interval | None:
    """`distinct` of `a` less that of `b`; None where either has none. A prompt is left out of both at once."""
    first, first_without = _without(a, n, bootstrap)
    second, second_without = _without(b, n, bootstrap)
    if first is None or second is None:
        return None
    return _jackknife(first - second, first_without - second_without, bootstrap, (-1.0, 1.0))


def _without(replies: Replies, n: int, bootstrap: Bootstrap) -> tuple[float | None, NDArray[np.float64]]:
    return replies.without_each(n, range(len(replies.texts)) if bootstrap.clusters is None else bootstrap.clusters)


def _distinct_without(
    corpus: Corpus, n: int, groups: NDArray[np.intp], num_groups: int
) -> tuple[float | None, NDArray[np.float64]]:
    """distinct-n, and what it is without each group of replies, (groups,); `groups` is that of each reply."""
    sizes = np.bincount(groups, corpus.sizes, num_groups)
    total = int(corpus.sizes.sum())
    if not total:
        return None, np.array([])
    num_distinct, alone = sole_owners(*corpus.owned(n, groups), num_groups)
    left = total - sizes
    whole = num_distinct / total
    # Where one cluster wrote everything, there is nothing without it.
    return whole, np.divide(num_distinct - alone, left, out=np.full(num_groups, whole), where=left > 0)


def _jackknife(
    whole: float, without: NDArray[np.float64], bootstrap: Bootstrap, bounds: tuple[float, float]
) -> Interval:
    n = len(without)
    if n == 1:
        return Interval(whole, *bounds, 1)
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    width = -float(stdtrit(n - 1, (1 - bootstrap.confidence) / 2)) * error
    return Interval(whole, max(bounds[0], whole - width), min(bounds[1], whole + width), n)


def bleu(hypothesis: Tokens, references: Sequence[Tokens], order: int = BLEU_ORDER) -> float:
    """BLEU of one text against others, from 0 to 1: 1 where it is one of them.

    Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation", of n-grams up
    to `order`, or to the hypothesis's length where that is shorter. An order without a match counts as
    0.1 matches (Chen and Cherry 2014, method 1), and no shared word at all is 0. An empty hypothesis has
    1 where a reference is empty too, else 0.

    Raises ValueError without references.
    """
    if not references:
        raise ValueError("BLEU needs a reference")
    matches = []
    for n in range(1, min(order, len(hypothesis)) + 1):
        most: Counter[Hashable] = Counter()
        for reference in references:
            most |= Counter(ngrams(reference, n))
        own = Counter(ngrams(hypothesis, n))
        matches.append(sum(min(count, most[gram]) for gram, count in own.items()))
    return _bleu(matches, len(hypothesis), [len(reference) for reference in references])


def self_bleu(replies: Sequence[Tokens], order: int = BLEU_ORDER) -> list[float]:
    """Each reply's BLEU against the others to the same prompt: high where a policy says one thing only.

    Zhu et al. 2018, "Texygen: a benchmarking platform for text generation models", there over all texts
    of a model. Empty for fewer than two replies. The same numbers as `bleu`, but in time that grows
    with the replies, not with their pairs.
    """
    if len(replies) < 2:
        return []
    matches: list[list[int]] = [[] for _ in replies]
    for n in range(1, order + 1):
        counts = [Counter(ngrams(reply, n)) for reply in replies]
        most: dict[Hashable, tuple[int, int]] = {}  # of each n-gram: the largest count of a reply, and the second
        for own in counts:
            for gram, count in own.items():
                first, second = most.get(gram, (0, 0))
                most[gram] = (count, first) if count > first else (first, max(second, count))
        for at, own in enumerate(counts):
            if len(replies[at]) >= n:
                # The others' largest count: the second where the largest is this reply's own.
                matches[at].append(sum(min(count, most[gram][count == most[gram][0]]) for gram, count in own.items()))
    lengths = [len(reply) for reply in replies]
    return [_bleu(matches[at], lengths[at], lengths[:at] + lengths[at + 1 :]) for at in range(len(replies))]


def _bleu(matches: list[int], length: int, references: list[int]) -> float:
    if length == 0:
        return float(0 in references)
    if matches[0] == 0:
        return 0.0
    logs = [math.log((match or _SMOOTHING) / (length - at)) for at, match in enumerate(matches)]
    closest = min(references, key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1 - closest / length) + math.fsum(logs) / len(logs))
