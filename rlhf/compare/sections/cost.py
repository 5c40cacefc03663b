"""What each policy cost: time, devices, tokens, memory, energy; and what one got for it."""

from itertools import combinations
from typing import Any

from rlhf.compare.as_json import plain
from rlhf.compare.cost import Cost, cost_since
from rlhf.compare.judges import GOLD, label
from rlhf.compare.sections.section import Section
from rlhf.compare.sentences import number
from rlhf.compare.study import Context, Study
from rlhf.lineage import trace


def measure(context: Context) -> dict[str, dict[str, Cost | None]]:
    """By policy, its `own` run's cost and that of all runs `since` the start (the reference)."""
    start = trace(context.reference)
    found: dict[str, dict[str, Cost | None]] = {}
    for name, path in context.policies.items():
        lineage = trace(path)
        last = list(lineage.runs.values())[-1:]
        found[name] = {"own": cost_since(last, {}), "since": cost_since(list(lineage.runs.values()), start.runs)}
    return found


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`policies`: by name `own` and `since` the start; `gain` a device-hour: what the deciding judge's mean rose by."""
    costs: dict[str, dict[str, Cost | None]] = study.measured.get("cost") or {}
    if not any(cost["own"] for cost in costs.values()):
        return None
    judge = study.settings["decided_by"]
    measure = "gold" if judge == GOLD else "score"
    start = study.settings["reference"]
    start_mean = (report["policies"].get(start) or {}).get(measure)
    return {
        "measure": measure,
        "reference": start,
        "policies": {
            name: {
                "own": cost["own"] and cost["own"].numbers,
                "since": cost["since"] and cost["since"].numbers,
                "gain_per_device_hour": _gain(report["policies"][name][measure], start_mean, cost["since"]),
            }
            for name, cost in costs.items()
        },
    }


def _gain(mean: dict[str, Any] | None, start: dict[str, Any] | None, cost: Cost | None) -> float | None:
    if mean is None or start is None or cost is None or not cost.device_hours:
        return None
    return plain((mean["mean"] - start["mean"]) / cost.device_hours)


def view(report: dict[str, Any]) -> dict[str, Any]:
    """A row for each policy, and how the policies' device time compares."""
    cost = report["cost"]
    policies = cost["policies"]
    measured = [part for one in policies.values() for part in (one["own"], one["since"]) if part]
    return {
        "measure": label(cost["measure"]) if cost["measure"] == GOLD else "score",
        "reference": cost["reference"],
        "rows": [_row(name, one) for name, one in policies.items()],
        "has_gain": any(one["gain_per_device_hour"] is not None for one in policies.values()),
        "has_energy": any(part["energy_wh"] is not None for part in measured),
        "sentences": says(report),
        "devices": sorted({part["device"] for part in measured}),
    }


def _row(name: str, one: dict[str, Any]) -> dict[str, Any]:
    own, since = one["own"], one["since"]
    gain = one["gain_per_device_hour"]
    return {
        "name": name,
        "stages": [f"{stage['stage']} {duration(stage['seconds'])}" for stage in since["stages"]] if since else [],
        "own": own and duration(own["seconds"]),
        "since": since and duration(since["seconds"]),
        "device_hours": since and number(since["device_hours"]),
        "generated": since and _count(since["tokens_generated"]),
        "trained": since and _count(since["tokens_trained"]),
        "memory": since and f"{number(since['peak_memory_gib'])} GiB",
        "energy": since and since["energy_wh"] is not None and f"{number(since['energy_wh'])} Wh",
        "gain": None if gain is None else number(gain),
    }


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count(tokens: int) -> str:
    if tokens >= 10_000_000:
        return f"{tokens / 1e6:,.0f} million"
    return f"{tokens / 1e6:.1f} million" if tokens >= 1_000_000 else f"{tokens:,}"


def says(report: dict[str, Any]) -> list[str]:
    """How the device time of each two policies compares, the start left out."""
    hours = {
        name: one["since"]["device_hours"]
        for name, one in report["cost"]["policies"].items()
        if one["since"] and one["since"]["device_hours"]
    }
    found = []
    for a, b in combinations(hours, 2):
        more, less = (a, b) if hours[a] >= hours[b] else (b, a)
        found.append(
            f"{more} took {number(hours[more] / hours[less])} times the device time of {less} since "
            f"{report['cost']['reference']} ({number(hours[more])} against {number(hours[less])} device-hours)"
        )
    return found


SECTION = Section("cost", "What they cost", build, view, measure, says=says, varies=True)
