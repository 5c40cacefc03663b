"""report.html: one file that opens from disk and asks no server for anything.

Model text reaches the page in two ways only: through jinja's autoescape, and as JSON that the script
writes with `textContent`. A content security policy lets no other script run.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from rlhf.compare.headline import headline
from rlhf.compare.judges import GOLD, REWARD_MODEL, label
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sentences import (
    judge_sentence,
    number,
    people_sentences,
    percent,
    shown_mean,
    shown_span,
    warnings,
)
from rlhf.compare.statistics import UNDECIDED, disagreements, winners
from rlhf.compare.study import Study

_HERE = Path(__file__).parent
# Where a chart's scale begins and ends, in percent of its width, so that labels at the ends are not cut.
_LEFT, _RIGHT = 4.0, 96.0


@dataclass(frozen=True)
class Row:
    """One policy in a chart: places in percent of the width, and the same in words."""

    name: str
    mean: str
    span: str
    n: int
    at: float
    start: float | None
    end: float | None
    kind: str  # "baseline", "clear" or "open": how its dot is drawn


@dataclass(frozen=True)
class Chart:
    """A measure of all policies: a dot with a whisker each, on one scale."""

    title: str
    about: str
    rows: list[Row]
    ticks: list[tuple[float, str]]
    line: float | None = None


def render_page(study: Study, report: dict[str, Any]) -> str:
    """The whole page as text; `report` is the content of report.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_HERE, _HERE.parent / "sections"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "judge": label}
    shown = [section for section in SECTIONS if section.key in report]
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        report=report,
        settings=report["settings"],
        verdict=_sentence(headline(report)),
        sentences={name: _sentence(judge_sentence(report, name)) for name in report["settings"]["judges"]},
        people=[_sentence(sentence) for sentence in people_sentences(report)],
        warnings=[*warnings(report), *(line for section in shown for line in section.warnings(report))],
        sections=[(section, section.view(report)) for section in shown],
        charts=charts(report),
        measures=_measures(report),
        shown_mean=shown_mean,
        shown_span=shown_span,
        undecided=UNDECIDED,
        examples=examples(study),
        script=Markup(script),
        script_hash=_csp_hash(script),
        style=Markup(style),
        style_hash=_csp_hash(style),
    )


def _sentence(text: str) -> str:
    # A policy's name at the start keeps its case.
    return (UNDECIDED.capitalize() + text.removeprefix(UNDECIDED) if text.startswith(f"{UNDECIDED}:") else text) + "."


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _measures(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The measures that some policy has: key to title and one plain sentence."""
    settings = report["settings"]
    baseline, decided_by = settings["baseline"], label(settings["decided_by"])
    everything = {
        "win_rate": (
            f"Win rate against {baseline}",
            f"Share of prompts on which {decided_by} prefers this policy's response to that of {baseline}; ties count "
            "half. An interval that holds 50% decides nothing.",
        ),
        "gold": ("Gold", "Mean of the measure to trust; higher is better."),
        "score": (
            "Score",
            "Mean score of the reward model; higher pleases it more. A rise that gold does not share is no gain.",
        ),
        "kl": (
            "KL",
            f"How far the policy has moved from {settings['reference']}, in nats a response: the price of its gains.",
        ),
        "length": (
            "Length",
            "Mean length of a response in tokens, the end of turn included; judges often favour longer text.",
        ),
        "finished": (
            "Finished",
            f"Share of responses that ended by themselves and were not cut at {settings['max_new_tokens']:,} tokens.",
        ),
    }
    numbers = report["policies"].values()
    return {key: told for key, told in everything.items() if any(policy[key] for policy in numbers)}


def charts(report: dict[str, Any]) -> list[Chart]:
    """A chart for each measure but `finished`, which the table holds."""
    return [_chart(report, key, title, about) for key, (title, about) in _measures(report).items() if key != "finished"]


def _chart(report: dict[str, Any], key: str, title: str, about: str) -> Chart:
    there = {name: numbers[key] for name, numbers in report["policies"].items() if numbers[key]}
    ends = [end for one in there.values() for end in (one["mean"], one["low"], one["high"]) if end is not None]
    line = 0.5 if key == "win_rate" else None
    always = {"win_rate": [0.5], "kl": [0.0]}.get(key, [])  # the scale shows these wherever the policies are
    # A fifth is no step for win rates: it would miss 50%.
    steps = (1.0, 2.5, 5.0, 10.0) if key == "win_rate" else (1.0, 2.0, 2.5, 5.0, 10.0)
    marks = _ticks(min(ends + always), max(ends + always), steps)
    low, high = marks[0], marks[-1]

    def place(value: float | None) -> float | None:
        return None if value is None else round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 3)

    rows = []
    for name, one in there.items():
        decided = key != "win_rate" or not one["low"] <= 0.5 <= one["high"]
        kind = "baseline" if name == report["settings"]["baseline"] else "clear" if decided else "open"
        at = place(one["mean"])
        assert at is not None
        span = shown_span(one, key)
        rows.append(Row(name, shown_mean(one, key), span, one["n"], at, place(one["low"]), place(one["high"]), kind))
    step = marks[1] - marks[0]
    ticks = [(place(mark) or 0.0, _tick_label(mark, step, key)) for mark in marks]
    return Chart(title, about, rows, ticks, place(line))


def _ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """Three to six round numbers that reach from at most `low` to at least `high`."""
    width = max(high - low, 1e-9, abs(high) * 1e-3)
    power = 10.0 ** math.floor(math.log10(width / 4))
    step = next(power * factor for factor in steps if width / (power * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick_label(value: float, step: float, key: str) -> str:
    if key == "win_rate":
        return f"{value:.0%}" if step >= 0.01 and round(step * 1000) % 10 == 0 else f"{value:.1%}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if f"{step:e}".startswith("2.5") and step < 10 else 0)
    return f"{value:,.{digits}f}"


def examples(study: Study) -> dict[str, Any]:
    """What the browser of side-by-side texts shows: numbers are rounded, texts are whole."""
    judges = list(study.scores)
    scores = list(study.scores.values())
    best = {name: winners(one) for name, one in study.scores.items()}
    both = GOLD in study.scores and REWARD_MODEL in study.scores
    opposed = disagreements(study.scores[GOLD], study.scores[REWARD_MODEL]) if both else np.zeros(len(study.prompts))
    means = scores[0].mean(2)  # (policies, prompts)
    return {
        "policies": study.names,
        "judges": [{"key": name, "label": label(name)} for name in judges],
        "prompts": [
            {
                "id": prompt.id,
                "messages": [[message["role"], message["content"]] for message in prompt.messages],
                "best": {name: best[name][at] for name in judges},
                "disagree": bool(opposed[at]),
                "difference": round(float(means[:, at].max() - means[:, at].min()), 6),
                "policies": [
                    [
                        {
                            "text": response.text,
                            "tokens": response.sampling["num_tokens"],
                            "finished": response.sampling["finished"],
                            "scores": [number(float(one[policy, at, index])) for one in scores],
                        }
                        for index, response in enumerate(answer.responses[at])
                    ]
                    for policy, answer in enumerate(study.answers)
                ],
            }
            for at, prompt in enumerate(study.prompts)
        ],
    }
