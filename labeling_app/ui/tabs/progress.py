"""How far the work is, when it will be done, who does how much, and what stands in the way."""

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import gradio as gr
from sqlalchemy import Connection

from labeling_app.form import Form
from labeling_app.overview import (
    DAY,
    Forecast,
    SetProgress,
    answers_per_day,
    flag_counts,
    forecast,
    in_hand,
    set_progress,
    skips,
)
from labeling_app.sets import close_set, reopen_set, set_priority
from labeling_app.ui.lead import Call, Lead
from labeling_app.ui.tabs.pieces import (
    ago,
    cards,
    counted,
    day_of,
    first_heading,
    harmless,
    heading,
    markup,
    percent,
    rows_or,
    table,
)

NUM_DAYS = 14  # in the plot
NUM_COLUMNS = 7  # days in the table
NUM_LINES = 7  # people with a colour of their own; the others share one
OTHERS = "everybody else"
_MOST_SKIPS = 50
# Told apart by colour-blind people too (Okabe and Ito 2008), in shades that show on white and on black.
_COLOURS = ("#4f6bed", "#d9822b", "#1f9d76", "#c65f9e", "#3aa0d8", "#b8452e", "#8a7a1f", "#7a8699")

_SETS = ("Set", "Tasks done", "Labels in", "Labels left", "Annotators a task", "Priority", "State")
_HELD = ("Who", "Task", "Set", "Since", "State")
_REASONS = ("Reason", "Skips")
_SKIPS = ("Who", "Task", "Set", "Reason", "Note")
_FLAGS = ("Flag", "Answers that set it", "Responses", "Set by several people")


def progress_tab(desk: Lead, opened: Sequence[Any]) -> None:
    """Build the tab inside an open gr.Tab; it is filled on `opened` events."""
    refresh = first_heading("Where the work stands")
    headline = markup(elem_id="headline")
    heading("Sets of tasks", "Those with a higher priority are handed out first. A closed set is not handed out.")
    set_table = table(_SETS, "Sets of tasks", ("26%", "16%", "10%", "11%", "15%", "9%", "13%"), "wide")
    with gr.Row(elem_classes="form-row"):
        chosen = gr.Dropdown([], label="Set", scale=3)
        priority = gr.Number(label="Its priority", precision=2, scale=1, min_width=120)
        prioritise = gr.Button("Change priority", scale=1, min_width=130)
        close = gr.Button("Close the set", scale=1, min_width=130)
        reopen = gr.Button("Open it again", scale=1, min_width=130)
    heading("Labels a day", "Every answer but practice, by the day in the server's time zone.")
    plot = gr.BarPlot(
        x="day",
        y="labels",
        color="who",
        x_title=" ",
        y_title="labels",
        color_title=" ",
        show_label=False,
        buttons=[],
        height=280,
    )
    widths = ("27%", "8%", *["9%"] * (NUM_COLUMNS - 1), "11%")
    days = table(_day_headers(datetime.now().date()), "Labels a day", widths, "wide")
    heading("In people's hands", "Handed out and not answered yet. Who stays away too long loses the task to others.")
    held = table(_HELD, "In people's hands", ("24%", "16%", "26%", "18%", "16%"), "medium")
    heading("Skipped", "Tasks that people gave back, and why.")
    reasons = table(_REASONS, "Reasons for skips", ("75%", "25%"))
    with gr.Accordion("Each skip", open=False):
        skipped = table(_SKIPS, "Skips", ("18%", "12%", "22%", "22%", "26%"), "wide")
    heading("Flags", "How often people marked a response.")
    flags = table(_FLAGS, "Flags", ("40%", "21%", "16%", "23%"), "medium")

    controls = [priority, close, reopen]
    outputs = [headline, set_table, chosen, *controls, plot, days, held, reasons, skipped, flags]

    def show(call: Call, wanted: int | None = None) -> list[Any]:
        return show_progress(desk, call, wanted)

    def change(call: Call, set_id: int | None, new: float | None) -> list[Any]:
        desk.write(call, lambda c: set_priority(c, _id(set_id), _number(new), call.person.id, call.now))
        gr.Info("The priority is changed.")
        return show_progress(desk, call, set_id)

    def shut(call: Call, set_id: int | None) -> list[Any]:
        desk.write(call, lambda c: close_set(c, _id(set_id), call.person.id, call.now))
        gr.Info("The set is closed. What is in people's hands may still be answered.")
        return show_progress(desk, call, set_id)

    def open_again(call: Call, set_id: int | None) -> list[Any]:
        desk.write(call, lambda c: reopen_set(c, _id(set_id), call.person.id, call.now))
        gr.Info("The set is open again.")
        return show_progress(desk, call, set_id)

    def choose(call: Call, set_id: int | None) -> list[Any]:
        return set_controls(desk.read(set_progress), set_id)

    desk.on([*opened, refresh.click], show, [chosen], outputs)
    desk.on([chosen.input], choose, [chosen], controls)
    desk.on([prioritise.click], change, [chosen, priority], outputs)
    desk.on([close.click], shut, [chosen], outputs)
    desk.on([reopen.click], open_again, [chosen], outputs)


