"""The lead's page: what it shows of people and lets a lead do to them; the export; the pieces of all tabs."""

# fixtures are imported by name

import html
import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from labeling_app.answer import Refused
from labeling_app.passwords import verify_password
from labeling_app.people import list_people, open_invitation, person_of
from labeling_app.store.schema import log, people
from labeling_app.ui.admin import CSS, admin_page
from labeling_app.ui.lead import Lead
from labeling_app.ui.tabs import agreement, annotators, export
from labeling_app.ui.tabs.pieces import ago, harmless, percent
from tests.label_project import DAY, HOSTILE, NOW, Project, act, rows

pytest_plugins = ("tests.label_project",)

# ---- Annotators


def test_people_with_their_figures(made: Project, lead: Lead) -> None:
    table, chosen = annotators.show_people(lead, made.people["Ana"])
    ana, ben = rows(table)
    assert ana[:6] == ["Ana", "5", "30 s", "100% of 1", "none yet", "20% of 5"]
    assert ben[:6] == [HOSTILE, "3", "30 s", "0% of 1", "none yet", "20% of 5"]
    assert ana[-2:] == ["just now", "cannot log in"]
    assert [name for name, _ in chosen["choices"]] == ["Ana", HOSTILE, "Lea (lead)", "Leo (lead)"]
    assert chosen["value"] == made.people["Ana"]


def test_what_is_known_of_one_person(made: Project, lead: Lead) -> None:
    state, about, *more = annotators.show_person(lead, made.people[HOSTILE])
    assert state == gr.update(value="Simulated, or without a password: cannot log in.", visible=True)
    by_name = {row[0]: row for row in rows(about)}
    assert by_name["Right on gold tasks"][1:4] == ["0%", "0% to 79%", "1 gold task"]  # Wilson's interval of 0 of 1
    assert by_name["Same on repeated tasks"][4] == "Not defined: no task was asked a second time yet."
    assert by_name["Time for an answer"][1] == "30 s"
    pause, resume, leave, back, password = more[2:7]
    assert [part["interactive"] for part in (pause, resume, leave, back, password)] == [True, False, True, False, True]
    nobody = annotators.show_person(lead, None)
    assert [part.get("visible") for part in nobody[:4]] == [False] * 4
    assert len(nobody) == 2 + len(more)


def test_a_lead_pauses_and_leaves_out_and_takes_both_back(made: Project, lead: Lead, tmp_path: Path) -> None:
    page, request, ben = admin_page(made.desk, tmp_path), made.request("Lea"), made.people[HOSTILE]

    def person() -> dict[str, Any]:
        return next(row for row in lead.read(list_people) if row["id"] == ben)

    for what in ("pause", "leave_out"):
        with pytest.raises(gr.Error, match="Please say why"):
            act(page, what, request, ben, " ")
        with pytest.raises(gr.Error, match="Choose somebody first"):
            act(page, what, request, None, "because")
    shown = act(page, "pause", request, ben, "call me")
    assert person()["paused"] == "call me"
    assert rows(shown[0])[1][-1] == "paused" and shown[2]["value"] == "Paused: call me" and shown[-1] == ""
    act(page, "leave_out", request, ben, "too fast")
    assert (
        person()["left_out"] == "too fast"
        and rows(annotators.show_people(lead, ben, True)[0])[-1][-1] == "left out, paused"
    )
    assert annotators.state_words(person()) == "Their labels are left out: too fast  Paused: call me"
    assert rows(agreement.show_agreement(lead.judged.report())[2])[0][0] == "Fewer than two people have answered."
    act(page, "put_back", request, ben, "")
    assert person()["left_out"] is None
    act(page, "resume", request, ben, "")
    assert person()["paused"] is None
    with pytest.raises(gr.Error, match="is not paused"):
        act(page, "resume", request, ben, "")


def test_a_new_password_is_shown_once_and_ends_the_old_sessions(made: Project, tmp_path: Path) -> None:
    page, ana = admin_page(made.desk, tmp_path), made.people["Ana"]
    before = made.desk.sessions.read(made.cookie("Ana"), NOW)
    assert before is not None
    shown = act(page, "password", made.request("Lea"), ana, "")
    secret = shown[-3]["value"]
    assert re.fullmatch(r"([a-z2-9]{4}-){3}[a-z2-9]{4}", secret)
    row = made.desk.store.read(lambda c: c.execute(select(people).where(people.c.id == ana)).one())
    assert verify_password(row.password_hash, secret)
    assert made.desk.store.read(lambda c: person_of(c, before)) is None
    logged = made.desk.store.read(lambda c: c.execute(select(log.c.body)).scalars().all())
    assert not any(secret in json.dumps(body) for body in logged)
    assert annotators.show_person(Lead(made.desk, None), ana)[-2:] == annotators.shown_once(None)


