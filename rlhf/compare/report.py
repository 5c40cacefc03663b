"""report.json: every number of a comparison."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.judges import GOLD, LLM_JUDGE, REWARD_MODEL
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sentences import judge_sentence
from rlhf.compare.statistics import Pair, compare_all, pair_of_wins, seen_from_the_other
from rlhf.compare.study import Study
from rlhf.intervals import Interval

_JUDGES = {"score": REWARD_MODEL, "gold": GOLD}
_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "score": (None, None),
    "gold": (None, None),
    "kl": (0.0, None),
    "length": (0.0, None),
    "finished": (0.0, 1.0),
}


def build_report(study: Study) -> dict[str, Any]:
    """Every number of the report, by the names of `files_of`'s files."""
    names, people = study.names, study.people
    scored = compare_all(names, study.scores, study.bootstrap)
    pairs: list[dict[str, Any]] = []
    for at, (a, b) in enumerate(combinations(names, 2)):
        pairs += map(_pair_numbers, scored[at * len(study.scores) : (at + 1) * len(study.scores)])
        if study.language is not None:
            pairs.append(_pair_numbers(pair_of_wins(a, b, LLM_JUDGE, study.language.wins[a, b], study.bootstrap)))
        if people is not None and (voted := people.pairs.get((a, b))) is not None:
            counts = {"num_votes": voted.num_votes, "num_annotators": voted.num_annotators}
            pairs.append(_pair_numbers(voted.pair) | counts)
    report: dict[str, Any] = {
        "policies": _policy_numbers(study, scored),
        "pairs": pairs,
        "settings": study.settings,
    }
    if people is not None:
        report["people"] = people.numbers
    if study.language is not None:
        report["llm_judge"] = study.language.numbers
    report["verdict"] = judge_sentence(report, study.settings["decided_by"])
    for section in SECTIONS:
        if (built := section.build(study, report)) is not None:
            report[section.key] = built
    return report


def files_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each file has, by its name: report.json what is the same for the same study on any machine, and a file
    of its own for each section that tells of time and place."""
    apart = {section.key for section in SECTIONS if section.varies} & set(report)
    same = {key: part for key, part in report.items() if key not in apart}
    return {"report.json": same} | {f"{key}.json": report[key] for key in sorted(apart)}


def _policy_numbers(study: Study, pairs: list[Pair]) -> dict[str, dict[str, Any]]:
    """By policy its figures, None where it has none; `pairs` are those before judges that score."""
    measured = {
        (answer.name, key): values
        for at, answer in enumerate(study.answers)
        for key, values in _measures(study, at).items()
        if values is not None
    }
    found: dict[tuple[str, str], Interval] = {}
    for bounds in dict.fromkeys(_BOUNDS.values()):  # resampled together, which is many times as fast as one by one
        alike = {place: values for place, values in measured.items() if _BOUNDS[place[1]] == bounds}
        found |= zip(alike, study.bootstrap.intervals(np.array(list(alike.values())), bounds), strict=True)
    baseline, deciding = study.names[0], next(iter(study.scores))
    for pair in pairs:
        if (pair.a, pair.judge) == (baseline, deciding):
            found[pair.b, "win_rate"] = seen_from_the_other(pair.win_rate)
    keys = ("score", "gold", "kl", "length", "win_rate", "finished")
    return {name: {key: maybe_interval(found.get((name, key))) for key in keys} for name in study.names}


def _measures(study: Study, at: int) -> dict[str, NDArray[np.float64] | None]:
    """A policy's values, (prompts, responses) each, None where they are not known."""
    answer = study.answers[at]
    judged = {key: study.scores[judge][at] for key, judge in _JUDGES.items() if judge in study.scores}
    return {**judged, "kl": answer.kl, "length": answer.lengths, "finished": answer.finished}


def _pair_numbers(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "judge": pair.judge,
        "win_rate": interval_numbers(pair.win_rate),
        "ties": plain(pair.ties),
        "verdict": pair.verdict,
    }
