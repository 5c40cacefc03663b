"""Rankings as verdicts on pairs, in arrays: what agreement, reliability and disputes are computed from."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlhf.records import Ranking, Task

# Kinds of answers (Ranking.kind) by what they can tell.
LABELS = frozenset({"task", "surplus"})  # independent first looks at what is labelled
FIRST_LOOKS = LABELS | {"gold"}  # gold tasks are clearer than most, so they would flatter agreement
SERIOUS = FIRST_LOOKS | {"repeat"}  # all but practice

FIRST, TIE, SECOND = 0, 1, 2  # verdicts: the pair's first response is better, neither, the second is
_OPPOSITE = np.array([SECOND, TIE, FIRST])

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """Verdicts on pairs of a task's responses, sorted by pair and then by annotator.

    `task_ids` and `annotators` are sorted. `pairs` holds response ids in their order in the task;
    `pair_task` is the index of each pair's task, (pairs,). `pair`, `annotator` and `verdict` are
    (votes,). Pairs of equal texts are left out: a reader cannot tell them apart.
    """

    task_ids: list[str]
    annotators: list[str]
    pairs: list[tuple[str, str]]
    pair_task: Ints
    pair: Ints
    annotator: Ints
    verdict: Ints

    @cached_property
    def task(self) -> Ints:
        """The index of each vote's task, (votes,)."""
        return self.pair_task[self.pair]

    @cached_property
    def couples(self) -> tuple[Ints, Ints]:
        """The indices of every two votes on the same pair, the one of the annotator first by name first."""
        firsts, seconds = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for step in range(1, len(self.pair)):
            at = np.flatnonzero(self.pair[step:] == self.pair[:-step])
            if not at.size:
                break
            firsts.append(at)
            seconds.append(at + step)
        return np.concatenate(firsts), np.concatenate(seconds)


def collect(tasks: Sequence[Task], rankings: Sequence[Ranking], kinds: Collection[str] = LABELS) -> Votes:
    """The verdicts of the rankings of these kinds.

    Rankings of tasks that are not given do not count. Each ranks all responses of its task, and nobody
    answers a task twice in these kinds (the store and `export` hold both).
    """
    kept = sorted(tasks, key=lambda task: task.id)
    pairs: list[tuple[str, str]] = []
    pair_task: list[int] = []
    of_task: dict[str, tuple[int, list[tuple[str, str]]]] = {}
    for number, task in enumerate(kept):
        texts = {response.id: response.text.strip() for response in task.responses}
        differing = [(a, b) for a, b in itertools.combinations(texts, 2) if texts[a] != texts[b]]
        of_task[task.id] = (len(pairs), differing)
        pairs += differing
        pair_task += [number] * len(differing)
    counted = [ranking for ranking in rankings if ranking.kind in kinds and ranking.task_id in of_task]
    annotators = sorted({ranking.annotator for ranking in counted})
    numbers = {name: number for number, name in enumerate(annotators)}
    rows = [
        (first + at, numbers[ranking.annotator], ranking.ranks[b] - ranking.ranks[a])
        for ranking in counted
        for first, differing in (of_task[ranking.task_id],)
        for at, (a, b) in enumerate(differing)
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    verdict = TIE - np.sign(table[:, 2])
    task_ids = [task.id for task in kept]
    return Votes(task_ids, annotators, pairs, np.array(pair_task, dtype=np.int64), table[:, 0], table[:, 1], verdict)


def opposite(verdict: Ints) -> Ints:
    """The same verdicts on the pair the other way round."""
    return _OPPOSITE[verdict]
