"""The arithmetic of labels: every pair of responses that people ranked, settled by majority or by the lead."""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from statistics import fmean

from labeling_app.check_labels import ADJUDICATION, check_annotators, check_labels
from labeling_app.left_out import why_left_out
from rlhf.records import Messages, Preference, Ranking, Task, Tie, make_id


@dataclass
class _Pair:
    """One pair of texts of one prompt while its votes come in; over 0 is for the first text."""

    prompt: Messages
    group_id: str
    texts: tuple[str, str]
    ids: set[frozenset[str]] = field(default_factory=set)
    differences: dict[str, list[float]] = field(default_factory=dict)  # annotator: one number each time
    adjudicated: list[float] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)  # why votes on it are left out


def aggregate(
    tasks: Sequence[Task],
    rankings: Sequence[Ranking],
    annotators_out: Collection[str] = (),
    where: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> tuple[list[Preference], list[Tie], dict[str, int]]:
    """Every pair of responses with the majority of its voters: `(preferences, ties, counts)`.

    A pair is two different texts for one prompt; the same two texts in several tasks are one pair.
    A ranking's difference on it is that of the two ranks, or, where the task is a pair answered with
    a strength, that strength (1 slightly, 2 better, 3 much better) with the sign of the ranks. An
    annotator has one vote: the sign of their mean difference. The side with more votes is chosen,
    equal sides make a Tie. `margin` is the voters' mean difference in favour of the chosen, 0 where a
    minority felt more strongly than the majority. `weight` is the chosen's share of the votes, ties
    half. With `weights` margin, weight and the votes that decide are weighted (`votes` never is), and
    a lead of less than half an average vote is a Tie: see `labeling_app.quality.reliability`.

    An adjudication (a ranking of that kind) settles the pairs of its task: chosen and margin are its
    own, the weight is 1, and `votes` stays what the annotators said, also where that is none.

    Rankings of any other kind than task (practice, gold, repeat, surplus, left_out) are no votes. The
    counts add up, and `tests/test_export.py` says so:

        pairs_in = preferences + ties + pairs_identical + pairs_repeated + pairs_unranked
                   + pairs_annotator_out + pairs_left_out
        votes_in = votes + votes_identical + votes_repeated + votes_annotator_out + votes_left_out

    Args:
        tasks: what was shown.
        rankings: what people answered, and adjudications.
        annotators_out: annotators whose rankings do not count.
        where: how errors name each ranking ("rankings.jsonl, line 3"); "ranking 3" if not given.
        weights: what a vote of each annotator weighs, over or equal to 0; 1 for those not in it.

    Raises:
        UserError: an unknown annotator to leave out, and what `check_labels` names.
    """
    check_labels(tasks, rankings, where)
    check_annotators(rankings, {"annotators_out": annotators_out})
    labels, adjudications = part(rankings)
    adjudicated = {ranking.task_id for ranking in adjudications}
    reasons = why_left_out(labels, annotators_out, adjudicated=adjudicated)
    return settle(tasks, labels, reasons, adjudications, weights)


def part(rankings: Sequence[Ranking]) -> tuple[list[Ranking], list[Ranking]]:
    """What annotators answered, and what the lead adjudicated."""
    labels = [ranking for ranking in rankings if ranking.kind != ADJUDICATION]
    return labels, [ranking for ranking in rankings if ranking.kind == ADJUDICATION]


def settle(
    tasks: Sequence[Task],
    labels: Sequence[Ranking],
    reasons: Sequence[str | None],
    adjudications: Sequence[Ranking] = (),
    weights: Mapping[str, float] | None = None,
) -> tuple[list[Preference], list[Tie], dict[str, int]]:
    """`aggregate` of labels that are checked; `reasons` says of each why it is no vote, None where it is one."""
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    pairs = _collect(tasks, labels, reasons, adjudications, counts)
    preferences: list[Preference] = []
    ties: list[Tie] = []
    for pair in pairs:
        if not pair.differences and not pair.adjudicated:
            counts[_why_unsettled(pair)] += len(pair.ids)
            continue
        settled = _adjudicate(pair) if pair.adjudicated else _vote(pair, weights)
        preferences.append(settled) if isinstance(settled, Preference) else ties.append(settled)
        counts["pairs_adjudicated"] += bool(pair.adjudicated)
        counts["votes"] += len(pair.differences)
        counts["votes_repeated"] += sum(len(times) - 1 for times in pair.differences.values())
        counts["pairs_repeated"] += len(pair.ids) - 1
    votes = [label for label, reason in zip(labels, reasons, strict=True) if reason is None]
    counts["rankings_in"] = len(labels)
    counts["annotators"] = len({label.annotator for label in votes})
    counts["both_bad"] = sum(label.both_bad for label in votes)
    counts["preferences"], counts["ties"] = len(preferences), len(ties)
    return preferences, ties, dict(counts)


_COUNTS = (
    *("rankings_in", "annotators", "both_bad", "pairs_in", "preferences", "ties", "pairs_adjudicated"),
    *("pairs_identical", "pairs_repeated", "pairs_unranked", "pairs_annotator_out", "pairs_left_out"),
    *("votes_in", "votes", "votes_identical", "votes_repeated", "votes_annotator_out", "votes_left_out"),
)


def _collect(
    tasks: Sequence[Task],
    labels: Sequence[Ranking],
    reasons: Sequence[str | None],
    adjudications: Sequence[Ranking],
    counts: Counter[str],
) -> list[_Pair]:
    by_task: dict[str, list[tuple[Ranking, str | None]]] = {task.id: [] for task in tasks}
    for label, reason in zip([*labels, *adjudications], [*reasons, *[ADJUDICATION] * len(adjudications)], strict=True):
        by_task[label.task_id].append((label, reason))

    pairs: dict[tuple[str, frozenset[str]], _Pair] = {}
    identical: set[tuple[str, frozenset[str]]] = set()
    for task in tasks:
        num_labels = sum(reason != ADJUDICATION for _, reason in by_task[task.id])
        for first, second in itertools.combinations(task.responses, 2):
            counts["votes_in"] += num_labels
            ids = frozenset((first.id, second.id))
            texts = first.text.strip(), second.text.strip()
            if texts[0] == texts[1]:  # a reader cannot tell them apart, so a vote on them says nothing
                identical.add((task.prompt.id, ids))
                counts["votes_identical"] += num_labels
                continue
            key = (task.prompt.id, frozenset(texts))
            pair = pairs.setdefault(key, _Pair(task.prompt.messages, task.prompt.id, (first.text, second.text)))
            pair.ids.add(ids)
            if texts[0] != pair.texts[0].strip():
                first, second = second, first
            for label, reason in by_task[task.id]:
                _take(pair, label.annotator, difference(label, first.id, second.id), reason, counts)
    counts["pairs_identical"] = len(identical)
    counts["pairs_in"] = len(identical) + sum(len(pair.ids) for pair in pairs.values())
    return list(pairs.values())


def difference(label: Ranking, first: str, second: str) -> float:
    """By how much a label puts the first response above the second: ranks, or a pair's strength; under 0 if below."""
    ranks = label.ranks[second] - label.ranks[first]
    if label.strength is None or len(label.ranks) != 2:
        return ranks
    return label.strength * _sign(ranks)


def _take(pair: _Pair, annotator: str, number: float, reason: str | None, counts: Counter[str]) -> None:
    if reason is None:
        pair.differences.setdefault(annotator, []).append(number)
    elif reason == ADJUDICATION:
        pair.adjudicated.append(number)
    else:
        pair.reasons.add(reason)
        counts["votes_annotator_out" if reason == "annotator_out" else "votes_left_out"] += 1


def _why_unsettled(pair: _Pair) -> str:
    if "annotator_out" in pair.reasons:
        return "pairs_annotator_out"
    return "pairs_left_out" if pair.reasons else "pairs_unranked"


def _adjudicate(pair: _Pair) -> Preference | Tie:
    margin = fmean(pair.adjudicated)  # two texts may have been adjudicated in several tasks
    return _record(pair, _sign(margin), abs(margin), 1.0)


def _vote(pair: _Pair, weights: Mapping[str, float] | None) -> Preference | Tie:
    # By name and with fsum, so that the order in which votes came in changes no digit.
    means = {name: fmean(pair.differences[name]) for name in sorted(pair.differences)}
    sides = [_sign(mean) for mean in means.values()]
    if weights is None:
        weight, side = [1.0] * len(sides), _sign(sum(sides))
    else:
        from labeling_app.quality.reliability import weighted_side

        weight = [weights.get(name, 1.0) for name in means]
        side = weighted_side(sides, weight)
    if side == 0:
        return _record(pair, 0, 0.0, 0.0)
    total = fsum(weight)
    margin = side * fsum(w * mean for w, mean in zip(weight, means.values(), strict=True)) / total
    share = fsum(w * (1 + side * mine) / 2 for w, mine in zip(weight, sides, strict=True)) / total
    return _record(pair, side, max(0.0, margin), share)


def _record(pair: _Pair, side: int, margin: float, weight: float) -> Preference | Tie:
    """A Preference for the first text where `side` is 1, for the second where it is -1, else a Tie."""
    signs = Counter(_sign(fmean(times)) for times in pair.differences.values())
    id = make_id("pair", pair.prompt, sorted(pair.texts))
    replies = [[{"role": "assistant", "content": text}] for text in pair.texts]
    if side == 0:
        votes = {"for": max(signs[1], signs[-1]), "tie": signs[0], "against": min(signs[1], signs[-1])}
        return Tie(id, pair.group_id, pair.prompt, replies, votes)
    votes = {"for": signs[side], "tie": signs[0], "against": signs[-side]}
    chosen, rejected = replies[::side]
    return Preference(id, pair.group_id, pair.prompt, chosen, rejected, margin, weight, votes)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
