"""Who does the work, how well, and what a lead can do about it: pause, leave out, invite."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from labeling_app.answer import Refused
from labeling_app.passwords import hash_password
from labeling_app.people import invite, list_people, set_password
from labeling_app.standing import leave_out, pause, put_back, resume
from labeling_app.ui.lead import Call, Lead
from labeling_app.ui.tabs.agreement import figure_row, position_words
from labeling_app.ui.tabs.pieces import ago, counted, first_heading, heading, percent, rows_or, table

_PEOPLE = (
    "Name",
    "Labels",
    "Time each",
    "Right on gold",
    "Same on repeats",
    "Agrees",
    "Weight",
    "Last answer",
    "State",
)
_ABOUT = ("What", "Value", "95% interval", "From", "What it means")
_BUTTONS = ("pause", "resume", "leave out", "put back", "password")


def annotators_tab(desk: Lead, opened: Sequence[Any]) -> None:
    """Build the tab inside an open gr.Tab; it is filled on `opened` events."""
    refresh = first_heading("Annotators", "Each share with its n. Choose somebody below to see what the figures mean.")
    widths = ("19%", "8%", "10%", "11%", "11%", "10%", "8%", "12%", "11%")
    people = table(_PEOPLE, "Annotators", widths, "wide")

    heading("One of them", "Nothing is ever deleted: what is left out can be put back.")
    chosen = gr.Dropdown([], label="Who", value=None)
    state = gr.Textbox(label="State", interactive=False, lines=1, visible=False)
    about = table(_ABOUT, "What is known about them", ("21%", "10%", "14%", "15%", "40%"), "wide", visible=False)
    reason = gr.Textbox(
        label="Reason", placeholder="Needed to pause somebody or to leave labels out", max_length=2000, visible=False
    )
    with gr.Row(elem_classes="buttons", visible=False) as row:
        buttons = {
            "pause": gr.Button("Pause", min_width=150),
            "resume": gr.Button("Let work again", min_width=150),
            "leave out": gr.Button("Leave labels out", min_width=150),
            "put back": gr.Button("Put labels back", min_width=150),
            "password": gr.Button("New password", min_width=150),
        }
    password = Secret("New password, shown once")

    heading("Invite somebody", "A link makes one account, once. Send it to the person it is for.")
    with gr.Row(elem_classes="form-row"):
        role = gr.Radio([("Annotator", "annotator"), ("Lead", "admin")], value="annotator", label="As", scale=2)
        days = gr.Number(7, label="Good for days", precision=0, minimum=1, maximum=365, scale=1, min_width=120)
        make = gr.Button("Make a link", variant="primary", scale=1, min_width=150)
    link = Secret("Invitation link, shown once")

    details = [state, about, reason, row, *buttons.values(), *password.parts]

    def show(call: Call, person_id: int | None = None) -> list[Any]:
        return show_people(desk, person_id)

    def anew(call: Call, person_id: int | None = None) -> list[Any]:
        return show_people(desk, person_id, is_new=True)

    def choose(call: Call, person_id: int | None) -> list[Any]:
        return show_person(desk, person_id)

    def act(what: str) -> Any:
        def work(call: Call, person_id: int | None, why: str) -> list[Any]:
            said, secret = change_person(desk, call, what, person_id, why or "")
            gr.Info(said)
            shown = show_people(desk, person_id, is_new=True) + show_person(desk, person_id)
            return [*shown[:-2], *shown_once(secret), "" if what in ("pause", "leave out") else why]

        work.__name__ = what.replace(" ", "_")
        return work

    def new_link(call: Call, role: str, days: float | None) -> Any:
        secret = desk.write(call, lambda c: invite(c, role, call.person.id, call.now, float(days or 0)))
        return shown_once(f"{call.origin}/join/{secret}")

    desk.on(opened, show, [chosen], [people, chosen])
    desk.on([refresh.click], anew, [chosen], [people, chosen])
    desk.on([chosen.change], choose, [chosen], details)
    for what, button in buttons.items():
        desk.on([button.click], act(what), [chosen, reason], [people, chosen, *details, reason])
    desk.on([make.click], new_link, [role, days], link.parts)


class Secret:
    """Something to pass on, shown until the next thing is done: a text, and a button that copies it."""

    def __init__(self, label: str) -> None:
        # Not Gradio's own copy button: it takes the label away from the text.
        with gr.Row(elem_classes="form-row"):
            text = gr.Textbox(label=label, interactive=False, visible=False, elem_classes="secret", scale=4)
            copy = gr.Button("Copy", visible=False, scale=0, min_width=110)
        copy.click(None, [text], js=_COPY, api_visibility="private")
        self.parts = [text, copy]


# Over plain http from another machine a browser has no clipboard to write to; then the old way.
_COPY = """async (text) => {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}"""


def shown_once(secret: str | None) -> list[dict[str, Any]]:
    """A Secret's parts: with a text, or hidden."""
    is_there = secret is not None
    return [gr.update(value=secret or "", visible=is_there), gr.update(visible=is_there)]


