"""The lead's page: who may what there, progress and agreement, on a real store whose numbers were counted by hand."""

# fixtures are imported by name

import asyncio
import html
import re
from datetime import date, timedelta
from pathlib import Path

import gradio as gr
import pytest
from sqlalchemy import select

from labeling_app.answer import Refused
from labeling_app.handout import Rules
from labeling_app.judged import Judged, read_judged
from labeling_app.overview import Forecast, set_progress
from labeling_app.quality import report
from labeling_app.routes import Denied, Desk
from labeling_app.session import Sessions, signing_key
from labeling_app.sets import close_set
from labeling_app.standing import pause, resume
from labeling_app.store import Store
from labeling_app.store.schema import log, people
from labeling_app.ui.admin import admin_page
from labeling_app.ui.lead import Call, Lead
from labeling_app.ui.tabs import agreement, annotators, export, progress
from tests.label_project import FORM, HOSTILE, NOW, Project, act, rows, texts, values_for

pytest_plugins = ("tests.label_project",)

# ---- Who may


def test_every_event_checks_who_calls_it(made: Project, tmp_path: Path) -> None:
    page = admin_page(made.desk, tmp_path)
    functions = [function for function in page.fns.values() if function.fn is not None]
    assert len(page.fns) == len(functions) + 2  # two that copy a text, in the browser
    assert len(functions) >= 15
    made.desk.store.write(lambda c: pause(c, made.people["Leo"], "on leave", None, NOW))
    for function in functions:
        assert function.concurrency_limit is None
        assert function.api_visibility == "private"
        values = values_for(function)
        for name, sentence in (
            (None, "Please log in again."),
            ("Ana", "This page is for the project&#x27;s lead."),
            ("Leo", "This page is for the project&#x27;s lead."),
        ):
            with pytest.raises(gr.Error) as refused:
                # As Gradio's endpoints call it.
                asyncio.run(page.process_api(function, values, request=made.request(name)))
            assert refused.value.message == sentence


def test_a_lead_s_events_answer(made: Project, tmp_path: Path) -> None:
    page = admin_page(made.desk, tmp_path)
    show = [function for function in page.fns.values() if function.name == "show"]
    assert len(show) == 4  # a tab each; disputes have routes of their own
    for function in show:
        answer = asyncio.run(page.process_api(function, values_for(function), request=made.request("Lea")))
        assert len(answer["data"]) == len(function.outputs)


def test_a_session_that_ended_may_nothing_more(made: Project, lead: Lead) -> None:
    request = made.request("Leo")
    assert lead.checked(lambda call: call.person.name)(request) == "Leo"
    made.desk.store.write(lambda c: c.execute(people.update().where(people.c.name == "Leo").values(epoch=1)))
    with pytest.raises(gr.Error, match="Please log in again"):
        lead.checked(lambda call: call.person.name)(request)


def test_who_stops_leading_between_reading_and_writing_changes_nothing(made: Project, lead: Lead, call: Call) -> None:
    made.desk.store.write(lambda c: pause(c, made.people["Lea"], "gone", None, NOW))
    with pytest.raises(Denied, match="project's lead"):
        lead.write(call, lambda c: pytest.fail("the job ran"))


