"""Where each policy stands before each judge: win rates, tests and their correction, length and style, one scale."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.anytime import anytime_intervals, looked_too_often
from rlhf.compare.as_json import interval_numbers, plain
from rlhf.compare.judges import label
from rlhf.compare.length_control import (
    ControlledRate,
    controlled_rates,
    length_question,
    mean_markdown,
    style_question,
)
from rlhf.compare.paired import (
    benjamini_hochberg,
    decide_sentence,
    holm,
    paired_t_test,
    permutation_test,
    prompt_means,
    prompts_to_decide,
    sign_test,
)
from rlhf.compare.scale import policy_scale
from rlhf.compare.sections.section import Section
from rlhf.compare.sentences import percent, shown_mean, shown_span
from rlhf.compare.statistics import prompt_ties, seen_from_the_other, win_matrix
from rlhf.compare.study import Study
from rlhf.intervals import Interval

_TOO_UNLIKE = 0.9  # where one policy is longer on so many prompts, a like length is extrapolated
_MOVED = 0.05  # of a win rate by length: worth a warning


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """By judge: `win_rates`, `ties` (rows beat columns), `pairs` with tests and controlled rates, `scale` in logits."""
    if len(study.names) < 2:
        return None
    written = [_Written(one.lengths, mean_markdown(one.texts)) for one in study.answers]
    return {"judges": {judge: _judge(study, written, scores) for judge, scores in study.scores.items()}}


@dataclass(frozen=True)
class _Written:
    """What is counted of a policy's responses: lengths (prompts, responses), and by feature markdown, (prompts,)."""

    lengths: NDArray[np.float64]
    markdown: dict[str, NDArray[np.float64]]

    @property
    def has_markdown(self) -> bool:
        return any(counts.any() for counts in self.markdown.values())


def _judge(study: Study, written: list[_Written], scores: NDArray[np.float64]) -> dict[str, Any]:
    wins = win_matrix(scores)  # (policies, policies, prompts)
    ties = np.array([[prompt_ties(a, b).mean() for b in scores] for a in scores])
    places = list(combinations(range(len(study.names)), 2))
    pairs = [_tests(study, a, b, scores, wins[a, b]) for a, b in places]
    by_length = [length_question(wins[a, b], written[a].lengths, written[b].lengths) for a, b in places]
    for pair, rate in zip(pairs, controlled_rates(by_length, study.bootstrap), strict=True):
        pair["length_controlled"] = _controlled(rate)
    by_style = {}
    for at, (a, b) in enumerate(places):
        one, other = written[a], written[b]
        if one.has_markdown or other.has_markdown:
            lengths, markdown = (one.lengths, other.lengths), (one.markdown, other.markdown)
            by_style[at] = style_question(wins[a, b], markdown, lengths)
    for at, rate in zip(by_style, controlled_rates(list(by_style.values()), study.bootstrap), strict=True):
        pairs[at]["style_controlled"] = _controlled(rate)
    tested = [pair["permutation"]["p_value"] for pair in pairs]
    for pair, strict, found in zip(pairs, holm(tested), benjamini_hochberg(tested), strict=True):
        pair |= {"holm": plain(strict), "benjamini_hochberg": plain(found)}
    scale = policy_scale(study.names, wins, study.bootstrap)
    return {
        "win_rates": [[plain(value) for value in row] for row in wins.mean(2)],
        "ties": [[plain(value) for value in row] for row in ties],
        "pairs": pairs,
        "scale": {name: interval_numbers(interval) for name, interval in scale.logits.items()},
    }


def _tests(study: Study, a: int, b: int, scores: NDArray[np.float64], wins: NDArray[np.float64]) -> dict[str, Any]:
    """A pair's tests, with room for its controlled rates."""
    clusters = study.bootstrap.clusters
    if clusters is None:
        clusters = range(len(wins))
    outcomes, first, second = (prompt_means(row, clusters) for row in (wins, scores[a].mean(1), scores[b].mean(1)))
    sign, permutation = sign_test(outcomes), permutation_test(outcomes, seed=study.bootstrap.seed)
    return {
        "a": study.names[a],
        "b": study.names[b],
        "sign": {"wins": sign.wins, "losses": sign.losses, "ties": sign.ties, "p_value": plain(sign.p_value)},
        "permutation": {"p_value": plain(permutation.p_value), "exact": permutation.exact},
        "paired_t": {"p_value": plain(paired_t_test(first, second).p_value)},
        "length_controlled": None,
        "style_controlled": None,
        "more_prompts": prompts_to_decide(outcomes, study.bootstrap.confidence),
        "anytime": _anytime(study, outcomes),
    }


