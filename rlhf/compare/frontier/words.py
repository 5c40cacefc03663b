"""The words and the plot of reward against KL."""

import math
from typing import Any

from rlhf.compare.frontier.pool import BEST_OF_N
from rlhf.compare.judges import GOLD, label
from rlhf.compare.sentences import cell, number
from rlhf.compare.statistics import UNDECIDED


def view(report: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: sentences, the table of points, and what is compared at equal KL."""
    part = report["frontier"]
    pairs = [pair for pair in part["equal_kl"] if pair["reason"] is None]
    return {
        "measure": measure_of(part),
        "sentences": [sentence[0].upper() + sentence[1:] + "." for sentence in sentences(report)],
        "has_score": part["proxy"] is not None,
        "points": [_row(point) for point in _with_start(report)],
        "pairs": [_pair_row(pair) for pair in pairs],
        "reasons": _reasons(part),
        "falls": [f"{falls_sentence(part, one)}." for one in part["over_optimisation"] if one["reason"] is None],
        "no_falls": [
            f"{one['run']} is not known to be over-optimised: {one['reason']}."
            for one in part["over_optimisation"]
            if one["reason"]
        ],
        "notes": _notes(report),
    }


def sentences(report: dict[str, Any]) -> list[str]:
    """What is known at equal KL, a plain sentence without a full stop for each two methods; trained ones first."""
    part = report["frontier"]
    pairs = [pair for pair in part["equal_kl"] if pair["reason"] is None]
    pairs.sort(key=lambda pair: BEST_OF_N in (pair["a"], pair["b"]))
    return [_equal_kl_sentence(report, pair) for pair in pairs]


def measure_of(part: dict[str, Any]) -> str:
    """What the points are judged by, as a noun: gold, or the score of the judge that decides."""
    return "gold" if part["decided_by"] == GOLD else f"score by {label(part['decided_by'])}"


def warnings(report: dict[str, Any]) -> list[str]:
    """Where the better of two policies owes that to its larger KL."""
    part, found = report["frontier"], []
    for pair in part["equal_kl"]:
        a, b = pair["a"], pair["b"]
        verdict = _raw_verdict(report, a, b)
        if pair["reason"] is not None or verdict in (None, UNDECIDED) or verdict == pair["verdict"]:
            continue
        other = b if verdict == a else a
        far, near = (report["policies"][name]["kl"] for name in (verdict, other))
        if far is None or near is None or far["mean"] <= near["mean"]:
            continue
        told = (
            "neither is known to be better" if pair["verdict"] == UNDECIDED else f"{other} has more {measure_of(part)}"
        )
        found.append(
            f"{verdict} beats {other}, but it has moved further from {report['settings']['reference']} "
            f"({number(far['mean'])} nats, {other} {number(near['mean'])}); at equal KL ({_span(pair)}) {told}."
        )
    return found


def _raw_verdict(report: dict[str, Any], a: str, b: str) -> str | None:
    for pair in report["pairs"]:
        if pair["judge"] == report["settings"]["decided_by"] and {pair["a"], pair["b"]} == {a, b}:
            return pair["verdict"]
    return None


def _equal_kl_sentence(report: dict[str, Any], pair: dict[str, Any]) -> str:
    one, measure = pair["difference"], measure_of(report["frontier"])
    a, b, mean, low, high = pair["a"], pair["b"], one["mean"], one["low"], one["high"]
    if mean < 0:
        a, b, mean = b, a, -mean
        low, high = (None if end is None else -end for end in (high, low))
    digits = _digits(one)
    if low is None or high is None:
        interval = "interval unknown"
    else:
        interval = f"{report['settings']['confidence']:.0%} interval {low:.{digits}f} to {high:.{digits}f}"
    if pair["verdict"] == UNDECIDED:
        return (
            f"undecided at equal KL ({_span(pair)}): {a} has {mean:.{digits}f} more {measure} than {b} "
            f"({interval}, which holds 0; n = {one['n']:,} prompts)"
        )
    return (
        f"at equal KL ({_span(pair)}) {a} has {mean:.{digits}f} more {measure} than {b} "
        f"({interval}; n = {one['n']:,} prompts)"
    )


def falls_sentence(part: dict[str, Any], one: dict[str, Any]) -> str:
    """Where a run is over-optimised, as a plain sentence without a full stop."""
    return (
        f"{one['run']} is over-optimised after {number(one['kl'])} nats ({one['setting']}): by "
        f"{number(one['seen_at'])} nats {measure_of(part)} has changed by {cell(one['fall'], 'gold', ' (')}), "
        f"while the score of {label(part['proxy'])} has risen by {cell(one['rise'], 'score', ' (')})"
    )


def _digits(interval: dict[str, Any]) -> int:
    """Digits after the point that count: two of the interval's width, for a difference may be next to nothing."""
    low, high = interval["low"], interval["high"]
    width = abs(interval["mean"]) if low is None or high is None else high - low
    return 2 if width == 0 else min(max(1 - math.floor(math.log10(width)), 0), 6)


def _difference(interval: dict[str, Any]) -> str:
    digits = _digits(interval)
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['mean']:.{digits}f} interval unknown"
    return f"{interval['mean']:.{digits}f} {interval['low']:.{digits}f} to {interval['high']:.{digits}f}"


