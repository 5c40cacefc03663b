"""Everything an admin page shows about annotators and labels, as one JSON-able dict."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from labeling_app.quality.agreement import kendalls_w, pairwise_kappa, percent_agreement, verdict_alpha
from labeling_app.quality.disputes import disputed
from labeling_app.quality.figure import Figure, as_json
from labeling_app.quality.known import known_accuracy, self_consistency
from labeling_app.quality.pace import days, num_by_kind, seconds_per_task, shortest_seconds, too_fast
from labeling_app.quality.position import position_bias
from labeling_app.quality.reliability import Reliability, estimated_accuracy, fit
from labeling_app.quality.votes import FIRST_LOOKS, SERIOUS, Votes, collect
from rlhf.records import Ranking, Task

NUM_DISPUTED = 200


def quality_report(
    tasks: Sequence[Task],
    rankings: Sequence[Ranking],
    golds: Mapping[str, Mapping[str, int]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What to know about annotators and labels; every figure is `{"value", "low", "high", "n", "reason"}`.

    Args:
        tasks: those that were ranked, gold and practice tasks too.
        rankings: answers of every kind; those to tasks that are not given count for pace and position only.
        golds: the known ranks of gold and practice tasks, by task id and response id.
        seed: of the resampling; the same input and seed give the same report.

    Returns:
        `annotators`: by name `num_by_kind`, and the figures `agreement`, `accuracy`, `weight`, `gold`, `practice`,
            `repeat`, `first_place` (with `p`), `seconds` (the median, with `quantiles`), `too_fast`.
        `agreement`: `alpha_nominal`, `alpha_ordinal`, `percent`, `percent_decided`, `kendall_w` (with `chance`), and
            `kappa`, a list with the two `annotators`, and `num_couples_apart`, who share no task and have no kappa.
        `position`: the share of the first place, with `p`.
        `disputed`: `{"task_id", "score", "n"}`, the most disputed first, at most NUM_DISPUTED.
        `days`: answers by day and annotator.
    """
    # So that the order of rows changes nothing, not even what is drawn for an interval.
    rankings = sorted(rankings, key=lambda row: (row.task_id, row.annotator, row.kind, row.at or ""))
    votes = collect(tasks, rankings)
    reliability = fit(collect(tasks, rankings, FIRST_LOOKS), golds)
    of: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        of.setdefault(ranking.annotator, []).append(ranking)
    first_place, p = position_bias(rankings, seed)
    shortest = shortest_seconds(tasks)
    return {
        "annotators": {
            name: _annotator(name, of[name], golds or {}, shortest, votes, reliability, seed) for name in sorted(of)
        },
        "agreement": _agreement(tasks, rankings, votes, seed),
        "position": as_json(first_place, p=p),
        "disputed": disputed(votes, NUM_DISPUTED),
        "days": days(rankings),
    }


def _agreement(tasks: Sequence[Task], rankings: Sequence[Ranking], votes: Votes, seed: int) -> dict[str, Any]:
    concordance, chance = kendalls_w(tasks, rankings, seed)
    kappas = pairwise_kappa(votes)
    return {
        "alpha_nominal": as_json(verdict_alpha(votes, "nominal", seed)),
        "alpha_ordinal": as_json(verdict_alpha(votes, "ordinal", seed)),
        "percent": as_json(percent_agreement(votes, seed=seed)),
        "percent_decided": as_json(percent_agreement(votes, decided=True, seed=seed)),
        "kendall_w": as_json(concordance, chance=chance),
        "kappa": [as_json(figure, annotators=list(names)) for names, figure in kappas.items()],
        "num_couples_apart": comb(len(votes.annotators), 2) - len(kappas),
    }


def _annotator(
    name: str,
    rankings: Sequence[Ranking],
    golds: Mapping[str, Mapping[str, int]],
    shortest: Mapping[str, float],
    votes: Votes,
    reliability: Reliability,
    seed: int,
) -> dict[str, Any]:
    first_place, p = position_bias(rankings, seed)
    seconds, quantiles = seconds_per_task(rankings)
    num_shared = reliability.num_shared.get(name, 0)
    reason = "no interval; see that of accuracy" if num_shared else "shares no task with anyone: counts as average"
    return {
        "num_by_kind": num_by_kind(rankings),
        "num_answers": sum(ranking.kind in SERIOUS for ranking in rankings),
        "agreement": as_json(percent_agreement(votes, annotator=name, seed=seed)),
        "accuracy": as_json(estimated_accuracy(reliability, name, seed)),
        "weight": as_json(Figure(reliability.weights.get(name, 1.0), n=num_shared, reason=reason)),
        "gold": as_json(known_accuracy(rankings, golds)),
        "practice": as_json(known_accuracy(rankings, golds, "practice")),
        "repeat": as_json(self_consistency(rankings)),
        "first_place": as_json(first_place, p=p),
        "seconds": as_json(seconds, quantiles=quantiles),
        "too_fast": as_json(too_fast(rankings, shortest)),
    }