def show_people(desk: Lead, person_id: int | None, is_new: bool = False) -> list[Any]:
    """The table, and who can be chosen."""
    report = desk.judged.report(is_new)["annotators"]
    now = desk.desk.clock()
    everybody = desk.read(list_people)
    # Leads who never ranked anything would only be in the way.
    rows = [row for row in everybody if row["role"] == "annotator" or row["answers"]]
    rows.sort(key=lambda row: (row["left_out"] is not None, -row["answers"].get("task", 0), row["name"]))
    choices = [(row["name"] + (" (lead)" if row["role"] == "admin" else ""), row["id"]) for row in everybody]
    known = person_id in [id for _, id in choices]
    return [
        rows_or(
            [_row(row, report.get(row["name"]), now) for row in rows], _PEOPLE, "Nobody yet: invite somebody below."
        ),
        gr.update(choices=choices, value=person_id if known else None),
    ]


def _row(person: Mapping[str, Any], figures: Mapping[str, Any] | None, now: float) -> list[str]:
    counts = person["answers"]
    labels = f"{counts.get('task', 0):,}"
    last = "never" if person["last_at"] is None else ago(now - person["last_at"])
    if figures is None:
        return [person["name"], labels, *["none yet"] * 5, last, _state(person)]
    seconds = figures["seconds"]["value"]
    return [
        person["name"],
        labels,
        "none yet" if seconds is None else _duration(seconds),
        *(_share_of(figures[key]) for key in ("gold", "repeat", "agreement")),
        f"{figures['weight']['value']:.2f}",
        last,
        _state(person),
    ]


def _share_of(figure: Mapping[str, Any]) -> str:
    return "none yet" if figure["value"] is None else f"{percent(figure['value'])} of {figure['n']:,}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _state(person: Mapping[str, Any]) -> str:
    states = [word for word, key in (("left out", "left_out"), ("paused", "paused")) if person[key] is not None]
    if not states:
        return "works" if person["can_log_in"] else "cannot log in"
    return ", ".join(states)


def show_person(desk: Lead, person_id: int | None) -> list[Any]:
    """What is known about one person, and what can be done; hidden while nobody is chosen."""
    person = next((row for row in desk.read(list_people) if row["id"] == person_id), None)
    is_there = person is not None
    hidden = [gr.update(visible=False)] * 4
    if person is None:
        return [*hidden, *[gr.update(interactive=False)] * len(_BUTTONS), *shown_once(None)]
    figures = desk.judged.report()["annotators"].get(person["name"])
    rows = [] if figures is None else about_rows(figures)
    possible = {
        "pause": person["paused"] is None,
        "resume": person["paused"] is not None,
        "leave out": person["left_out"] is None,
        "put back": person["left_out"] is not None,
        "password": True,
    }
    return [
        gr.update(value=state_words(person), visible=is_there),
        rows_or(rows, _ABOUT, "They have not answered anything yet.") | {"visible": True},
        gr.update(visible=True),
        gr.update(visible=True),
        *[gr.update(interactive=possible[what]) for what in _BUTTONS],
        *shown_once(None),
    ]