def show_progress(desk: Lead, call: Call, wanted: int | None = None) -> list[Any]:
    """The values of all that is on the tab."""
    now = call.now

    def job(connection: Connection) -> Any:
        since = now - max(NUM_DAYS, NUM_COLUMNS) * DAY
        return (
            set_progress(connection),
            forecast(connection, now),
            answers_per_day(connection, since),
            in_hand(connection, now),
            skips(connection),
            flag_counts(connection),
        )

    rows, expected, per_day, held, skipped, flags = desk.read(job)
    today = datetime.fromtimestamp(now).date()
    counts: Counter[str] = Counter(skip.reason for skip in skipped)
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    choices = [(row.name, row.id) for row in rows]
    value = wanted if wanted in [id for _, id in choices] else (choices[0][1] if choices else None)
    return [
        headline(rows, expected, len(held), now),
        rows_or([_set_row(row) for row in rows], _SETS, "No set is loaded yet."),
        gr.update(choices=choices, value=value),
        *set_controls(rows, value),
        plot_update(per_day, today),
        rows_or(day_rows(per_day, today), _day_headers(today), "Nobody has answered yet."),
        rows_or([_held_row(row, now) for row in held], _HELD, "Nothing is in anybody's hands."),
        rows_or(reasons, _REASONS, "Nothing was skipped."),
        rows_or([_skip_row(row) for row in skipped[:_MOST_SKIPS]], _SKIPS, "Nothing was skipped."),
        rows_or([_flag_row(row, desk.desk.form()) for row in flags], _FLAGS, "No flag was set."),
    ]


def set_controls(rows: Sequence[SetProgress], set_id: int | None) -> list[Any]:
    """The priority of the chosen set, and which of close and open it is for."""
    row = next((row for row in rows if row.id == set_id), None)
    is_closed = row is not None and row.is_closed
    return [
        gr.update(value=row.priority if row else None),
        gr.update(interactive=row is not None and not is_closed),
        gr.update(interactive=is_closed),
    ]


def headline(rows: Sequence[SetProgress], expected: Forecast, num_held: int, now: float) -> str:
    """The figures on top, a bar, and the forecast in a sentence."""
    num_tasks, num_done = sum(row.num_tasks for row in rows), sum(row.num_done for row in rows)
    share = num_done / num_tasks if num_tasks else 0.0
    open_rows = [row for row in rows if not row.is_closed]
    left = sum(row.num_tasks - row.num_done for row in open_rows)
    closed_left = sum(row.num_tasks - row.num_done for row in rows) - left
    figures = cards(
        [
            ("Done", f"{num_done:,}", f"of {counted(num_tasks, 'task')}"),
            ("Left", f"{left:,}", counted(expected.labels_left, "label") + " to go"),
            ("In hand", f"{num_held:,}", "handed out, not answered"),
            ("Done by", _around(expected, now), _range(expected, now)),
        ]
    )
    bar = (
        f'<div class="bar" role="img" aria-label="{percent(share)} of the tasks are done">'
        f'<span style="width: {share:.2%}"></span></div>'
    )
    aside = f" {counted(closed_left, 'task')} in closed sets are not counted as left." if closed_left else ""
    return f'{figures}{bar}<p class="note">{harmless(forecast_sentence(expected, rows) + aside)}</p>'


def forecast_sentence(expected: Forecast, rows: Sequence[SetProgress]) -> str:
    """Where the forecast comes from and how sure it is."""
    if expected.labels_left <= 0:
        return "All open sets are done." if rows else "No tasks are loaded."
    if expected.pace is None or expected.days is None:
        return f"No forecast yet: {expected.reason}."
    words = f"At the pace of the last {expected.num_days} days, {expected.pace:,.0f} labels a day, "
    words += f"it takes {_days(expected.days)}. "
    if expected.latest is None:
        words += f"How many labels a day brings varies so much that it may take far longer; {_days(expected.earliest)} "
        words += "is the least to expect."
    else:
        words += f"Four times in five such a forecast holds: between {_days(expected.earliest, bare=True)} and "
        words += f"{_days(expected.latest)}, if the coming days are like the last."
    if any(row.extra_vote and row.labels_left for row in rows if not row.is_closed):
        words += " Where two people disagree, one more label is asked for: those to come are not in it."
    return words


