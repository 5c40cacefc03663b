"""Reward against KL as a figure: where each mark, line and word lies, for the page's template to draw.

KL is on a square-root scale, as in Gao et al. 2023 (https://arxiv.org/abs/2210.10760): KL grows about with the square
of the distance that a policy has moved. One colour and one shape a method; the colours stand in report.css.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rlhf.compare.frontier.pool import BEST_OF_N
from rlhf.compare.frontier.words import measure_of, point_name
from rlhf.compare.page.scales import tick_label, ticks
from rlhf.compare.sentences import cell

NUM_COLOURS = 6  # `.method-0` to `.method-5` in report.css
_SHAPES = ("circle", "triangle", "diamond", "pentagon", "down", "cross")
_KL_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, *(float(2**power) for power in range(20)))
_GAP = 46.0  # between two labels of the KL axis
_LETTER = 6.9  # about the width of a letter at the legend's size
_LEGEND_ROW = 22.0


@dataclass(frozen=True)
class Mark:
    """A point: its outline as an SVG path, and the ends of its whiskers where they are known."""

    path: str
    hollow: bool
    told: str
    across: tuple[float, float, float] | None = None  # x, x, y
    upright: tuple[float, float, float] | None = None  # y, y, x
    label: tuple[float, float, str] | None = None


@dataclass(frozen=True)
class Method:
    """A method's marks, the lines through them, and its entry in the legend."""

    name: str
    style: str
    lines: list[str]
    marks: list[Mark]
    legend: tuple[float, float]
    legend_mark: str


@dataclass(frozen=True)
class Figure:
    """One drawing; `kind` says for which screens."""

    kind: str
    width: float
    height: float
    title: str
    left: float
    right: float
    top: float
    floor: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    y_label: str
    note: list[str]
    methods: list[Method]


@dataclass(frozen=True)
class _Panel:
    left: float
    right: float
    top: float
    floor: float
    most_kl: float
    low: float
    high: float

    def x(self, kl: float) -> float:
        return round(self.left + (self.right - self.left) * (max(kl, 0.0) / self.most_kl) ** 0.5, 1)

    def y(self, value: float) -> float:
        return round(self.floor - (self.floor - self.top) * (value - self.low) / (self.high - self.low), 1)


def frontier_figures(report: dict[str, Any]) -> list[Figure]:
    """The figure for wide screens and paper, and the one for phones; none where there is no point."""
    if not report["frontier"]["points"]:
        return []
    return [_figure(report, "wide", 720.0, 300.0), _figure(report, "narrow", 350.0, 270.0)]


def _figure(report: dict[str, Any], kind: str, width: float, height: float) -> Figure:
    part, reference = report["frontier"], report["settings"]["reference"]
    start = [] if part["start"] is None else [part["start"]]
    everything = [*start, *part["points"]]
    marks = _value_ticks(everything)
    most_kl = 1.05 * max(end for one in everything for end in _ends(one["kl"])) or 1.0
    names = list(dict.fromkeys(one["method"] for one in part["points"]))
    entries, num_rows = _legend([*names, *(_start_name(reference) for _ in start)], width - 12)
    top = 38 + num_rows * _LEGEND_ROW
    panel = _Panel(56.0, width - 14, top, top + height, most_kl, marks[0], marks[-1])
    methods = []
    for at, name in enumerate(names):
        points = [one for one in part["points"] if one["method"] == name]
        look = _look(name, at - (BEST_OF_N in names[:at]))
        methods.append(_method(panel, name, points, start, look, entries[at]))
    methods += [_start_method(panel, one, reference, entries[-1]) for one in start]
    measure, note = _capital(measure_of(part)), _note(report, kind)
    return Figure(
        kind,
        width,
        panel.floor + 48 + 16 * len(note),
        f"{measure} against KL to {reference}: {', '.join(names)}",
        panel.left,
        panel.right,
        panel.top,
        panel.floor,
        [(panel.x(kl), f"{kl:g}") for kl in kl_ticks(most_kl, panel.right - panel.left)],
        [(panel.y(value), tick_label(value, marks[1] - marks[0], "gold")) for value in marks],
        f"KL to {_cut(reference, width / 2)}, nats a response" + (", square-root scale" if kind == "wide" else ""),
        measure,
        note,
        methods,
    )


def _note(report: dict[str, Any], kind: str) -> list[str]:
    """What marks and bars mean, in a line, or in two on a phone."""
    lines = [f"Bars: {report['settings']['confidence']:.0%} intervals."]
    if any(one["step"] is not None for one in report["frontier"]["points"]):
        lines.insert(0, "Filled: a finished run; hollow: its checkpoints.")
    return lines if kind == "narrow" else [" ".join(lines)]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _start_name(reference: str) -> str:
    return f"{reference}, the start"


def _start_method(panel: _Panel, start: dict[str, Any], reference: str, legend: tuple[float, float]) -> Method:
    told = f"{reference}: {cell(start['gold'], 'gold')}"
    path = outline("square", panel.x(start["kl"]["mean"]), panel.y(start["gold"]["mean"]))
    marks = [Mark(path, False, told, None, _upright(panel, start))]
    return Method(_cut(_start_name(reference), panel.right), "start", [], marks, legend, _legend_mark("square", legend))


