"""How far people agree with each other: the ceiling for whatever is measured against them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf.records import Preference, Tie

_SIDES = {"for": 1, "tie": 0, "against": -1}


@dataclass(frozen=True)
class HumanCeiling:
    """The expected agreement of one annotator with the majority of the others.

    `share` is the mean of `values`, one value in [0, 1] a pair that two or more people ranked, in the
    order given; `groups` are their group ids (prompts), for an interval that clusters by prompt.
    """

    share: float
    num_votes: int
    num_pairs: int
    values: list[float]
    groups: list[str]


def human_ceiling(pairs: Sequence[Preference | Tie]) -> HumanCeiling | None:
    """Leave-one-out agreement: each vote against the majority of the other votes on its pair.

    A vote agrees (1) or not (0) with the side that more of the others took; it counts half where the
    vote is a tie or the others are split. Each pair counts once, as in a model's accuracy, whoever
    many voted on it. None where nobody ranked the same pair twice.

    Give the ties as well as the preferences: people disagree most on pairs that ended in a tie, so
    preferences alone tell too high a ceiling (two voters who disagree never make a preference).
    """
    values: list[float] = []
    groups: list[str] = []
    num_votes = 0
    for pair in pairs:
        total = sum(pair.votes.values())
        if total < 2:
            continue
        values.append(_leave_one_out(pair.votes))
        groups.append(pair.group_id)
        num_votes += total
    if not values:
        return None
    return HumanCeiling(fmean(values), num_votes, len(values), values, groups)


def _leave_one_out(votes: dict[str, int]) -> float:
    # For every vote, with s its side and m the side of the majority of the others: (1 + s * m) / 2.
    balance = sum(_SIDES[side] * count for side, count in votes.items())
    agreement = 0.0
    for side, count in votes.items():
        others = balance - _SIDES[side]
        majority = (others > 0) - (others < 0)
        agreement += count * (1 + _SIDES[side] * majority) / 2
    return agreement / sum(votes.values())
