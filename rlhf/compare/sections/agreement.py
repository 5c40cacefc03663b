"""Do the judges agree: on the same pairs of responses, how often do two of them name the same policy."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from rlhf.compare.as_json import maybe_interval
from rlhf.compare.judge_agreement import Agreement, agreements
from rlhf.compare.judges import label
from rlhf.compare.sections.section import Section
from rlhf.compare.sentences import percent
from rlhf.compare.statistics import win_matrix
from rlhf.compare.study import Study

_MOST_APART = 8  # prompts named of those where two judges part
_WEAK = 0.4  # kappa: under it agreement is at most fair (Landis and Koch 1977)


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`judges`: for every two their agreement with and without ties, kappa, by pair of policies, and where they part.

    A verdict is one judge's on two policies' responses to one prompt; intervals resample prompts.
    """
    names = study.names
    if len(study.scores) + len(study.verdicts) < 2 or len(names) < 2:
        return None
    pairs = list(combinations(range(len(names)), 2))
    matrices = {judge: win_matrix(scores) for judge, scores in study.scores.items()}
    verdicts = {judge: np.concatenate([wins[a, b] for a, b in pairs]) for judge, wins in matrices.items()}
    num_prompts = len(study.prompts)
    unseen = np.full(num_prompts, np.nan)
    for judge, of_two in study.verdicts.items():
        verdicts[judge] = np.concatenate([of_two.get((names[a], names[b]), unseen) for a, b in pairs])
    clusters = list(range(num_prompts) if study.bootstrap.clusters is None else study.bootstrap.clusters)
    of_pair = [f"{names[a]} against {names[b]}" for a, b in pairs for _ in range(num_prompts)]
    found = agreements(
        verdicts,
        replace(study.bootstrap, clusters=clusters * len(pairs)),
        {"pair": of_pair} if len(pairs) > 1 else None,
        most=_MOST_APART,
    )
    rows = []
    for one in found:
        apart = [{"prompt": study.prompts[at % num_prompts].id, "pair": of_pair[at]} for at in one.apart]
        slices = {name: _numbers(part) for name, part in one.slices.get("pair", {}).items()}
        rows.append({"a": one.a, "b": one.b} | _numbers(one) | {"pairs": slices, "apart": apart})
    return {"judges": rows}


def _numbers(one: Agreement) -> dict[str, Any]:
    return {
        "num_verdicts": one.num_pairs,
        "num_decided": one.num_decided,
        "with_ties": maybe_interval(one.with_ties),
        "without_ties": maybe_interval(one.without_ties),
        "kappa": maybe_interval(one.kappa),
    }


def view(report: dict[str, Any]) -> dict[str, Any]:
    """A row for every two judges, and for each pair of policies under it."""
    rows = []
    for one in report["agreement"]["judges"]:
        rows.append(_row(f"{label(one['a'])} and {label(one['b'])}", one, whole=True))
        rows += [_row(name, part, whole=False) for name, part in one["pairs"].items()]
    apart = [
        {"judges": f"{label(one['a'])} and {label(one['b'])}", "places": one["apart"]}
        for one in report["agreement"]["judges"]
        if one["apart"]
    ]
    return {"sentences": sentences(report), "rows": rows, "apart": apart}


def _row(name: str, one: dict[str, Any], whole: bool) -> dict[str, Any]:
    return {
        "name": name,
        "whole": whole,
        "with_ties": _share(one["with_ties"]),
        "without_ties": _share(one["without_ties"]),
        "kappa": _kappa(one["kappa"]),
        "verdicts": f"{one['num_verdicts']:,}, {one['num_decided']:,} decided by both",
    }


def _share(interval: dict[str, Any] | None) -> tuple[str, str] | None:
    return None if interval is None else (percent(interval["mean"]), _span(interval, percent))


def _kappa(interval: dict[str, Any] | None) -> tuple[str, str] | None:
    return None if interval is None else (f"{interval['mean']:.2f}", _span(interval, "{:.2f}".format))


def _span(interval: dict[str, Any], shown: Any) -> str:
    if interval["low"] is None or interval["high"] is None:
        return "interval unknown"
    return f"{shown(interval['low'])} to {shown(interval['high'])}"


def sentences(report: dict[str, Any]) -> list[str]:
    """How far every two judges agree, without a full stop."""
    found = []
    for one in report["agreement"]["judges"]:
        judges = f"{label(one['a'])} and {label(one['b'])}"
        if one["without_ties"] is None:
            found.append(f"{judges} decide no pair of responses both")
            continue
        share = one["without_ties"]
        found.append(
            f"{judges} prefer the same response in {percent(share['mean'])} of the {one['num_decided']:,} pairs that "
            f"both decide ({report['settings']['confidence']:.0%} interval {_span(share, percent)}, "
            f"{share['n']:,} prompt{'s' if share['n'] != 1 else ''})"
        )
    return found


def warnings(report: dict[str, Any]) -> list[str]:
    """Judges that agree hardly more than by chance."""
    return [
        f"{label(one['a']).capitalize()} and {label(one['b'])} agree little beyond chance (kappa "
        f"{one['kappa']['mean']:.2f}): a verdict of one says little of the other's."
        for one in report["agreement"]["judges"]
        if one["kappa"] is not None and one["kappa"]["high"] is not None and one["kappa"]["high"] < _WEAK
    ]


SECTION = Section("agreement", "Do the judges agree", build, view, warnings=warnings, says=sentences)