def _anytime(study: Study, outcomes: NDArray[np.float64]) -> dict[str, Any] | None:
    """The win rate's interval that holds at all looks, where there were others; prompts count in their order."""
    before = [look for look in study.settings.get("looks") or [] if look < len(outcomes)]
    if not before:
        return None
    return interval_numbers(anytime_intervals(outcomes, [*before, len(outcomes)], study.bootstrap.confidence)[-1])


def _controlled(rate: ControlledRate) -> dict[str, Any]:
    return {
        "win_rate": interval_numbers(rate.controlled),
        "coefficients": {name: interval_numbers(one) for name, one in rate.coefficients.items()},
        "longer": plain(rate.longer),
    }


def view(report: dict[str, Any]) -> dict[str, Any]:
    """Tables by judge, the deciding one first, and what would decide what is open."""
    return {
        "names": list(report["policies"]),
        "judges": [
            {
                "label": label(judge),
                "matrix": [
                    [None if a == b else percent(rate) for b, rate in enumerate(row)]
                    for a, row in enumerate(numbers["win_rates"])
                ],
                "scale": [_on_scale(name, one) for name, one in numbers["scale"].items()],
                "rates": _rates(numbers["pairs"]),
                "pairs": [_shown(report, judge, pair) for pair in numbers["pairs"]],
                "open": [
                    _decide(report, judge, pair) for pair in numbers["pairs"] if _raw(report, judge, pair)["open"]
                ],
            }
            for judge, numbers in report["standing"]["judges"].items()
        ],
    }


