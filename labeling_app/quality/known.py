"""Where the right answer is known: gold tasks, practice, and one's own answer to the same task."""

from collections.abc import Mapping, Sequence

from labeling_app.answer import disagree
from labeling_app.quality.figure import Figure, wilson
from labeling_app.quality.votes import FIRST_LOOKS
from rlhf.records import Ranking


def known_accuracy(rankings: Sequence[Ranking], golds: Mapping[str, Mapping[str, int]], kind: str = "gold") -> Figure:
    """The share of the answers to known tasks of this kind (gold or practice) that are right.

    Right is what the annotator is told in practice (`answer.disagree`): of two responses the same
    verdict, of more no two the other way round. `golds` maps task id to the ranks by response id.
    """
    right = [
        not disagree(golds[ranking.task_id], ranking.ranks)
        for ranking in rankings
        if ranking.kind == kind and ranking.task_id in golds
    ]
    return wilson(sum(right), len(right), f"no answers to {kind} tasks yet")


def self_consistency(rankings: Sequence[Ranking]) -> Figure:
    """The share of repeated tasks on which the annotator's second answer does not contradict their first."""
    first = {(row.task_id, row.annotator): row.ranks for row in rankings if row.kind in FIRST_LOOKS}
    same = [
        not disagree(first[row.task_id, row.annotator], row.ranks)
        for row in rankings
        if row.kind == "repeat" and (row.task_id, row.annotator) in first
    ]
    return wilson(sum(same), len(same), "no task was asked a second time yet")
