"""The words of a report: what judges say, what qualifies it, and numbers as people read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.compare.judges import GOLD, PEOPLE, REWARD_MODEL, label
from rlhf.compare.people import disagreements_with_people, uncounted_votes
from rlhf.compare.statistics import UNDECIDED

_FEW_PROMPTS = 30
_MANY_UNFINISHED = 0.2


@dataclass(frozen=True)
class Standing:
    """How the policy `better` (that leads) stands against `other` before one judge, seen from its side."""

    better: str
    other: str
    mean: float
    low: float
    high: float
    n: int
    verdict: str

    @property
    def decided(self) -> bool:
        """Whether `better` is the better one by more than chance."""
        return self.verdict == self.better


def judge_sentence(report: dict[str, Any], judge: str) -> str:
    """What one judge says of all policies, as one plain sentence without a full stop."""
    names = list(report["policies"])
    if len(names) == 1:
        return f"undecided: {names[0]} is the only policy, there is nothing to compare it with"
    best = _best_standings(report, judge)
    if len(names) == 2:
        one, span = best[0], _span(report, best[0])
        if one.decided:
            return (
                f"{one.better} beats {one.other} on {percent(one.mean)} of {_prompts(one.n)} by {label(judge)} ({span})"
            )
        return (
            f"undecided: {one.better} wins {percent(one.mean)} of {_prompts(one.n)} against {one.other} "
            f"by {label(judge)} ({span}, which holds 50%)"
        )
    told = "it wins " + _listed([_against(report, one, at == 0) for at, one in enumerate(best)])
    if all(one.decided for one in best):
        return f"{best[0].better} is the best by {label(judge)}: {told}"
    return f"undecided: no policy beats all others by {label(judge)}; {best[0].better} comes closest, {told}"


def leading_standing(report: dict[str, Any], judge: str) -> Standing:
    """The leading policy against the one that comes closest to it, before one judge."""
    return min(_best_standings(report, judge), key=lambda one: one.mean)


def people_sentences(report: dict[str, Any]) -> list[str]:
    """What people say of each two policies that they judged: plain sentences without a full stop."""
    return [_people_sentence(report, pair) for pair in report["pairs"] if pair["judge"] == PEOPLE]


def _people_sentence(report: dict[str, Any], pair: dict[str, Any]) -> str:
    better, other = (pair["a"], pair["b"]) if pair["win_rate"]["mean"] > 0.5 else (pair["b"], pair["a"])
    one = _standing(report, PEOPLE, better, other)
    votes, people = pair["num_votes"], pair["num_annotators"]
    of = f"{votes:,} vote{'s' if votes != 1 else ''} of {people} annotator{'s' if people != 1 else ''}"
    if one.decided:
        return (
            f"{better} beats {other} on {percent(one.mean)} of {_prompts(one.n)} by people ({_span(report, one)}; {of})"
        )
    return (
        f"undecided: {better} wins {percent(one.mean)} of {_prompts(one.n)} against {other} by people "
        f"({_span(report, one)}, which holds 50%; {of})"
    )


def _against(report: dict[str, Any], one: Standing, first: bool) -> str:
    of = f" of {_prompts(one.n)}" if first else ""
    end = "" if one.decided else f", {one.verdict}" if one.verdict == UNDECIDED else f", {one.other} is better"
    return f"{percent(one.mean)}{of} against {one.other} ({_span(report, one)}{end})"


def _span(report: dict[str, Any], one: Standing) -> str:
    return f"{report['settings']['confidence']:.0%} interval {percent(one.low)} to {percent(one.high)}"


def _best_standings(report: dict[str, Any], judge: str) -> list[Standing]:
    """The leading policy against each other one: the leader beats most others, then has the highest win rate."""
    names = list(report["policies"])
    by_name = {name: [_standing(report, judge, name, other) for other in names if other != name] for name in names}

    def lead(name: str) -> tuple[int, float]:
        rows = by_name[name]
        return sum(row.decided for row in rows), sum(row.mean for row in rows)

    # Of two that lead alike, the later: the baseline is named second in a draw.
    return by_name[max(reversed(names), key=lead)]


def _standing(report: dict[str, Any], judge: str, better: str, other: str) -> Standing:
    for pair in report["pairs"]:
        if pair["judge"] == judge and {pair["a"], pair["b"]} == {better, other}:
            rate = pair["win_rate"]
            mean, low, high = rate["mean"], rate["low"], rate["high"]
            if pair["a"] != better:
                mean, low, high = 1 - mean, 1 - high, 1 - low
            return Standing(better, other, mean, low, high, rate["n"], pair["verdict"])
    raise KeyError((judge, better, other))


def warnings(report: dict[str, Any]) -> list[str]:
    """What a reader must know before trusting the verdict, most serious first."""
    settings = report["settings"]
    found = [*_disagreements(report), *disagreements_with_people(report), *uncounted_votes(report)]
    if GOLD not in settings["judges"]:
        found.append(
            f"There is no gold here: the verdict is that of {label(settings['decided_by'])}, which policies may have "
            "been trained to please. "
            + (
                "Read beside it what people say."
                if people_sentences(report)
                else "Have people rank some of these responses before you rely on it."
            )
        )
    n = next(iter(report["policies"].values()))["length"]["n"]
    if n < _FEW_PROMPTS:
        found.append(f"Only {_prompts(n)}: few differences can be told at this size; 200 or more are usual.")
    for name, numbers in report["policies"].items():
        unfinished = 0.0 if numbers["finished"] is None else 1 - numbers["finished"]["mean"]
        if unfinished > _MANY_UNFINISHED:
            found.append(
                f"{percent(unfinished)} of the responses of {name} were cut at {settings['max_new_tokens']:,} tokens, "
                "so judges saw unfinished text; raise max_new_tokens."
            )
        if numbers["kl"] is None and name not in settings.get("sources", {}):
            found.append(
                f"KL and length of {name} cannot be set against the others': its tokenizer is not that of "
                f"{settings['reference']}."
            )
    return found


def _disagreements(report: dict[str, Any]) -> list[str]:
    """Where gold and the reward model see two policies differently: a sentence for each favourite."""
    verdicts: dict[tuple[str, str], dict[str, str]] = {}
    for pair in report["pairs"]:
        verdicts.setdefault((pair["a"], pair["b"]), {})[pair["judge"]] = pair["verdict"]
    opposed: dict[str, list[str]] = {}
    doubtful: dict[str, list[str]] = {}
    missed: dict[str, list[str]] = {}
    for (a, b), by in verdicts.items():
        gold, score = by.get(GOLD), by.get(REWARD_MODEL)
        if gold is None or score is None or gold == score:
            continue
        favourite = score if score != UNDECIDED else gold
        kind = doubtful if gold == UNDECIDED else missed if score == UNDECIDED else opposed
        kind.setdefault(favourite, []).append(b if favourite == a else a)
    return [
        *(_opposed(report, favourite, others) for favourite, others in opposed.items()),
        *(
            f"The reward model prefers {favourite} to {_listed(others)}, gold cannot tell them apart: the gain in "
            "score may not be a real one."
            for favourite, others in doubtful.items()
        ),
        *(
            f"Gold prefers {favourite} to {_listed(others)}, the reward model cannot tell them apart: it misses a gain "
            "that is real."
            for favourite, others in missed.items()
        ),
    ]


def _opposed(report: dict[str, Any], favourite: str, others: list[str]) -> str:
    by_score = [_standing(report, REWARD_MODEL, favourite, other) for other in others]
    by_gold = [percent(_standing(report, GOLD, favourite, other).mean) for other in others]
    liked = _listed([f"{one.other} ({percent(one.mean)} of prompts)" for one in by_score])
    return (
        f"The judges contradict each other on {favourite}: the reward model prefers it to {liked}; by gold it loses, "
        f"with {_listed(by_gold)}. It has learned to please the reward model rather than to be better: do not choose "
        "it by its score."
    )


def _prompts(n: int) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{n:,} prompt{'s' if n != 1 else ''}"


def percent(share: float) -> str:
    """A share as a percentage: whole, with one digit where whole would claim all, none or exactly half."""
    whole = f"{share:.0%}"
    claims_too_much = whole in ("0%", "50%", "100%") and abs(share - float(whole[:-1]) / 100) > 5e-5
    return f"{share:.1%}" if claims_too_much else whole


def number(value: float, beside: float | None = None) -> str:
    """A number for people, to the digits that count; `beside` is the largest that it stands with."""
    size = max(abs(value), abs(beside or 0.0))
    if 0 < size < 0.01:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 20 else f"{value:.2f}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def cell(interval: dict[str, Any] | None, key: str, between: str = " ") -> str:
    """A mean with its interval as a table shows it."""
    if interval is None:
        return "-"
    return f"{shown_mean(interval, key)}{between}{shown_span(interval, key)}"


def shown_mean(interval: dict[str, Any], key: str) -> str:
    """The mean, as a percentage where it is a share."""
    return _shown(interval, key, interval["mean"])


def shown_span(interval: dict[str, Any], key: str) -> str:
    """The interval's ends, or that they are unknown."""
    if interval["low"] is None or interval["high"] is None:
        return "interval unknown"
    return f"{_shown(interval, key, interval['low'])} to {_shown(interval, key, interval['high'])}"


def _shown(interval: dict[str, Any], key: str, value: float) -> str:
    if key in ("win_rate", "finished"):
        return percent(value)
    return number(value, max(abs(interval[end] or 0.0) for end in ("mean", "low", "high")))
