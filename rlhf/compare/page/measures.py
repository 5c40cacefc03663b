"""The measures of all policies: their words, and a chart of each."""

from dataclasses import dataclass
from typing import Any

from rlhf.compare.judges import label
from rlhf.compare.page.scales import tick_label, ticks
from rlhf.compare.sentences import shown_mean, shown_span

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


def measures(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
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
    return [_chart(report, key, title, about) for key, (title, about) in measures(report).items() if key != "finished"]


def _chart(report: dict[str, Any], key: str, title: str, about: str) -> Chart:
    there = {name: numbers[key] for name, numbers in report["policies"].items() if numbers[key]}
    ends = [end for one in there.values() for end in (one["mean"], one["low"], one["high"]) if end is not None]
    line = 0.5 if key == "win_rate" else None
    always = {"win_rate": [0.5], "kl": [0.0]}.get(key, [])  # the scale shows these wherever the policies are
    # A fifth is no step for win rates: it would miss 50%.
    steps = (1.0, 2.5, 5.0, 10.0) if key == "win_rate" else (1.0, 2.0, 2.5, 5.0, 10.0)
    marks = ticks(min(ends + always), max(ends + always), steps)
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
    marked = [(place(mark) or 0.0, tick_label(mark, step, key)) for mark in marks]
    return Chart(title, about, rows, marked, place(line))