def _span(pair: dict[str, Any]) -> str:
    return f"{number(pair['low'])} to {number(pair['high'])} nats"


def _with_start(report: dict[str, Any]) -> list[dict[str, Any]]:
    part = report["frontier"]
    if part["start"] is None:
        return part["points"]
    name = report["settings"]["reference"]
    start = part["start"] | {"method": name, "run": name, "step": None, "settings": {}, "on_frontier": False}
    return [start | {"setting": name}, *part["points"]]


def point_name(point: dict[str, Any]) -> str:
    """A point in words: `best of 4`, `dpo`, `dpo-low, beta 0.03, step 20`."""
    if point["method"] == BEST_OF_N:
        return f"best of {point['setting']}"
    told = [point["run"], *(f"{key} {_plain(value)}" for key, value in point["settings"].items())]
    return ", ".join(told if point["step"] is None else [*told, point["setting"]])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _row(point: dict[str, Any]) -> dict[str, Any]:
    """One line of the table of points."""
    return {
        "name": point_name(point),
        "kl": f"at most {number(point['kl']['mean'])}" if point["kl_is_bound"] else cell(point["kl"], "kl"),
        "gold": cell(point["gold"], "gold"),
        "score": cell(point["score"], "score"),
        "n": point["gold"]["n"],
        "on_frontier": point["on_frontier"],
    }


def _pair_row(pair: dict[str, Any]) -> dict[str, Any]:
    return {
        "a": pair["a"],
        "b": pair["b"],
        "span": _span(pair),
        "difference": _difference(pair["difference"]),
        "all_points": _difference(pair["all_points"]["difference"]),
        "area": _difference(pair["area"]),
        "verdict": pair["verdict"],
        "n": pair["difference"]["n"],
    }


def _reasons(part: dict[str, Any]) -> list[str]:
    """Why some methods are not compared at equal KL; the same reason once."""
    return list(dict.fromkeys(pair["reason"] for pair in part["equal_kl"] if pair["reason"] is not None))


def _notes(report: dict[str, Any]) -> list[str]:
    part, notes = report["frontier"], []
    if part["decided_by"] != GOLD:
        notes.append(
            f"There is no gold here: the points are judged by {label(part['decided_by'])}. If a policy was trained to "
            "please it, its curve says how well that went, and not how good the policy is."
        )
    if any(point["method"] == BEST_OF_N for point in part["points"]):
        chooser = label(part["proxy"] or part["decided_by"])
        notes.append(
            f"Best-of-n takes of n responses of {report['settings']['reference']} the one that {chooser} scores "
            "highest. Its KL is an upper bound, log n - (n-1)/n nats: it may lie further to the left."
        )
    if part["left_out"]:
        notes.append(
            f"Not shown, as no KL to {report['settings']['reference']} can be measured: {', '.join(part['left_out'])}."
        )
    return notes
