"""Where each policy stands before each judge: win rates, tests and their correction, length and style, one scale."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.as_json import interval_numbers, plain
from rlhf.compare.judges import label
from rlhf.compare.length_control import ControlledRate, count_markdown, length_controlled, style_controlled
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
from rlhf.compare.statistics import prompt_ties, win_matrix
from rlhf.compare.study import Study
from rlhf.intervals import Interval

_TOO_UNLIKE = 0.9  # where one policy is longer on so many prompts, a like length is extrapolated
_MOVED = 0.05  # of a win rate by length: worth a warning


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """By judge: `win_rates`, `ties` (rows beat columns), `pairs` with tests and controlled rates, `scale` in logits."""
    if len(study.names) < 2:
        return None
    return {"judges": {judge: _judge(study, judge, scores) for judge, scores in study.scores.items()}}


def _judge(study: Study, judge: str, scores: NDArray[np.float64]) -> dict[str, Any]:
    wins = win_matrix(scores)  # (policies, policies, prompts)
    ties = np.array([[prompt_ties(a, b).mean() for b in scores] for a in scores])
    pairs = [_pair(study, a, b, scores, wins[a, b]) for a, b in combinations(range(len(study.names)), 2)]
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


def _pair(study: Study, a: int, b: int, scores: NDArray[np.float64], wins: NDArray[np.float64]) -> dict[str, Any]:
    clusters = study.bootstrap.clusters
    if clusters is None:
        clusters = range(len(wins))
    outcomes, first, second = (prompt_means(row, clusters) for row in (wins, scores[a].mean(1), scores[b].mean(1)))
    sign, permutation = sign_test(outcomes), permutation_test(outcomes, seed=study.bootstrap.seed)
    lengths = (study.answers[a].lengths, study.answers[b].lengths)
    texts = (study.answers[a].texts, study.answers[b].texts)
    numbers: dict[str, Any] = {
        "a": study.names[a],
        "b": study.names[b],
        "sign": {"wins": sign.wins, "losses": sign.losses, "ties": sign.ties, "p_value": plain(sign.p_value)},
        "permutation": {"p_value": plain(permutation.p_value), "exact": permutation.exact},
        "paired_t": {"p_value": plain(paired_t_test(first, second).p_value)},
        "length_controlled": _controlled(length_controlled(wins, *lengths, study.bootstrap)),
        "style_controlled": None,
        "more_prompts": prompts_to_decide(outcomes, study.bootstrap.confidence),
    }
    if any(any(count_markdown(text).values()) for one in texts for row in one for text in row):
        numbers["style_controlled"] = _controlled(style_controlled(wins, texts, lengths, study.bootstrap))
    return numbers


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


def warnings(report: dict[str, Any]) -> list[str]:
    """Where the deciding judge's verdict hangs on length, and where correction for many comparisons takes one away."""
    judge = report["settings"]["decided_by"]
    found = []
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


SECTION = Section("standing", "Who beats whom, and how sure that is", build, view, warnings=warnings)
