"""How the judges judge: does the place of a response decide, and what few human votes and a model say together."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.few_votes import FewVotes, combine_votes
from rlhf.compare.judge_agreement import position_bias
from rlhf.compare.judges import GOLD, LLM_JUDGE, PEOPLE, REWARD_MODEL, label
from rlhf.compare.sections.section import Section
from rlhf.compare.sentences import number, percent
from rlhf.compare.statistics import Bootstrap, prompt_wins
from rlhf.compare.study import Study

# Whose verdicts the votes are combined with: chosen beforehand, not by whose interval is the shortest.
_PARTNERS = (LLM_JUDGE, REWARD_MODEL, GOLD)


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`position`: what the place decides, by judge that sees two responses; `votes`: by pair, people and a judge."""
    position = _position(study)
    votes = _votes(study)
    if not position and not votes:
        return None
    return {"position": position, "votes": votes}


def _position(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = {}
    confidence, num, seed = study.bootstrap.confidence, study.bootstrap.num_bootstrap, study.bootstrap.seed
    if study.language is not None:
        clusters = study.bootstrap.clusters
        prompts = [at if clusters is None else clusters[at] for at in study.language.prompts]
        within = Bootstrap(prompts, confidence, num, seed)
        bias = position_bias(study.language.as_first, study.language.as_second, within)
        found[LLM_JUDGE] = {
            "num_pairs": bias.num_pairs,
            "consistent": maybe_interval(bias.consistent),
            "to_first": plain(bias.to_first),
            "to_second": plain(bias.to_second),
            "first_place": maybe_interval(bias.first_place),
            "p_value": plain(bias.p),
        }
    if study.people is not None and study.people.first_place.size:
        within = Bootstrap(study.people.first_prompts, confidence, num, seed)
        first = within.interval(study.people.first_place, (0.0, 1.0))
        found[PEOPLE] = {"num_votes": int(study.people.first_place.size), "first_place": interval_numbers(first)}
    return found


def _votes(study: Study) -> list[dict[str, Any]]:
    if study.people is None:
        return []
    found = []
    for a, b in combinations(study.names, 2):
        voted = study.people.pairs.get((a, b))
        judge, wins = _partner(study, a, b)
        if voted is None or wins is None:
            continue
        prompts = np.flatnonzero(~np.isnan(voted.wins))
        combined = combine_votes(wins, prompts.tolist(), voted.wins[prompts], study.bootstrap)
        found.append({"a": a, "b": b, "judge": judge} | _combined(combined, a, b) | {"num_votes": voted.num_votes})
    return found


def _partner(study: Study, a: str, b: str) -> tuple[str, NDArray[np.float64] | None]:
    for judge in _PARTNERS:
        if judge in study.scores:
            scores = study.scores[judge]
            return judge, prompt_wins(scores[study.names.index(a)], scores[study.names.index(b)])
        if judge in study.verdicts:
            return judge, study.verdicts[judge][a, b]
    return "", None


def _combined(one: FewVotes, a: str, b: str) -> dict[str, Any]:
    verdict = a if one.combined.is_above(0.5) else b if one.combined.is_below(0.5) else "undecided"
    return {
        "combined": interval_numbers(one.combined),
        "of_votes": interval_numbers(one.votes),
        "of_judge": plain(one.judge),
        "weight": plain(one.weight),
        "effective": plain(one.effective),
        "reason": one.reason,
        "verdict": verdict,
    }


def view(report: dict[str, Any]) -> dict[str, Any]:
    """Sentences on places, a row for each pair that people voted on."""
    judging = report["judging"]
    return {
        "places": _places(report),
        "cost": _cost(report),
        "scorers": [label(judge) for judge in report["settings"]["judges"] if judge != LLM_JUDGE],
        "rows": [
            {
                "name": f"{one['a']} against {one['b']}",
                "judge": label(one["judge"]),
                "votes": _rate(one["of_votes"]),
                "num_votes": one["num_votes"],
                "of_judge": percent(one["of_judge"]),
                "combined": _rate(one["combined"]),
                "worth": one["reason"] or f"{number(one['effective'])} voted prompts instead of {one['of_votes']['n']}",
                "verdict": one["verdict"],
            }
            for one in judging["votes"]
        ],
    }


def _rate(interval: dict[str, Any]) -> str:
    return f"{percent(interval['mean'])} ({percent(interval['low'])} to {percent(interval['high'])})"


def _places(report: dict[str, Any]) -> list[str]:
    position, confidence = report["judging"]["position"], report["settings"]["confidence"]
    found = []
    if (one := position.get(LLM_JUDGE)) is not None and one["num_pairs"]:
        p = "" if one["p_value"] is None else f", p = {one['p_value']:.2g}"
        found.append(
            f"the language model says the same in both orders on {_rate(one['consistent'])} of {one['num_pairs']:,} "
            f"pairs of responses; the response shown first wins {_rate(one['first_place'])}{p}"
        )
    if (one := position.get(PEOPLE)) is not None:
        found.append(
            f"to people the response shown first wins {percent(one['first_place']['mean'])} of {one['num_votes']:,} "
            f"votes ({confidence:.0%} interval {percent(one['first_place']['low'])} to "
            f"{percent(one['first_place']['high'])}; which one stands first is drawn)"
        )
    return found


def _cost(report: dict[str, Any]) -> str | None:
    one = report.get("llm_judge")
    if one is None:
        return None
    told = f"{one['model']} was asked {one['num_requests']:,} times about {one['num_pairs']:,} pairs of responses"
    if one["num_unparsed"]:
        told += f"; {one['num_unparsed']:,} got no verdict and count as ties"
    if one["tokens_in"] is not None and one["tokens_out"] is not None:
        told += f"; {one['tokens_in']:,} tokens of questions, {one['tokens_out']:,} of answers"
    return told + (f", {one['cost']:.2f} in all" if one["cost"] is not None else "")


def warnings(report: dict[str, Any]) -> list[str]:
    """Judges for whom the place decides."""
    found = []
    for judge, one in report["judging"]["position"].items():
        first = one["first_place"]
        if first is None or first["low"] is None or first["low"] <= 0.5 <= first["high"]:
            continue
        place = "first" if first["mean"] > 0.5 else "second"
        # Asked in both orders, or in an order that is drawn, neither policy gains by it.
        found.append(
            f"{label(judge).capitalize()} prefer{'' if judge == PEOPLE else 's'} what is shown {place} "
            f"({_rate(first)} for the first place): no policy gains by it, but such verdicts are worth less."
        )
    return found


def says(report: dict[str, Any]) -> list[str]:
    """What few votes and a judge say together."""
    return [
        f"people's {one['num_votes']:,} votes with {label(one['judge'])} on all prompts: {one['a']} wins "
        f"{_rate(one['combined'])} against {one['b']}"
        for one in report["judging"]["votes"]
        if one["reason"] is None
    ]


SECTION = Section("judging", "How the judges judge", build, view, warnings=warnings, says=says)