def test_what_goes_wrong_is_said_in_a_sentence_and_never_as_markup(
    made: Project, lead: Lead, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(call: Call) -> None:
        raise Refused(f"{HOSTILE} is not paused.")

    def break_down(call: Call) -> None:
        raise KeyError(HOSTILE)

    request = made.request("Lea")
    with pytest.raises(gr.Error) as refused:
        lead.checked(refuse)(request)
    assert "<" not in refused.value.message and "${" not in refused.value.message
    assert html.unescape(refused.value.message) == f"{HOSTILE} is not paused."
    with pytest.raises(gr.Error) as broken:
        lead.checked(break_down)(request)
    assert broken.value.message == "Something went wrong; the server&#x27;s log says what."
    assert "break_down failed" in caplog.text
    made.desk.store.close()
    with pytest.raises(gr.Error):
        lead.checked(lambda call: lead.write(call, lambda c: None))(request)


# ---- Progress


def test_progress_in_numbers(made: Project, lead: Lead, call: Call) -> None:
    shown = progress.show_progress(lead, call)
    headline, sets, chosen, priority, close, reopen, plot, days, held, reasons, skipped, flags = shown
    assert re.findall(r"<b>([^<]*)</b>", headline)[:3] == ["1", "4", "1"]
    assert "of 5 tasks" in headline and "4 labels to go" in headline and "20% of the tasks are done" in headline
    assert rows(sets) == [
        ["many.jsonl", "0 of 1 (0%)", "2", "1", "2, one more if they disagree", "2", "open"],
        ["pairs.jsonl", "1 of 4 (25%)", "6", "3", "2, one more if they disagree", "1", "open"],
        ["gold.jsonl", "none", "none", "none", "everybody", "0", "2 known tasks, for checks"],
    ]
    assert [name for name, _ in chosen["choices"]] == ["many.jsonl", "pairs.jsonl", "gold.jsonl"]
    assert (priority["value"], close["interactive"], reopen["interactive"]) == (2.0, True, False)
    assert [(row[0], row[1:]) for row in rows(days)] == [
        ("Ana", ["2", "1", "1", "2", "·", "·", "·", "6"]),
        (HOSTILE, ["1", "·", "2", "1", "·", "·", "·", "4"]),
        ("All together", ["3", "1", "3", "3", "·", "·", "·", "10"]),
    ]
    assert rows(held) == [[HOSTILE, "p-3", "pairs.jsonl", "just now", "not begun"]]
    assert rows(reasons) == [["too hard", "1"]]
    assert rows(skipped) == [[HOSTILE, "p-2", "pairs.jsonl", "too hard", "I am no ${lawyer}"]]
    assert rows(flags) == [["Harmful", "1", "1", "0"]]
    frame = plot["value"]
    assert frame["labels"].sum() == 10 and set(frame["who"]) == {"Ana", HOSTILE}
    assert list(frame["day"].unique()) == plot["sort"] and len(plot["sort"]) == progress.NUM_DAYS


def test_names_go_nowhere_but_into_cells_choices_and_the_plot(made: Project, lead: Lead, call: Call) -> None:
    page = admin_page(made.desk, lead.exports)
    shown = [
        *progress.show_progress(lead, call),
        *agreement.show_agreement(lead.judged.report()),
        *annotators.show_people(lead, None),
        *annotators.show_person(lead, made.people[HOSTILE]),
        *export.show_preview(lead, "none", 0.0, 1, [HOSTILE]),
    ]
    markup = [value for value in shown if isinstance(value, str)]  # what goes into gr.HTML comes bare
    assert len(markup) == 3
    assert not any("Ben" in text or "${" in text for text in markup)
    tables = [block for block in page.blocks.values() if isinstance(block, gr.Dataframe)]
    assert len(tables) == 12
    assert all(block.datatype == "str" for block in tables)
    assert not any(isinstance(block, gr.Markdown) for block in page.blocks.values())


def test_the_busiest_have_a_colour_each_and_the_others_share_one() -> None:
    today = date(2026, 3, 2)
    per_day = {f"person {n}": {today: n, today - timedelta(days=40): 99} for n in range(1, 11)}
    plot = progress.plot_update(per_day, today)
    totals = plot["value"].groupby("who")["labels"].sum().to_dict()
    assert totals == {f"person {n}": n for n in range(4, 11)} | {progress.OTHERS: 1 + 2 + 3}
    assert set(plot["color_map"]) == set(totals)
    assert plot["sort"][-2:] == ["1", "2"] and plot["x_title"] == "17 February to 2 March"


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Forecast(0, reason="nothing is left to label"), "All open sets are done."),
        (Forecast(5, 1, reason="work began yesterday"), "No forecast yet: work began yesterday."),
        (
            Forecast(100, 7, 12.4, 8.1, 5.6, 13.7),
            "At the pace of the last 7 days, 12 labels a day, it takes 8 days. Four times in five such a forecast "
            "holds: between 6 and 14 days, if the coming days are like the last.",
        ),
        (
            Forecast(100, 2, 50.0, 2.0, 0.9, None),
            "At the pace of the last 2 days, 50 labels a day, it takes 2 days. How many labels a day brings varies so "
            "much that it may take far longer; 1 day is the least to expect.",
        ),
    ],
)  # fmt: skip
def test_the_forecast_in_words(lead: Lead, expected: Forecast, words: str) -> None:
    sets = [row for row in lead.read(set_progress) if not row.extra_vote]
    assert progress.forecast_sentence(expected, sets) == words


