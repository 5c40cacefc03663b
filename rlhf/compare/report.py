"""report.json: every number of a comparison."""

from itertools import combinations
from typing import Any

from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.judges import GOLD, LLM_JUDGE, REWARD_MODEL
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sentences import judge_sentence
from rlhf.compare.statistics import Pair, compare_pair, pair_of_wins, seen_from_the_other, win_rate
from rlhf.compare.study import Study
from rlhf.intervals import Interval


def build_report(study: Study) -> dict[str, Any]:
    """Every number of the report, by the names of `files_of`'s files."""
    names, people = study.names, study.people
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(range(len(names)), 2):
        for judge, scores in study.scores.items():
            pairs.append(_pair_numbers(compare_pair(names[a], names[b], judge, scores[a], scores[b], study.bootstrap)))
        if study.language is not None:
            wins = study.language.wins[names[a], names[b]]
            pairs.append(_pair_numbers(pair_of_wins(names[a], names[b], LLM_JUDGE, wins, study.bootstrap)))
        if people is not None and (voted := people.pairs.get((names[a], names[b]))) is not None:
            counts = {"num_votes": voted.num_votes, "num_annotators": voted.num_annotators}
            pairs.append(_pair_numbers(voted.pair) | counts)
    report: dict[str, Any] = {
        "policies": {name: _policy_numbers(study, at) for at, name in enumerate(names)},
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


def _policy_numbers(study: Study, at: int) -> dict[str, Any]:
    answer, interval = study.answers[at], study.bootstrap.interval
    deciding = next(iter(study.scores.values()))
    judged = {name: interval(scores[at], (None, None)) for name, scores in study.scores.items()}
    numbers: dict[str, Interval | None] = {
        "score": judged.get(REWARD_MODEL),
        "gold": judged.get(GOLD),
        "kl": None if answer.kl is None else interval(answer.kl, (0.0, None)),
        "length": interval(answer.lengths, (0.0, None)),
        "win_rate": seen_from_the_other(win_rate(deciding[0], deciding[at], study.bootstrap)) if at else None,
        "finished": None if answer.finished is None else interval(answer.finished, (0.0, 1.0)),
    }
    return {key: maybe_interval(one) for key, one in numbers.items()}


def _pair_numbers(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "judge": pair.judge,
        "win_rate": interval_numbers(pair.win_rate),
        "ties": plain(pair.ties),
        "verdict": pair.verdict,
    }
