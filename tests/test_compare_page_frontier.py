"""the figure of reward against KL: where points lie, by hand, and what stands beside them."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from rlhf.compare.frontier.measuring import Curve, Measured
from rlhf.compare.page import render_page
from rlhf.compare.page.frontier_figure import frontier_figures, kl_ticks
from rlhf.compare.report import build_report
from rlhf.compare.study import Study
from tests.frontier_cases import point
from tests.study_cases import study

N = 40


def frontier_study(curves: dict[str, Curve], names: list[str] | None = None, **changes: Any) -> Study:
    """Three policies whose frontier is made of points by hand."""
    made = study([[0.0] * N, [1.0] * N, [2.0] * N], [[0.0] * N] * 3, names)
    values = {"start": point("start", 0, 0, 0, N), "num_start": 1, "decided_by": "gold", "proxy": "reward_model"}
    measured = Measured(curves, left_out=[], num_prompts=N, **(values | changes))
    return dataclasses.replace(made, measured={"frontier": measured})


def curve(run: str, *figures: tuple[float, float], steps: list[int | None] | None = None) -> Curve:
    """A method's points, (KL, gold) each."""
    points = [point(run, kl, gold, gold, N) for kl, gold in figures]
    return Curve(points, steps or [None] * len(points))


def best_of_n() -> Curve:
    """Best of 2 and of 4, at the upper bounds of their KL."""
    points = [dataclasses.replace(point("best-of-n", kl, 0.5, 0.5, N), setting=n, kl_is_bound=True)
              for n, kl in (("2", np.log(2) - 1 / 2), ("4", np.log(4) - 3 / 4))]  # fmt: skip
    return Curve(points, [None, None])


def test_points_lie_on_a_square_root_scale() -> None:
    report = build_report(frontier_study({"dpo": curve("dpo", (1, 1), (4, 2), steps=[10, None])}))
    wide, narrow = frontier_figures(report)
    assert (wide.kind, wide.width, narrow.kind, narrow.width) == ("wide", 720, "narrow", 350)
    # The axis ends at 1.05 times the largest KL, 4.2: a nat lies at the square root of 1/4.2 of its width.
    places = {text: x for x, text in wide.x_ticks}
    assert places["0"] == wide.left
    assert places["1"] == pytest.approx(wide.left + (wide.right - wide.left) * (1 / 4.2) ** 0.5, abs=0.06)
    dpo, start = wide.methods
    assert dpo.lines == [
        " ".join(f"{places[kl]},{y}" for kl, y in [("0", y_of(wide, 0)), ("1", y_of(wide, 1)), ("4", y_of(wide, 2))])
    ]
    assert [mark.hollow for mark in dpo.marks] == [True, False] and not start.marks[0].hollow
    assert dpo.marks[0].told == "dpo, at 1: 1.00 1.00 to 1.00 at 1.00 1.00 to 1.00 nats"
    assert wide.note == ["Filled: a finished run; hollow: its checkpoints. Bars: 95% intervals."]
    assert len(narrow.note) == 2
    assert (start.name, start.style) == ("sft, the start", "start")


def y_of(figure: Any, gold: float) -> float:
    """The height of a value of gold, between the lowest and the highest mark of the axis."""
    marks = {float(text): y for y, text in figure.y_ticks}
    low, high = min(marks), max(marks)
    return round(marks[low] + (marks[high] - marks[low]) * (gold - low) / (high - low), 1)


def test_runs_of_one_point_are_joined_in_order_of_kl() -> None:
    points = [point(run, kl, 1, 1, N) for run, kl in (("high", 0.5), ("low", 4.0), ("middle", 2.0))]
    report = build_report(frontier_study({"dpo": Curve(points, [None] * 3)}, start=None))
    (line,) = frontier_figures(report)[0].methods[0].lines
    x = [float(place.split(",")[0]) for place in line.split()]
    assert frontier_figures(report)[1].note == ["Bars: 95% intervals."]  # no checkpoint, so nothing is hollow
    assert len(x) == 3 and x == sorted(x)


def test_each_method_has_its_colour_and_shape_and_best_of_n_is_dashed() -> None:
    curves = {f"m{at}": curve(f"m{at}", (1.0, 1.0 + at)) for at in range(8)} | {"best-of-n": best_of_n()}
    wide = frontier_figures(build_report(frontier_study(curves)))[0]
    *trained, best, _ = wide.methods
    looks = [(one.style, re.sub(r"[\d. -]", "", one.legend_mark)) for one in trained]
    assert [style for style, _ in looks] == [f"method-{at % 6}" for at in range(8)] and len(set(looks)) == 8
    assert best.style == "best-of-n" and [mark.label[2] for mark in best.marks if mark.label] == ["2", "4"]
    assert "at most 0.64" in best.marks[1].told
    places = [one.legend for one in wide.methods]
    assert len(set(places)) == 10 and max(y for _, y in places) < wide.top


@pytest.mark.parametrize(
    ("most", "width", "marks"),
    # Labels are 46 pixels apart or more. Of 4 over 100 pixels 2 lies at 71, too near to 4; 1 at 50; 0.5 at 35, too near
    # to 0. Of 1000 over 300 pixels 512 lies at 215, 256 at 152, 128 at 107, too near to that; 64 at 76.
    [(4.0, 100, [0, 1, 4]), (0.0, 100, [0]), (0.04, 100, [0, 0.02]), (1000, 300, [0, 64, 256, 512])],
)
def test_marks_of_the_kl_axis_have_room(most: float, width: float, marks: list[float]) -> None:
    assert kl_ticks(most or 1e-12, width) == marks


def test_a_long_name_is_cut_and_no_text_is_markup() -> None:
    name = "<b>" + "x" * 300
    page = render_page(one := frontier_study({name: curve(name, (1, 1), (3, 2))}), build_report(one))
    drawn = re.findall(r'<svg class="frontier.*?</svg>', page, re.S)
    assert len(drawn) == 2 and all("<b>" not in svg for svg in drawn)
    names = re.findall(r'<text class="name"[^>]*>([^<]*)', "".join(drawn))
    assert [len(text) < 110 and text.endswith("…") for text in names if "xxx" in text] == [True, True]


def test_no_points_no_figure() -> None:
    report = build_report(frontier_study({"dpo": curve("dpo", (1, 1))}))
    report["frontier"]["points"] = []
    assert frontier_figures(report) == []


def test_unknown_ends_have_no_whisker() -> None:
    report = build_report(frontier_study({"dpo": curve("dpo", (1, 1))}))
    report["frontier"]["points"][0]["gold"] |= {"low": None, "high": None}
    (mark,) = frontier_figures(report)[0].methods[0].marks
    assert mark.upright is None and mark.across is not None