def test_a_set_is_closed_opened_and_put_first_from_the_page(made: Project, lead: Lead, tmp_path: Path) -> None:
    page = admin_page(made.desk, tmp_path)
    request = made.request("Lea")
    pairs = next(row.id for row in lead.read(set_progress) if row.name == "pairs.jsonl")
    act(page, "shut", request, pairs)
    assert next(row.is_closed for row in lead.read(set_progress) if row.id == pairs)
    act(page, "open_again", request, pairs)
    act(page, "change", request, pairs, 7.5)
    first = lead.read(set_progress)[0]
    assert (first.name, first.is_closed, first.priority) == ("pairs.jsonl", False, 7.5)
    with pytest.raises(gr.Error, match="A priority is a number"):
        act(page, "change", request, pairs, None)
    with pytest.raises(gr.Error, match="There is no such set"):
        act(page, "shut", request, None)
    who = made.desk.store.read(lambda c: c.execute(select(log.c.person_id).where(log.c.action == "set_priority")))
    assert list(who.scalars()) == [made.people["Lea"]]


def test_a_closed_set_is_said_not_to_be_waited_for(made: Project, lead: Lead, call: Call) -> None:
    pairs = next(row.id for row in lead.read(set_progress) if row.name == "pairs.jsonl")
    made.desk.store.write(lambda c: close_set(c, pairs, made.people["Lea"], NOW))
    shown = progress.show_progress(lead, call, pairs)
    assert "3 tasks in closed sets are not counted as left." in shown[0]
    assert [part["interactive"] for part in shown[4:6]] == [False, True]
    assert rows(shown[1])[-1][0] == "pairs.jsonl" and rows(shown[1])[-1][-1] == "closed"


# ---- Agreement


def test_agreement_in_numbers(lead: Lead) -> None:
    verdict, figures, kappas = agreement.show_agreement(lead.judged.report())
    # Ana and Ben on p-0, p-1 and the three pairs of k-0: the same on one of five.
    by_name = {row[0]: row for row in rows(figures)}
    assert by_name["Same verdict, ties too"][1::2] == ["20%", "5 pairs of votes"]
    assert by_name["Kendall's W"][1] == "0.00" and by_name["Kendall's W"][3] == "1 task"
    assert by_name["Kendall's W"][4].endswith("Rankings at random would give 0.50.")
    assert by_name["First on screen wins"][3] == "10 answers"
    # Kappa with every pair in both orders: observed 1/5, chance 1/2.
    assert rows(kappas) == [["Ana", HOSTILE, "-0.60", "-1.00 to 1.00", "5 verdicts", "not told from chance"]]
    assert "So far agreement cannot be told from chance" in verdict and "3 tasks that several people ranked" in verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "begins"),
    [
        (0.85, 0.8, 0.9, "People agree very well."),
        (0.8, 0.7, 0.9, "People agree very well."),
        (0.7, 0.6, 0.8, "People agree well."),
        (0.5, 0.4, 0.6, "People agree on much, but not on all."),
        (0.3, 0.2, 0.4, "People agree a little."),
        (0.1, 0.05, 0.2, "People agree hardly more than chance"),
        (0.1, -0.05, 0.2, "So far agreement cannot be told from chance"),
        (-0.1, -0.4, 0.2, "So far agreement cannot be told from chance"),
        (-0.4, -0.5, -0.3, "People contradict each other more often"),
        (0.5, None, None, "Too few tasks are shared"),
    ],
)
def test_alpha_in_words(value: float, low: float | None, high: float | None, begins: str) -> None:
    assert agreement.alpha_words(value, low, high).startswith(begins)