def _legend_mark(shape: str, legend: tuple[float, float]) -> str:
    return outline(shape, legend[0] + 14, legend[1] - 4)


def _ends(interval: dict[str, Any]) -> list[float]:
    return [value for value in (interval["mean"], interval["low"], interval["high"]) if value is not None]


def _value_ticks(points: Iterable[dict[str, Any]]) -> list[float]:
    ends = [end for one in points for end in _ends(one["gold"])]
    return ticks(min(ends), max(ends), (1.0, 2.0, 2.5, 5.0, 10.0))


def kl_ticks(most_kl: float, width: float) -> list[float]:
    """0 and round numbers up to `most_kl`, as many as a square-root axis of this width has room for."""
    chosen: list[float] = []
    for kl in reversed([kl for kl in _KL_TICKS if kl <= most_kl]):
        x = width * (kl / most_kl) ** 0.5
        if x >= _GAP and (not chosen or width * (chosen[-1] / most_kl) ** 0.5 - x >= _GAP):
            chosen.append(kl)
    return [0.0, *reversed(chosen)]


def _legend(names: Sequence[str], width: float) -> tuple[list[tuple[float, float]], int]:
    """Where each entry stands, in as many rows as the width asks for."""
    places: list[tuple[float, float]] = []
    x, row = 0.0, 0
    for name in names:
        length = 36 + _LETTER * len(_cut(name, width)) + 18
        if places and x + length - 18 > width:
            x, row = 0.0, row + 1
        places.append((6 + x, 18 + row * _LEGEND_ROW))
        x += length
    return places, row + 1


def _cut(name: str, width: float) -> str:
    """A name that fits into the legend; the table of points has it whole."""
    most = int((width - 60) / _LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _look(method: str, at: int) -> tuple[str, str]:
    """A method's class in report.css and its shape: no two are alike of the first thirty-six."""
    if method == BEST_OF_N:
        return "best-of-n", "square"
    return f"method-{at % NUM_COLOURS}", _SHAPES[(at + at // NUM_COLOURS) % len(_SHAPES)]


def _method(
    panel: _Panel,
    name: str,
    points: list[dict[str, Any]],
    start: list[dict[str, Any]],
    look: tuple[str, str],
    legend: tuple[float, float],
) -> Method:
    style, shape = look
    # A run of several points is a path from the start; runs of one point each are a sweep, joined in order of KL.
    runs = [list(run) for _, run in groupby(points, key=lambda one: one["run"])]
    alone = sorted((run[0] for run in runs if len(run) == 1), key=lambda one: one["kl"]["mean"])
    lines = [_line(panel, [*start, *run]) for run in [*(run for run in runs if len(run) > 1), alone] if run]
    marks = [_mark(panel, one, shape) for one in points]
    return Method(_cut(name, panel.right), style, lines, marks, legend, _legend_mark(shape, legend))


def _line(panel: _Panel, points: list[dict[str, Any]]) -> str:
    return " ".join(f"{panel.x(one['kl']['mean'])},{panel.y(one['gold']['mean'])}" for one in points)


def _mark(panel: _Panel, point: dict[str, Any], shape: str) -> Mark:
    x, y = panel.x(point["kl"]["mean"]), panel.y(point["gold"]["mean"])
    kl = cell(point["kl"], "kl")
    told = f"{point_name(point)}: {cell(point['gold'], 'gold')} at {'at most ' * point['kl_is_bound']}{kl} nats"
    low, high = point["kl"]["low"], point["kl"]["high"]
    across = None if low is None or high is None else (panel.x(low), panel.x(high), y)
    label = (x - 7, y - 8, point["setting"]) if point["method"] == BEST_OF_N else None
    return Mark(outline(shape, x, y), point["step"] is not None, told, across, _upright(panel, point), label)


def _upright(panel: _Panel, point: dict[str, Any]) -> tuple[float, float, float] | None:
    low, high = point["gold"]["low"], point["gold"]["high"]
    if low is None or high is None:
        return None
    return panel.y(low), panel.y(high), panel.x(point["kl"]["mean"])


_CORNERS = {
    "square": [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
    "triangle": [(0.0, -6.2), (5.8, 4.2), (-5.8, 4.2)],
    "down": [(0.0, 6.2), (5.8, -4.2), (-5.8, -4.2)],
    "diamond": [(0.0, -6.6), (5.4, 0.0), (0.0, 6.6), (-5.4, 0.0)],
    "pentagon": [(0.0, -5.8), (5.5, -1.8), (3.4, 4.7), (-3.4, 4.7), (-5.5, -1.8)],
    "cross": [
        *[(-2.0, -6.0), (2.0, -6.0), (2.0, -2.0), (6.0, -2.0), (6.0, 2.0), (2.0, 2.0)],
        *[(2.0, 6.0), (-2.0, 6.0), (-2.0, 2.0), (-6.0, 2.0), (-6.0, -2.0), (-2.0, -2.0)],
    ],
}


def outline(shape: str, x: float, y: float) -> str:
    """A shape around a place, as the `d` of an SVG path."""
    if shape == "circle":
        return f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"
    return "M" + "L".join(f"{x + across:.1f} {y + down:.1f}" for across, down in _CORNERS[shape]) + "z"
