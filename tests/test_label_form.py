"""The form in its YAML file, and the answers that it lets through."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labeling_app.answer import MAX_TEXT, Answer, Refused, disagree, is_right, read_answer, sent_form
from labeling_app.form import Choice, Form, from_dict, read_form
from rlhf.errors import UserError

ROOT = Path(__file__).parents[1]
FORM = Form(flags=(Choice("harmful", "Harmful"), Choice("wrong", "Wrong")), attributes=(Choice("helpful", "Helpful"),))
PAIR = ["r1", "r2"]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "forms").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_forms_that_we_ship_are_forms(path: Path) -> None:
    form = read_form(path)
    assert form.guidelines
    assert set(yaml.safe_load(path.read_text())) <= {field.name for field in dataclasses.fields(Form)}


def test_a_form_comes_back_from_the_store() -> None:
    form = dataclasses.replace(FORM, title="\ud800", guidelines="x \0", skip_reasons=("no", "never"), reason="required")
    assert from_dict(json.loads(json.dumps(form.to_dict()))) == form


def test_guidelines_are_told_apart_by_their_text() -> None:
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes, by definition
    assert Form(title="another").guidelines_sha256 == nothing
    assert Form(guidelines=" ").guidelines_sha256 != nothing
    assert len(Form(guidelines="\ud800").guidelines_sha256) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", "unknown key `titel`, did you mean `title`?; keys are title, guidelines, strength, both_bad,"),
        ("1: x", "unknown key `1`; keys are"),
        ("title: 3", "`title` should be text"),
        ("title:", "`title` should be text"),
        ("guidelines: [x]", "`guidelines` should be text"),
        ("strength: 1", "`strength` should be true or false"),
        ("both_bad: 'yes'", "`both_bad` should be true or false"),
        ("better_answer:", "`better_answer` should be true or false"),
        ("reason: maybe", "`reason` is 'maybe', should be optional, required or off"),
        ("reason: on", "`reason` is True, should be optional, required or off"),
        ("flags: harmful", "`flags`, item 1: should be {id: short_name, label: What people see}"),
        ("flags: [{id: a, label: A}, {id: b}]", "`flags`, item 2: should be {id: short_name, label: What people see}"),
        ("flags: [{id: a, label: 3}]", "`flags`, item 1: should be {id: short_name, label: What people see}"),
        ("flags: [{id: Bad, label: A}]", "`flags`, item 1: id 'Bad' should be lower-case letters, digits and _"),
        ("flags: [{id: no, label: A}]", "`flags`, item 1: id False should be lower-case letters, digits and _"),
        ("attributes: [{id: a, label: A}, {id: a, label: B}]", "`attributes` has `a` twice"),
        ("skip_reasons: []", "`skip_reasons` should be a list of one or more sentences"),
        ("skip_reasons: [1]", "`skip_reasons` should be a list of one or more sentences"),
        ("skip_reasons: no idea", "`skip_reasons` should be a list of one or more sentences"),
        ("- x", "should hold keys such as `title` and `flags`; see configs/"),
        ("", "should hold keys such as `title` and `flags`; see configs/"),
    ],
)
def test_each_mistake_has_its_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "form.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_form(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_off_is_off(tmp_path: Path) -> None:
    (tmp_path / "form.yaml").write_text("reason: off")
    assert read_form(tmp_path / "form.yaml").reason == "off"


@pytest.mark.parametrize(
    ("text", "line"), [("title: x\nflags: }", 2), ("title: x\n\nflags: [{id: a}", 3), ("\ta: 1", 1)]
)
def test_what_is_no_yaml_is_shown_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "form.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"form.yaml, line {line}: is no YAML \("):
        read_form(tmp_path / "form.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read \(No such file or directory\); name the form's"):
        read_form(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_form(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("title: Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml: is no YAML \('utf-8' codec can't decode"):
        read_form(tmp_path / "latin.yaml")


# --- answers ------------------------------------------------------------------------------------


def refused(sent: Any, form: Form = FORM, shown: list[str] = PAIR) -> str:
    with pytest.raises(Refused) as error:
        read_answer(sent, shown, form)
    return str(error.value)


def test_an_answer_is_kept_by_response_id() -> None:
    sent = {
        "ranks": [3, 1, 3],
        "flags": [["wrong", "harmful", "wrong"], [], []],
        "ratings": [{}, {"helpful": 0}, {}],
        "reason": " why ",
        "better_answer": "",
    }
    assert read_answer(sent, ["x", "y", "z"], FORM) == Answer(
        ranks={"x": 2, "y": 1, "z": 2},
        flags={"x": ["harmful", "wrong"]},
        ratings={"y": {"helpful": 0}},
        reason=" why ",
    )


@given(st.data())
def test_an_answer_goes_out_to_an_edit_as_it_came_in(data: st.DataObject) -> None:
    shown = [f"r{number}" for number in range(data.draw(st.integers(2, 5)))]
    ranks = data.draw(st.lists(st.integers(1, len(shown)), min_size=len(shown), max_size=len(shown)))
    tie = len(set(ranks)) == 1
    sent = {
        "ranks": ranks,
        "strength": None if len(shown) > 2 else 0 if tie else data.draw(st.integers(1, 3)),
        "both_bad": tie and data.draw(st.booleans()),
        "flags": [data.draw(st.lists(st.sampled_from(["harmful", "wrong"]))) for _ in shown],
        "ratings": [data.draw(st.dictionaries(st.just("helpful"), st.integers(0, 4))) for _ in shown],
        "reason": data.draw(st.text()),
        "better_answer": data.draw(st.text()),
    }
    answer = read_answer(sent, shown, FORM)
    order = data.draw(st.permutations(shown))
    shown_again = sent_form(json.loads(json.dumps(answer.to_dict())), order)
    assert read_answer(shown_again, order, FORM) == answer
    by_id = dict(zip(shown, ranks, strict=True))
    assert {(a, b): by_id[a] < by_id[b] for a in shown for b in shown} == {
        (a, b): answer.ranks[a] < answer.ranks[b] for a in shown for b in shown
    }
    assert set(answer.ranks.values()) == set(range(1, len(set(ranks)) + 1))


PLACES = "Please give each of the 2 responses a place."
BETTER = "Please say how much better the better one is."


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, "The answer did not arrive whole. Please send it again."),
        ([1, 2], "The answer did not arrive whole. Please send it again."),
        ({"ranks": [1, 2], "strength": 1, "policy": "a"}, "The answer has a part that is not asked for: 'policy'."),
        ({"ranks": [1, 2], "strength": 1, "x" * 99: 1}, f"The answer has a part that is not asked for: '{'x' * 39}."),
        ({}, PLACES),
        ({"ranks": "12"}, PLACES),
        ({"ranks": [1]}, PLACES),
        ({"ranks": [1, 2, 3]}, PLACES),
        ({"ranks": [0, 1]}, PLACES),
        ({"ranks": [1, 3]}, PLACES),
        ({"ranks": [1, 2.0]}, PLACES),
        ({"ranks": [1, True]}, PLACES),
        ({"ranks": [1, None]}, PLACES),
        ({"ranks": [1, 2]}, BETTER),
        ({"ranks": [1, 2], "strength": 0}, BETTER),
        ({"ranks": [1, 1], "strength": 1}, BETTER),
        ({"ranks": [1, 2], "strength": 4}, BETTER),
        ({"ranks": [1, 2], "strength": 1.0}, BETTER),
        ({"ranks": [1, 2], "strength": True}, BETTER),
        ({"ranks": [1, 2], "strength": math.nan}, BETTER),
        ({"ranks": [1, 2], "strength": 1, "both_bad": True}, "“All are bad” goes with a tie."),
        ({"ranks": [1, 1], "strength": 0, "both_bad": "yes"}, "“All are bad” goes with a tie."),
        ({"ranks": [1, 2], "strength": 1, "reason": 3}, "The reason did not arrive whole. Please send it again."),
        ({"ranks": [1, 2], "strength": 1, "better_answer": ["x"]}, "The better answer did not arrive whole. Please"),
        (
            {"ranks": [1, 2], "strength": 1, "reason": "x" * (MAX_TEXT + 1)},
            "The reason has 50,001 characters; at most 50,000 can be kept.",
        ),
        ({"ranks": [1, 2], "strength": 1, "flags": [[]]}, "The flags did not arrive whole. Please send them again."),
        ({"ranks": [1, 2], "strength": 1, "flags": {}}, "The flags did not arrive whole. Please send them again."),
        ({"ranks": [1, 2], "strength": 1, "flags": ["harmful", []]}, "A flag is not one of those on the form. Please"),
        ({"ranks": [1, 2], "strength": 1, "flags": [["x"], []]}, "A flag is not one of those on the form. Please"),
        ({"ranks": [1, 2], "strength": 1, "flags": [[["x"]], []]}, "A flag is not one of those on the form. Please"),
        ({"ranks": [1, 2], "strength": 1, "ratings": [{}]}, "The ratings did not arrive whole. Please send them again"),
        ({"ranks": [1, 2], "strength": 1, "ratings": [1, {}]}, "A rating is not one of those on the form. Please"),
        ({"ranks": [1, 2], "strength": 1, "ratings": [{"x": 1}, {}]}, "A rating is not one of those on the form."),
        ({"ranks": [1, 2], "strength": 1, "ratings": [{"helpful": 5}, {}]}, "Ratings go from 0 to 4."),
        ({"ranks": [1, 2], "strength": 1, "ratings": [{"helpful": True}, {}]}, "Ratings go from 0 to 4."),
        ({"ranks": [1, 2], "strength": 1, "ratings": [{"helpful": None}, {}]}, "Ratings go from 0 to 4."),
    ],
)
def test_each_answer_that_is_none_has_its_message(sent: Any, message: str) -> None:
    assert refused(sent).startswith(message)


def test_what_the_form_does_not_ask_is_refused() -> None:
    plain = Form(strength=False, both_bad=False, reason="off", better_answer=False)
    assert refused({"ranks": [1, 2], "strength": 1}, plain) == "How much better is not asked for here."
    assert (
        refused({"ranks": [1, 2, 3], "strength": 1}, FORM, ["x", "y", "z"]) == "How much better is not asked for here."
    )
    assert refused({"ranks": [1, 1], "both_bad": True}, plain) == "“All are bad” goes with a tie."
    for key in ("reason", "better_answer"):
        assert refused({"ranks": [1, 2], key: "x"}, plain) == "The answer has a text that is not asked for."
        assert read_answer({"ranks": [1, 2], key: " \n"}, PAIR, plain) == Answer({"r1": 1, "r2": 2})
    asked = dataclasses.replace(plain, reason="required")
    for reason in (None, "", " \n\u3000"):
        assert refused({"ranks": [1, 2], "reason": reason}, asked) == "Please say why, in a few words."
    assert read_answer({"ranks": [1, 2], "reason": "x"}, PAIR, asked).reason == "x"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), lambda inner: st.lists(inner)))
def test_whatever_a_browser_sends_it_is_taken_or_refused(value: Any) -> None:
    for key in ("ranks", "strength", "both_bad", "flags", "ratings", "reason", "better_answer"):
        try:
            read_answer({"ranks": [1, 2], "strength": 1} | {key: value}, PAIR, FORM)
        except Refused as error:
            assert str(error).endswith((".", "kept."))


# --- comparing answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "differ", "right"),
    [
        # Of two: the verdicts are the same or not.
        ("12", "12", False, True),
        ("12", "21", True, False),
        ("12", "11", True, False),
        ("11", "12", True, False),
        ("11", "11", False, True),
        # Of three: `disagree` sees reversals, `is_right` wants every known order, and any where none is known.
        ("123", "123", False, True),
        ("123", "213", True, False),
        ("123", "112", False, False),
        ("123", "111", False, False),
        ("122", "123", False, True),
        ("122", "132", False, True),
        ("122", "111", False, False),
        ("122", "212", True, False),
        ("111", "123", False, True),
    ],
)
def test_when_two_answers_disagree_and_when_one_is_right(one: str, other: str, differ: bool, right: bool) -> None:
    a, b = ({f"r{at}": int(rank) for at, rank in enumerate(ranks)} for ranks in (one, other))
    assert disagree(a, b) == disagree(b, a) == differ
    assert is_right(a, b) == right


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_who_contradicts_is_not_right_and_nobody_contradicts_themselves(ranks: list[int], data: st.DataObject) -> None:
    one = {f"r{at}": rank for at, rank in enumerate(ranks)}
    other = {id: data.draw(st.integers(1, 4)) for id in one}
    assert not disagree(one, one)
    assert is_right(one, one)
    assert not (disagree(one, other) and is_right(one, other))