def test_a_wide_interval_is_said_to_be_one() -> None:
    assert "This rests on few tasks" in agreement.alpha_words(0.5, 0.2, 0.7)
    assert "This rests on few tasks" not in agreement.alpha_words(0.5, 0.4, 0.6)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.9, 0.7, 1.0, "almost perfect"),
        (0.6, 0.5, 0.7, "substantial"),
        (0.4, 0.3, 0.5, "moderate"),
        (0.2, 0.1, 0.3, "fair"),
        (0.1, 0.01, 0.2, "slight"),
        (0.1, -0.1, 0.2, "not told from chance"),
        (-0.5, -0.7, -0.3, "against each other"),
        (1.0, None, None, "too few to tell"),
    ],
)
def test_kappa_in_words(value: float, low: float | None, high: float | None, words: str) -> None:
    assert agreement.kappa_words(value, low, high) == words


@pytest.mark.parametrize(
    ("value", "p", "holds"),
    [
        (0.5, 1.0, "No sign of one (p = 1.00)."),
        (0.6, 0.0612, "No sign of one (p = 0.061)."),
        (0.6, 0.049, "People lean to the first one (p = 0.049)."),
        (0.4, 0.0002, "People lean to the last one (p < 0.001)."),
    ],
)
def test_position_bias_in_words(value: float, p: float, holds: str) -> None:
    assert holds in agreement.position_words({"value": value, "p": p})


def test_an_undefined_figure_says_why() -> None:
    missing = {"value": None, "low": None, "high": None, "n": 0, "reason": "nobody shares a task"}
    assert agreement.figure_row("Alpha", missing, "task", "Much.") == [
        "Alpha",
        "none yet",
        "none",
        "none",
        "Not defined: nobody shares a task.",
    ]
    pointed = {"value": 0.5, "low": None, "high": None, "n": 1, "reason": "no interval: one task only"}
    assert agreement.figure_row("Alpha", pointed, "task", "Much.") == [
        "Alpha",
        "0.50",
        "none",
        "1 task",
        "Much. No interval: one task only.",
    ]


def test_nothing_is_ever_nan_or_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "empty.db"))
    desk = Desk(store, Sessions(store.write(signing_key)), lambda: FORM, Rules(), lambda: NOW)
    empty = Lead(desk, None)
    call = Call(None, None, NOW, "")  # type: ignore[arg-type]
    shown = [
        *progress.show_progress(empty, call),
        *agreement.show_agreement(empty.judged.report()),
        *annotators.show_people(empty, None),
        *annotators.show_person(empty, None),
        *export.show_preview(empty, "none", 0.1, 1, []),
        export.list_runs(None),
    ]
    store.close()
    words = texts(shown)
    assert not [text for text in words if re.search(r"\b(nan|NaN|None|inf)\b", text)]
    assert any("No tasks are loaded." in text for text in words)
    assert any("No agreement to tell of yet: fewer than two annotators share a task." in text for text in words)
    assert any("Nothing to export yet." in text for text in words)


def test_the_report_is_computed_once_for_many(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = report.quality_report
    monkeypatch.setattr(report, "quality_report", lambda *args: computed.append(1) or real(*args))
    judged = Judged(made.desk.store)
    first = judged.report()
    assert judged.report() is first and judged.report(is_new=True) is first  # nothing was done since
    assert len(computed) == 1
    made.desk.store.write(lambda c: pause(c, made.people["Ana"], "ill", None, NOW))
    assert judged.report() is first  # a few seconds old
    assert judged.report(is_new=True) == first  # a pause changes no figure
    assert len(computed) == 2
    made.desk.store.write(lambda c: resume(c, made.people["Ana"], None, NOW))
    judged.report()
    monkeypatch.setattr("labeling_app.judged.KEEP_SECONDS", 0.0)
    judged.report()
    judged.report()
    assert len(computed) == 3


def test_gold_is_known_by_the_id_that_rankings_have(made: Project) -> None:
    _, rankings, golds = made.desk.store.read(read_judged)
    asked = {row.task_id for row in rankings if row.kind == "gold"}
    assert asked and asked <= set(golds)
    assert all(sorted(ranks.values()) == [1, 2] for ranks in golds.values())
