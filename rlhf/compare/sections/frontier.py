"""Reward against KL: every checkpoint of each run, sweeps, best-of-n, and who has more gold at equal KL."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rlhf.compare.answers import same_place
from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.frontier.areas import frontier_areas
from rlhf.compare.frontier.candidates import find_candidates
from rlhf.compare.frontier.equal_kl import MatchedKl, matched_kl
from rlhf.compare.frontier.measuring import START, Curve, Measured, measure_points
from rlhf.compare.frontier.over_optimisation import OverOptimisation, over_optimisation
from rlhf.compare.frontier.points import Point, figures, pareto
from rlhf.compare.frontier.pool import BEST_OF_N
from rlhf.compare.frontier.resampling import resample
from rlhf.compare.frontier.words import sentences, view, warnings
from rlhf.compare.sections.section import Section
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Context, Study
from rlhf.errors import UserError
from rlhf.models import load_tokenizer


@dataclass(frozen=True)
class FrontierConfig:
    """Which points of reward against KL are measured beside the policies themselves."""

    checkpoints: bool = field(
        default=False, metadata={"help": "Measure also every `checkpoint-*` of each run: a curve of gold against KL."}
    )
    sweeps: list[str] = field(
        default_factory=list,
        metadata={"help": "Further runs of a method as `method=path`, such as other betas: points of one frontier."},
    )
    best_of_n: int | None = field(
        default=None,
        metadata={"help": "Responses a prompt of the reference, of which the reward model chooses the best."},
    )
    frontier_prompts: int | None = field(
        default=None, metadata={"help": "Measure the points of the frontier on the first so many prompts only."}
    )


def check(config: Any, policies: Mapping[str, str]) -> None:
    """Raise UserError for settings that cannot be, and for sweeps that cannot be loaded."""
    settings, compare = config.frontier, config.compare
    if settings.best_of_n is not None and settings.best_of_n < 2:
        raise UserError(f"best_of_n: is {settings.best_of_n}, must be at least 2; 16 is usual")
    if settings.best_of_n is not None and compare.temperature == 0:
        raise UserError(
            "best_of_n: at temperature 0 all responses are the same; set a temperature, or leave best_of_n out"
        )
    if settings.frontier_prompts is not None and settings.frontier_prompts < 1:
        raise UserError(f"frontier_prompts: is {settings.frontier_prompts}, must be at least 1")
    reference = compare.reference or next(iter(policies.values()))
    for name in (BEST_OF_N, START):
        if name in policies and not (name == START and same_place(policies[name], reference)):
            raise UserError(f"policies: `{name}` is the name of a line of the report; give the policy another name")
    for candidate in find_candidates(policies, reference, settings.sweeps, settings.checkpoints):
        if candidate.step is None and candidate.run not in policies:  # those are looked at anyway
            load_tokenizer(candidate.path, trust_remote_code=compare.trust_remote_code)


def measure(context: Context) -> Measured | None:
    """The points; what had to be generated lies in the run folder as `responses.<run>.checkpoint-<step>.jsonl`."""
    settings: FrontierConfig = context.config.frontier
    return measure_points(context, settings.sweeps, settings.checkpoints, settings.best_of_n, settings.frontier_prompts)


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """All figures of the points and of the methods, each with its interval."""
    measured: Measured | None = study.measured.get("frontier")
    if measured is None:
        return None
    bootstrap = study.bootstrap
    if bootstrap.clusters is not None:
        bootstrap = dataclasses.replace(bootstrap, clusters=bootstrap.clusters[: measured.num_prompts])
    everything = [point for curve in measured.curves.values() for point in curve.points]
    start = [] if measured.start is None else [measured.start]
    best = {id(point) for point in pareto([*start, *everything])}
    return {
        "decided_by": measured.decided_by,
        "proxy": measured.proxy,
        "num_prompts": measured.num_prompts,
        "start": None
        if measured.start is None
        else _point(measured.start, bootstrap) | {"num_responses": measured.num_start},
        "points": [
            {"method": method}
            | _point(point, bootstrap)
            | {"step": step, "settings": curve.settings.get(point.run, {}), "on_frontier": id(point) in best}
            for method, curve in measured.curves.items()
            for point, step in zip(curve.points, curve.steps, strict=True)
        ],
        "equal_kl": _equal_kl(measured.curves, bootstrap),
        "over_optimisation": _over_optimisation(everything, measured.start, bootstrap),
        "left_out": measured.left_out,
    }


def _point(point: Point, bootstrap: Bootstrap) -> dict[str, Any]:
    told = figures(point, bootstrap)
    return {
        "run": told.run,
        "setting": told.setting,
        "kl": interval_numbers(told.kl),
        "gold": interval_numbers(told.gold),
        "score": maybe_interval(told.score),
        "kl_is_bound": told.kl_is_bound,
    }


def _equal_kl(curves: Mapping[str, Curve], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Each two methods over the KL that both were measured at: the best of each, the area under that, all points."""
    # A curve is a method: all its runs' points are on it. The start is on none, so nothing is guessed between it and
    # the first measured point.
    points = [dataclasses.replace(point, run=method) for method, curve in curves.items() for point in curve.points]
    draws = resample(points, bootstrap)
    found = []
    for a, b in combinations(curves, 2):
        areas = frontier_areas(draws, {a: [a], b: [b]})
        of_all = matched_kl(draws, a, b)
        found.append(
            _matched(matched_kl(draws, a, b, best=True))
            | {"area": maybe_interval(areas.differences.get((a, b)))}
            | {"all_points": {"difference": maybe_interval(of_all.average), "verdict": of_all.verdict}}
        )
    return found


def _matched(pair: MatchedKl) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "low": plain(pair.low),
        "high": plain(pair.high),
        "difference": maybe_interval(pair.average),
        "verdict": pair.verdict,
        "at": [
            {"kl": plain(kl), "difference": interval_numbers(one)}
            for kl, one in zip(pair.kl, pair.differences, strict=True)
        ],
        "reason": pair.reason,
    }


def _over_optimisation(points: list[Point], start: Point | None, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    draws = resample(points, bootstrap, start)
    return [_fall(over_optimisation(draws, run)) for run in dict.fromkeys(point.run for point in points)]


def _fall(found: OverOptimisation) -> dict[str, Any]:
    return {
        "run": found.run,
        "kl": plain(found.kl),
        "setting": found.setting,
        "seen_at": plain(found.seen_at),
        "fall": maybe_interval(found.fall),
        "rise": maybe_interval(found.rise),
        "reason": found.reason,
    }


SECTION = Section("frontier", "Reward against KL", build, view, measure, warnings, check, sentences)