def test_an_invitation_is_a_link_of_this_very_address(made: Project, tmp_path: Path) -> None:
    page = admin_page(made.desk, tmp_path)
    shown = act(page, "new_link", made.request("Lea", "https://label.example"), "admin", 3)
    assert [part["visible"] for part in shown] == [True, True]
    address, secret = shown[0]["value"].rsplit("/", 1)
    assert address == "https://label.example/join"
    assert made.desk.store.read(lambda c: open_invitation(c, secret, NOW + 2.9 * DAY)) == "admin"
    with pytest.raises(Refused, match="expired"):
        made.desk.store.read(lambda c: open_invitation(c, secret, NOW + 3.1 * DAY))
    for role, days, sentence in (("admin", None, "up to 365 days"), ("owner", 7, "role"), ("admin", 9999, "365 days")):
        with pytest.raises(gr.Error, match=sentence):
            act(page, "new_link", made.request("Lea"), role, days)


# ---- Export


def test_every_label_is_accounted_for(lead: Lead) -> None:
    summary, sums, made = export.show_preview(lead, "none", 0.0, 1, [])
    assert rows(sums) == [
        ["exported", "8"],
        ["left out: gold tasks, whose answer is known", "2"],
        ["Together, which is every label that came in", "10"],
    ]
    # p-0, p-2 and p-3 by one side; p-1 and the two outer pairs of k-0 are ties; b of k-0 is in the middle of both.
    by_name = dict(rows(made))
    assert by_name["Preferences by votes"] == "3" and by_name["Ties: never trained on"] == "4"
    assert "of 10 that came in" in summary


def test_who_is_held_out_is_accounted_for_too(lead: Lead) -> None:
    _, sums, made = export.show_preview(lead, "reliability", 0.0, 1, [HOSTILE])
    assert rows(sums)[0] == ["exported", "5"]
    assert ["set aside: of people who are held out, in a file of their own", "3"] in rows(sums)
    assert rows(sums)[-1] == ["Together, which is every label that came in", "10"]
    assert dict(rows(made))["Preferences of held-out annotators"] != "0"


@pytest.mark.parametrize("counted", [9, 11])
def test_a_sum_that_does_not_add_up_is_said(counted: int) -> None:
    metrics = {"num_labels": 8, "num_labels_in": counted, "exclusions": {"labels": {"gold": 2, "surplus": 0}}}
    assert export.sum_rows(metrics)[-1] == ["Together, which is not what came in!", "10"]


def test_an_export_is_written_and_offered(lead: Lead, made: Project) -> None:
    assert export.list_runs(lead.exports) == '<p class="note">Nothing has been exported from here yet.</p>'
    name = export.write_run(lead, "none", 0.0, 1, [])
    assert lead.exports is not None
    run = json.loads((lead.exports / name / "run.json").read_text())
    assert (run["finished"], run["metrics"]["num_preferences"]) == (True, 3)
    lines = (lead.exports / name / "preferences.train.jsonl").read_text().splitlines()
    assert len(lines) == 3
    offered = export.list_runs(lead.exports)
    assert f'href="/api/admin/exports/{name}/preferences.train.jsonl"' in offered and "run.json" in offered


def test_without_a_folder_nothing_is_written(made: Project) -> None:
    with pytest.raises(Refused, match=r"^The app was started without a folder for exports; start it with --exports"):
        export.write_run(Lead(made.desk, None), "none", 0.0, 1, [])
    assert "--exports FOLDER" in export.list_runs(None)


def test_settings_that_cannot_be_are_refused(lead: Lead) -> None:
    with pytest.raises(Refused, match="min_votes is -1"):
        export.show_preview(lead, "none", 0.0, -1, [])
    with pytest.raises(Refused, match="weights is"):
        export.show_preview(lead, "all", 0.0, 1, [])
    summary, sums, _ = export.show_preview(lead, "none", 0.0, 9, [])
    assert "Nothing to export yet." in summary and "gives no preference" in summary
    assert rows(sums) == [["No export yet.", ""]]


# ---- Pieces


@given(st.text())
def test_harmless_text_is_text_and_nothing_else(text: str) -> None:
    made = harmless(text)
    assert not set(made) & set("<>\"'${`")
    assert html.unescape(made) == html.unescape(html.escape(text))


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.004, "0.4%"), (0.996, "99.6%"), (0.01, "1%")]
)
def test_shares_in_percent(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"), (86_400, "1 day ago")],
)
def test_how_long_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_colours_can_be_read() -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for the borders of controls, by day and by night."""
    colours = {name: pair for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
    for at in (0, 1):
        for ink in ("ink", "faint", "accent", "bad"):
            for paper in ("paper", "surface"):
                assert _contrast(colours[ink][at], colours[paper][at]) >= 4.5, (ink, paper, at)
        assert _contrast(colours["accent"][at], colours["accent-soft"][at]) >= 4.5
        assert _contrast(colours["on-accent"][at], colours["accent"][at]) >= 4.5
        assert _contrast(colours["edge"][at], colours["surface"][at]) >= 3
        assert _contrast(colours["edge"][at], colours["paper"][at]) >= 3


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