def _days(days: float | None, bare: bool = False) -> str:
    whole = max(1, round(days or 0))
    return f"{whole:,}" if bare else counted(whole, "day")


def _around(expected: Forecast, now: float) -> str:
    if expected.labels_left <= 0:
        return "now"
    return "open" if expected.days is None else day_of(now + expected.days * DAY)


def _range(expected: Forecast, now: float) -> str:
    if expected.earliest is None:
        return "nothing is left" if expected.labels_left <= 0 else "too early to tell"
    first = day_of(now + expected.earliest * DAY)
    return f"from {first}, no end in sight" if expected.latest is None else _between(first, expected.latest, now)


def _between(first: str, latest: float, now: float) -> str:
    last = day_of(now + latest * DAY)
    return f"about {first}" if first == last else f"{first} to {last}"


def _set_row(row: SetProgress) -> list[str]:
    if not row.num_tasks:
        state = f"{counted(row.num_known, 'known task')}, for checks"
        return [
            row.name,
            "none",
            "none",
            "none",
            "everybody",
            f"{row.priority:g}",
            "closed" if row.is_closed else state,
        ]
    done = f"{row.num_done:,} of {row.num_tasks:,} ({percent(row.num_done / row.num_tasks)})"
    overlap = f"{row.overlap}, one more if they disagree" if row.extra_vote else f"{row.overlap}"
    state = "closed" if row.is_closed else "open" if row.labels_left else "done"
    return [row.name, done, f"{row.labels_in:,}", f"{row.labels_left:,}", overlap, f"{row.priority:g}", state]


def plot_update(per_day: dict[str, dict[date, int]], today: date) -> dict[str, Any]:
    """Stacked bars, one a day; the busiest people have a colour each."""
    import pandas

    totals = {name: sum(counts.values()) for name, counts in per_day.items()}
    busiest = sorted(totals, key=lambda name: (-totals[name], name))[:NUM_LINES]
    days = [today - timedelta(days=back) for back in range(NUM_DAYS - 1, -1, -1)]
    labels = [str(day.day) for day in days]  # short: fourteen of them stand side by side on a phone
    rows: dict[tuple[str, str], int] = {(label, name): 0 for label in labels for name in busiest}
    for name, counts in per_day.items():
        for day, label in zip(days, labels, strict=True):
            key = (label, name if name in busiest else OTHERS)
            rows[key] = rows.get(key, 0) + counts.get(day, 0)
    frame = pandas.DataFrame([(*key, count) for key, count in rows.items()], columns=["day", "who", "labels"])
    colours = dict(zip([*busiest, OTHERS], [*_COLOURS[: len(busiest)], _COLOURS[-1]], strict=True))
    span = f"{_date(days[0])} to {_date(days[-1])}"
    return gr.update(value=frame, sort=labels, color_map=colours, x_title=span)


def _date(day: date) -> str:
    return f"{day.day} {day:%B}"


def day_rows(per_day: dict[str, dict[date, int]], today: date) -> list[list[str]]:
    """A row a person, the busiest first, and one of all: the last days, the newest first."""
    days = [today - timedelta(days=back) for back in range(NUM_COLUMNS)]
    rows = [(name, [counts.get(day, 0) for day in days]) for name, counts in per_day.items()]
    rows = sorted(((name, row) for name, row in rows if any(row)), key=lambda item: (-sum(item[1]), item[0]))
    if len(rows) > 1:
        rows.append(("All together", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    return [[name, *(f"{count:,}" if count else "·" for count in row), f"{sum(row):,}"] for name, row in rows]


def _day_headers(today: date) -> list[str]:
    days = [today - timedelta(days=back) for back in range(1, NUM_COLUMNS)]
    return ["Who", "Today", *(f"{day:%a} {day.day}" for day in days), f"{NUM_COLUMNS} days"]


def _held_row(row: Any, now: float) -> list[str]:
    state = "time is over" if row.is_over else "begun" if row.has_draft else "not begun"
    kind = {"gold": " (check)", "repeat": " (repeat)", "practice": " (practice)"}.get(row.kind, "")
    return [row.person, row.task + kind, row.set_name, ago(now - row.since), state]


def _skip_row(row: Any) -> list[str]:
    return [row.person, row.task, row.set_name, row.reason, row.note or ""]


def _flag_row(row: Any, form: Form) -> list[str]:
    label = next((flag.label for flag in form.flags if flag.id == row.id), row.id)
    return [label, f"{row.num_answers:,}", f"{row.num_responses:,}", f"{row.num_shared:,}"]


def _id(set_id: int | None) -> int:
    return -1 if set_id is None else int(set_id)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
