"""The cleaning steps, each alone."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data import clean
from rlhf.data.formats import Example


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> Example:
    return Example("preference", "a, row 1", user(prompt), (chosen, rejected), **more)


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\u2028b\u0085c\x0cd", "a\nb\nc\nd"),
        ("a \t\nb  ", "a\nb"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("a\n \n\t\n\nb", "a\n\nb"),  # lines of blanks are empty lines
        ("a\u00a0b\u202fc\u2009d", "a b c d"),
        ("a\u200bb\ufeffc\u00add\u2060", "abcd"),
        ("e\u0301", "\u00e9"),  # NFC: one character
        ("a\x00b\x1b[1mc\x7f\x9f", "ab[1mc"),
        ("a\ud800b", "ab"),  # half a pair: no UTF-8 file can hold it
        ("def f():\n    if x:\n\treturn  1", "def f():\n    if x:\n\treturn  1"),  # code stays as it is
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),  # a family is joined by U+200D
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian spells with U+200C
    ],
)
def test_tidy_text(text: str, tidy: str) -> None:
    assert clean.tidy_text(text) == tidy


@given(st.text(st.characters()))
def test_tidy_text_is_idempotent_and_always_encodable(text: str) -> None:
    once = clean.tidy_text(text)
    assert clean.tidy_text(once) == once
    once.encode()


def test_tidy_trims_turns_and_keeps_the_indentation_of_text() -> None:
    example = Example(
        "demonstration",
        "",
        [{"role": "system", "content": " "}, {"role": "user", "content": "\n hi\u00a0"}],
        (" yes\n",),
        meta={"k\u200b": "v\x00", "n": 3},
    )
    text = Example("text", "", text="\n\n    x = 1\n    y = 2\n\n")
    (demonstration, document), dropped = clean.tidy([example, text])
    assert demonstration.prompt == user("hi") and demonstration.replies == ("yes",)
    assert demonstration.meta == {"k": "v", "n": 3}
    assert document.text == "    x = 1\n    y = 2"
    assert not dropped


def test_tidy_joins_turns_of_one_role() -> None:
    turns = [*user("a"), {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}, *user("d")]
    (joined,), _ = clean.tidy([Example("preference", "", turns, ("e", "f"))])
    assert [message["content"] for message in joined.prompt] == ["a", "b\n\nc", "d"]
    turns = [*user("a"), {"role": "assistant", "content": "b"}]
    (joined,), _ = clean.tidy([Example("demonstration", "", turns, ("c",))])
    assert joined.prompt == user("a") and joined.replies == ("b\n\nc",)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example("text", "w"), "empty text"),
        (Example("prompt", "w"), "empty prompt"),
        (Example("prompt", "w", user("")), "empty prompt"),
        (Example("prompt", "w", [*user("a"), {"role": "assistant", "content": ""}]), "an empty turn in the prompt"),
        (pair("a", "b", ""), "empty reply"),
        (Example("demonstration", "w", user("a"), ("",)), "empty reply"),
        (Example("ranking", "w", user("a"), ("a", "", "c")), "empty reply"),
    ],
)
def test_drop_empty(example: Example, reason: str) -> None:
    good = pair("a", "b", "c")
    assert clean.drop_empty([good, example]) == ([good], [(reason, example.where)])


def test_drop_unanswerable() -> None:
    bad = Example("prompt", "w", [*user("a"), {"role": "assistant", "content": "b"}])
    good = [Example("text", "t", text="x"), pair("a", "b", "c")]
    assert clean.drop_unanswerable([*good, bad]) == (good, [("the prompt ends with the assistant's turn", "w")])


def test_drop_equal_sides() -> None:
    partly = Example("ranking", "w", user("a"), ("x", "x", "y"))  # two of its pairs are still of use
    kept, dropped = clean.drop_equal_sides([pair("a", "b", "b"), partly, pair("a", "b", "c")])
    assert kept == [partly, pair("a", "b", "c")]
    assert [reason for reason, _ in dropped] == ["all replies are equal"]


def test_drop_contradictions_takes_both() -> None:
    kept, dropped = clean.drop_contradictions([pair("a", "b", "c"), pair("a", "c", "b"), pair("z", "c", "b")])
    assert kept == [pair("z", "c", "b")]
    assert [reason for reason, _ in dropped] == ["the same pair is also there the other way round"] * 2


def test_drop_duplicates_keeps_what_differs_in_anything_that_is_learnt_from() -> None:
    first = replace(pair("a", "b", "c"), where="1", meta={"source": "x"})
    copy = replace(first, where="2", meta={"source": "y"})
    others = [
        pair("a", "c", "b"),
        Example("ranking", "", user("a"), ("b", "c"), verdicts=(1,)),
        Example("ranking", "", user("a"), ("b", "c"), verdicts=(2,)),
        Example("ranking", "", user("a"), ("b", "c"), verdicts=(2,), annotator="x"),
        replace(first, split="test"),  # in two splits: an error later, not a copy
    ]
    assert clean.drop_duplicates([first, copy, *others]) == ([first, *others], [("exact duplicate", "2")])


def test_keep_max_rows_is_a_sample_in_order_that_the_seed_fixes() -> None:
    examples = [pair(f"prompt {n}", "a", "b") for n in range(200)]
    kept, dropped = clean.keep_max_rows(examples, 50, seed=0)
    assert len(kept) == 50 and [reason for reason, _ in dropped] == ["over max_rows 50"] * 150
    places = [examples.index(example) for example in kept]
    assert places == sorted(places) and max(places) > 100  # not just the first ones
    assert clean.keep_max_rows(examples, 50, seed=0)[0] == kept
    assert clean.keep_max_rows(examples, 50, seed=1)[0] != kept
    assert clean.keep_max_rows(examples, 200, seed=0) == (examples, [])
    assert clean.keep_max_rows(examples, None, seed=0) == (examples, [])


def test_the_report_counts_what_every_step_kept_changed_and_dropped() -> None:
    examples = [
        replace(pair("a ", "b", "c"), where="1"),
        replace(pair("a", "b", "c"), where="2"),
        replace(pair("a", "", "c"), where="3"),
        replace(pair("", "b", "c"), where="4"),
        replace(pair("e", "", "c"), where="5"),
    ]
    kept, reports = clean.clean(examples, clean.STEPS)
    assert len(kept) == 1
    by_name = {report.step: report for report in reports}
    assert by_name["tidy the text"].changed == 1 and by_name["tidy the text"].kept == 5
    empty = by_name["drop what is empty"]
    assert (empty.kept, empty.dropped, empty.first) == (
        2,
        {"empty reply": 2, "empty prompt": 1},
        {"empty reply": "3", "empty prompt": "4"},
    )
    assert by_name["drop exact duplicates"].dropped == {"exact duplicate": 1}
    assert by_name["drop contradictions"].kept == 1
