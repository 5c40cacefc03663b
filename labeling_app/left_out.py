"""Why a label is no vote: each is a vote or has one reason, and nothing goes uncounted."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from labeling_app.check_labels import ADJUDICATION
from rlhf.records import Ranking, Task

KNOWN = ("practice", "gold")
REASONS = (*KNOWN, "repeat", "surplus", "annotator_out", "annotator_heldout", "too_few_votes")


def why_left_out(
    labels: Sequence[Ranking],
    annotators_out: Collection[str] = (),
    annotators_heldout: Collection[str] = (),
    min_votes: int = 1,
    adjudicated: Collection[str] = (),
) -> list[str | None]:
    """For each label the first of REASONS that it is no vote for, None where it is one.

    Args:
        labels: what annotators answered; no adjudications.
        min_votes: a task with fewer votes than this has `too_few_votes`, unless its id is in `adjudicated`.
    """
    reasons: list[str | None] = []
    for label in labels:
        assert label.kind != ADJUDICATION
        if label.kind not in ("task", "left_out"):
            reasons.append(label.kind)
        elif label.kind == "left_out" or label.annotator in annotators_out:
            reasons.append("annotator_out")
        else:
            reasons.append("annotator_heldout" if label.annotator in annotators_heldout else None)
    votes = Counter(label.task_id for label, reason in zip(labels, reasons, strict=True) if reason is None)
    few = {id for id, number in votes.items() if number < min_votes} - set(adjudicated)
    return [
        "too_few_votes" if reason is None and label.task_id in few else reason
        for label, reason in zip(labels, reasons, strict=True)
    ]


def count_labels(reasons: Sequence[str | None]) -> dict[str, int]:
    """How many labels are left out, for each of REASONS."""
    counts = Counter(reasons)
    return {reason: counts[reason] for reason in REASONS}


def count_tasks(
    tasks: Sequence[Task],
    labels: Sequence[Ranking],
    reasons: Sequence[str | None],
    adjudicated: Collection[str] = (),
    skipped: Collection[str] = (),
) -> dict[str, int]:
    """How many tasks are exported (have a vote, or are adjudicated), and how many are not, and why.

    `known`: practice and gold. `too_few_votes`: under `min_votes`. `labels_left_out`: all its labels
    are, for other reasons. `skipped`: nobody answered, and somebody skipped it. `unanswered`: neither.
    """
    by_task: dict[str, set[str | None]] = {task.id: set() for task in tasks}
    for label, reason in zip(labels, reasons, strict=True):
        by_task[label.task_id].add(reason)
    counts = Counter()
    for id, why in by_task.items():
        if None in why or id in adjudicated:
            counts["exported"] += 1
        elif why & set(KNOWN):
            counts["known"] += 1
        elif "too_few_votes" in why:
            counts["too_few_votes"] += 1
        elif why:
            counts["labels_left_out"] += 1
        else:
            counts["skipped" if id in skipped else "unanswered"] += 1
    names = ("exported", "known", "too_few_votes", "labels_left_out", "skipped", "unanswered")
    return {name: counts[name] for name in names}


def count_annotators(
    labels: Sequence[Ranking], reasons: Sequence[str | None], weights: dict[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Of each annotator: labels, votes among them, and the weight of a vote where votes have one."""
    numbers: dict[str, dict[str, Any]] = {}
    for label, reason in sorted(zip(labels, reasons, strict=True), key=lambda item: item[0].annotator):
        mine = numbers.setdefault(label.annotator, {"labels": 0, "votes": 0})
        mine["labels"] += 1
        mine["votes"] += reason is None
    for name, mine in numbers.items():
        if weights is not None and mine["votes"]:
            mine["weight"] = weights.get(name, 1.0)
    return numbers