def _rates(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The columns of win rates; style has one where some response has markdown."""
    columns = [("raw", "Wins"), ("length", "Wins at equal length")]
    if any(pair["style_controlled"] is not None for pair in pairs):
        columns.append(("style", "Wins at equal style"))
    return columns


def _on_scale(name: str, one: dict[str, Any]) -> dict[str, str]:
    ends = ["open" if one[end] is None else f"{one[end]:.2f}" for end in ("low", "high")]
    return {"name": name, "mean": f"{one['mean']:.2f}", "span": f"{ends[0]} to {ends[1]}", "n": f"{one['n']:,}"}


def _raw(report: dict[str, Any], judge: str, pair: dict[str, Any]) -> dict[str, Any]:
    """The pair's win rate in the report, and whether it is undecided."""
    found = next(row for row in report["pairs"] if (row["judge"], row["a"], row["b"]) == (judge, pair["a"], pair["b"]))
    return {"rate": found["win_rate"], "open": found["verdict"] not in (pair["a"], pair["b"])}


def _shown(report: dict[str, Any], judge: str, pair: dict[str, Any]) -> dict[str, Any]:
    cells = {"raw": _raw(report, judge, pair)["rate"], "length": pair["length_controlled"]["win_rate"]}
    if pair["style_controlled"] is not None:
        cells["style"] = pair["style_controlled"]["win_rate"]
    shown = {name: (shown_mean(one, "win_rate"), shown_span(one, "win_rate")) for name, one in cells.items()}
    tests = {"sign": pair["sign"]["p_value"], "permutation": pair["permutation"]["p_value"]}
    tests |= {"t": pair["paired_t"]["p_value"], "holm": pair["holm"], "bh": pair["benjamini_hochberg"]}
    return {"name": f"{pair['a']} against {pair['b']}", "rates": shown} | {k: _p(v) for k, v in tests.items()}


def _p(value: float) -> str:
    return "<\u00a00.0001" if value < 0.0001 else f"{value:.2g}"


def _decide(report: dict[str, Any], judge: str, pair: dict[str, Any]) -> str:
    rate = _raw(report, judge, pair)["rate"]
    interval = Interval(rate["mean"], rate["low"], rate["high"], rate["n"])
    return decide_sentence(pair["a"], pair["b"], interval, pair["more_prompts"])


def sentences(report: dict[str, Any]) -> list[str]:
    """Of the deciding judge: each policy beside the baseline, and of three or more all on one scale."""
    judge, names = report["settings"]["decided_by"], list(report["policies"])
    numbers, baseline = report["standing"]["judges"][judge], report["settings"]["baseline"]
    corrected = " (Holm)" if len(numbers["pairs"]) > 1 else ""
    told = [
        f"{_wins_against(report, judge, pair, baseline)}, p {_p_equals(pair['holm'])}{corrected}"
        for pair in numbers["pairs"]
        if baseline in (pair["a"], pair["b"])
    ]
    confidence = f"{report['settings']['confidence']:.0%} intervals"
    n = report["policies"][names[1]]["win_rate"]["n"]
    found = [f"by {label(judge)} against {baseline}: {'; '.join(told)}; {confidence}, {n:,} prompts"]
    if len(names) > 2:
        ordered = sorted(numbers["scale"].items(), key=lambda item: -item[1]["mean"])
        shown = [_on_scale(name, one) for name, one in ordered]
        places = ", ".join(f"{one['name']} {one['mean']} ({one['span']})" for one in shown)
        found.append(f"by {label(judge)} on one scale, in logits: {places}; {confidence}")
    return found


def _wins_against(report: dict[str, Any], judge: str, pair: dict[str, Any], baseline: str) -> str:
    """The other policy's win rate, and that at equal length where it is known."""
    raw, controlled = _raw(report, judge, pair)["rate"], pair["length_controlled"]
    other = pair["a"] if pair["b"] == baseline else pair["b"]
    told = f"{other} wins {_rate_of(raw, pair, other)}"
    if 1 - _TOO_UNLIKE < controlled["longer"] < _TOO_UNLIKE:
        told += f", at equal length {_rate_of(controlled['win_rate'], pair, other)}"
    return told


def _rate_of(rate: dict[str, Any], pair: dict[str, Any], name: str) -> str:
    """A pair's win rate, which is that of `a`, as that of the policy of this name."""
    if name == pair["b"]:
        rate = interval_numbers(seen_from_the_other(Interval(**rate)))
    return f"{shown_mean(rate, 'win_rate')} ({shown_span(rate, 'win_rate')})"


def _p_equals(value: float) -> str:
    shown = _p(value)
    return shown if shown.startswith("<") else f"= {shown}"


def warnings(report: dict[str, Any]) -> list[str]:
    """Where the deciding judge's verdict hangs on length, and where correction for many comparisons takes one away."""
    judge = report["settings"]["decided_by"]
    found = _looked(report, judge)
    for pair in report["standing"]["judges"][judge]["pairs"]:
        raw, controlled = _raw(report, judge, pair), pair["length_controlled"]
        moved = raw["rate"]["mean"] - controlled["win_rate"]["mean"]
        longer = controlled["longer"]
        names = f"{pair['a']} against {pair['b']}"
        if not raw["open"] and abs(moved) > _MOVED and 1 - _TOO_UNLIKE < longer < _TOO_UNLIKE:
            found.append(
                f"Length counts: by {label(judge)} {names} wins {percent(raw['rate']['mean'])}, and "
                f"{percent(controlled['win_rate']['mean'])} where both are equally long."
            )
        if not raw["open"] and pair["holm"] > 0.05:
            found.append(
                f"{names} is decided alone, but not among {len(report['policies'])} policies: corrected for all "
                f"comparisons (Holm) p = {_p(pair['holm'])}."
            )
    return found


def _looked(report: dict[str, Any], judge: str) -> list[str]:
    """What looking before does to the verdicts."""
    pairs = [pair for pair in report["standing"]["judges"][judge]["pairs"] if pair["anytime"] is not None]
    if not pairs:
        return []
    looks, confidence = len(report["settings"]["looks"]) + 1, report["settings"]["confidence"]
    told = looked_too_often(looks, confidence) or ""
    found = [f"{told[0].upper()}{told[1:]}."]
    for pair in pairs:
        interval = Interval(**pair["anytime"])
        if not _raw(report, judge, pair)["open"] and not (interval.is_above(0.5) or interval.is_below(0.5)):
            low, high = (percent(pair["anytime"][end]) for end in ("low", "high"))
            found.append(
                f"{pair['a']} against {pair['b']} is undecided over all {looks} looks: the anytime-valid interval of "
                f"the win rate is {low} to {high}."
            )
    return found


SECTION = Section("standing", "Who beats whom, and how sure that is", build, view, warnings=warnings, says=sentences)