def state_words(person: Mapping[str, Any]) -> str:
    """A person's state in a sentence, with the reasons that a lead gave."""
    words = []
    if person["left_out"] is not None:
        words.append(f"Their labels are left out: {person['left_out']}")
    if person["paused"] is not None:
        words.append(f"Paused: {person['paused']}")
    if not words:
        words.append("They work." if person["can_log_in"] else "Simulated, or without a password: cannot log in.")
    return "  ".join(words)


def about_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """The figures of one person, each with what it means."""
    seconds, quantiles = figures["seconds"], figures["seconds"].get("quantiles")
    median = "The median."
    if quantiles:
        median += f" Half of the answers take {_duration(quantiles['25'])} to {_duration(quantiles['75'])}."
    place = position_words(figures["first_place"])
    return [
        figure_row("Right on gold tasks", figures["gold"], "gold task", "Where the answer is known.", True),
        figure_row("Right in practice", figures["practice"], "practice task", "Before they began.", True),
        figure_row("Same on repeated tasks", figures["repeat"], "repeat", "Asked again, they said the same.", True),
        figure_row("Agrees with others", figures["agreement"], "pair of votes", "On the same two responses.", True),
        figure_row("Estimated accuracy", figures["accuracy"], "verdict", _ACCURACY, True),
        figure_row("Weight of a vote", figures["weight"], "shared verdict", "1 is the average; for weighted votes."),
        figure_row("First on screen wins", figures["first_place"], "answer", place, True),
        _seconds_row(seconds, median),
        figure_row("Too fast to have read it", figures["too_fast"], "answer", "Over 600 words a minute.", True),
    ]


_ACCURACY = "How often they are likely right, judged by whom others agree with (Dawid and Skene)."


def _seconds_row(figure: Mapping[str, Any], meaning: str) -> list[str]:
    if figure["value"] is None:
        return figure_row("Time for an answer", figure, "answer", meaning)
    span = "none" if figure["low"] is None else f"{_duration(figure['low'])} to {_duration(figure['high'])}"
    return ["Time for an answer", _duration(figure["value"]), span, counted(figure["n"], "answer"), meaning]


def change_person(desk: Lead, call: Call, what: str, person_id: int | None, why: str) -> tuple[str, str | None]:
    """Do one of _BUTTONS: `(what to say, a secret to show once or None)`. Raises Refused."""
    if person_id is None:
        raise Refused("Choose somebody first.")
    id, by, now = int(person_id), call.person.id, call.now
    if what == "pause":
        desk.write(call, lambda c: pause(c, id, why, by, now))
        return "Paused. What they have begun is kept.", None
    if what == "resume":
        desk.write(call, lambda c: resume(c, id, by, now))
        return "They can work again.", None
    if what == "leave out":
        moved = desk.write(call, lambda c: leave_out(c, id, why, by, now))
        said = f"{counted(moved.num_left_out, 'label')} left out; their places are free again."
        return said + (f" {counted(moved.num_counted, 'late label')} moved up." if moved.num_counted else ""), None
    if what == "put back":
        moved = desk.write(call, lambda c: put_back(c, id, by, now))
        said = f"{counted(moved.num_counted, 'label')} put back."
        more = f" {counted(moved.num_surplus, 'label')} kept aside: others took the place." if moved.num_surplus else ""
        return said + more, None
    assert what == "password"
    new = "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(4))
    hashed = hash_password(new)  # before the write: it takes a while
    desk.write(call, lambda c: set_password(c, id, hashed, now, by))
    return "The old password is over, and so are their sessions.", new


_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike
