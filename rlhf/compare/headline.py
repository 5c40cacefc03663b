"""The verdict in one sentence: who is better by the judge that decides, at what cost, and do the others agree."""

from collections.abc import Sequence
from typing import Any

from rlhf.compare.judges import PEOPLE, label
from rlhf.compare.sentences import judge_sentence, leading_standing, number
from rlhf.compare.statistics import UNDECIDED

_OVERSTATED = 0.05  # a win rate so much over the deciding judge's, and surely over it
_SAME_COST = 0.1


def headline(report: dict[str, Any]) -> str:
    """`PPO beats DPO on 61% of 400 prompts by gold (95% interval 56% to 66%), at 3.1 times the device time; people
    agree, the reward model overstates it`: without a full stop.

    Cost is told where runs recorded it, and of more than two policies against the runner-up; judges where there
    are others than the one that decides.
    """
    decided_by = report["settings"]["decided_by"]
    sentence = judge_sentence(report, decided_by)
    if len(report["policies"]) == 1:
        return sentence
    one = leading_standing(report, decided_by)
    others = [_opinion(report, judge, one.better, one.other) for judge in _others(report, decided_by)]
    return sentence + _cost(report, one.better, one.other) + ("; " + ", ".join(others) if others else "")


def _others(report: dict[str, Any], decided_by: str) -> Sequence[str]:
    found = dict.fromkeys(pair["judge"] for pair in report["pairs"])
    return sorted((judge for judge in found if judge != decided_by), key=lambda judge: judge != PEOPLE)


def _cost(report: dict[str, Any], better: str, other: str) -> str:
    costs = (report.get("cost") or {}).get("policies") or {}
    hours = [((costs.get(name) or {}).get("since") or {}).get("device_hours") for name in (better, other)]
    mine, theirs = hours
    if not mine or not theirs:
        return ""
    same = abs(mine / theirs - 1) < _SAME_COST
    times = "the same device time" if same else f"{number(mine / theirs)} times the device time"
    if len(report["policies"]) == 2:
        return f", at {times}"
    return f"; {better} took {times} {'as' if same else 'of'} {other}"


def _opinion(report: dict[str, Any], judge: str, better: str, other: str) -> str:
    """What another judge says of the same two policies."""
    name = "people" if judge == PEOPLE else label(judge)
    s = "" if judge == PEOPLE else "s"
    mine = _pair(report, report["settings"]["decided_by"], better, other)
    theirs = _pair(report, judge, better, other)
    if theirs is None or mine is None:
        return f"{name} did not judge them"
    if mine["verdict"] == UNDECIDED:
        return f"{name} agree{s}" if theirs["verdict"] == UNDECIDED else f"{name} prefer{s} {theirs['verdict']}"
    if theirs["verdict"] == UNDECIDED:
        return f"{name} cannot tell them apart"
    if theirs["verdict"] != mine["verdict"]:
        return f"{name} prefer{s} {theirs['verdict']}"
    more = _rate(theirs, better, "mean") - _rate(mine, better, "mean")
    if more > _OVERSTATED and _rate(theirs, better, "low") > _rate(mine, better, "mean"):
        return f"{name} overstate{s} it"
    return f"{name} agree{s}"


def _pair(report: dict[str, Any], judge: str, a: str, b: str) -> dict[str, Any] | None:
    return next((one for one in report["pairs"] if one["judge"] == judge and {one["a"], one["b"]} == {a, b}), None)


def _rate(pair: dict[str, Any], better: str, end: str) -> float:
    rate = pair["win_rate"]
    if pair["a"] == better:
        return rate[end]
    return 1 - rate[{"mean": "mean", "low": "high", "high": "low"}[end]]
