"""Every format becomes the same examples; every row that cannot says why."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.clean import STEPS, clean
from rlhf.data.convert import convert
from rlhf.data.formats import FORMATS, Columns, check_columns, choose_columns
from rlhf.data.outputs import build_records
from rlhf.errors import UserError
from rlhf.records import to_json

U, A, S = "user", "assistant", "system"


def says(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


QUESTION = says((U, "sky?"))
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: sky?\n\nAssistant:"
HH_PROMPT = says((U, "hi"), (A, "hello"), (U, "sky?"))

# (format, row, kind, prompt, replies)
KNOWN: list[tuple[str, dict[str, Any], str, list, tuple[str, ...]]] = [
    ("text", {"text": "The sky."}, "text", [], ()),
    ("prompt", {"prompt": "sky?"}, "prompt", QUESTION, ()),
    ("prompt", {"prompt": QUESTION}, "prompt", QUESTION, ()),
    ("prompt_completion", {"prompt": "sky?", "completion": "blue"}, "demonstration", QUESTION, ("blue",)),
    ("prompt_completion", {"prompt": QUESTION, "completion": says((A, "blue"))}, "demonstration", QUESTION, ("blue",)),
    (
        "prompt_completion",
        {"prompt": "sky?", "completion": "blue", "label": True},
        "demonstration",
        QUESTION,
        ("blue",),
    ),
    ("messages", {"messages": says((U, "sky?"), (A, "blue"))}, "demonstration", QUESTION, ("blue",)),
    ("messages", {"messages": QUESTION}, "prompt", QUESTION, ()),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "brief"},
                {"role": U, "content": [{"type": "text", "text": "sky?"}]},
            ]
        },
        "prompt",
        says((S, "brief"), (U, "sky?")),
        (),
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "sky?"}, {"from": "gpt", "value": "blue"}],
            "system": "brief",
        },
        "demonstration",
        says((S, "brief"), (U, "sky?")),
        ("blue",),
    ),
    ("alpaca", {"instruction": "sky?", "input": "", "output": "blue"}, "demonstration", QUESTION, ("blue",)),
    ("alpaca", {"instruction": "Sum", "input": "1 2", "output": "3"}, "demonstration", says((U, "Sum\n\n1 2")), ("3",)),
    ("alpaca", {"instruction": "sky?", "output": "blue"}, "demonstration", QUESTION, ("blue",)),
    ("preference", {"prompt": "sky?", "chosen": "blue", "rejected": "red"}, "preference", QUESTION, ("blue", "red")),
    (
        "preference",
        {"prompt": QUESTION, "chosen": says((A, "blue")), "rejected": says((A, "red"))},
        "preference",
        QUESTION,
        ("blue", "red"),
    ),
    (  # as in UltraFeedback: the sides repeat the prompt
        "preference",
        {"prompt": "sky?", "chosen": says((U, "sky?"), (A, "blue")), "rejected": says((U, "sky?"), (A, "red"))},
        "preference",
        QUESTION,
        ("blue", "red"),
    ),
    (  # as TRL's scripts write HH
        "preference",
        {"prompt": HH, "chosen": "blue", "rejected": "red"},
        "preference",
        HH_PROMPT,
        ("blue", "red"),
    ),
    (
        "implicit_preference",
        {"chosen": says((U, "sky?"), (A, "blue")), "rejected": says((U, "sky?"), (A, "red"))},
        "preference",
        QUESTION,
        ("blue", "red"),
    ),
    ("hh", {"chosen": HH + " blue", "rejected": HH + " red\n"}, "preference", HH_PROMPT, ("blue", "red")),
]


@pytest.mark.parametrize(("name", "row", "kind", "prompt", "replies"), KNOWN)
@pytest.mark.parametrize("forced", [False, True])
def test_known_formats(
    name: str, row: dict[str, Any], kind: str, prompt: list, replies: tuple[str, ...], forced: bool
) -> None:
    row = {
        **row,
        "topic": "sky",
        "n": 3,
        "ok": True,
        "tags": ["x"],
        "nan": float("nan"),
        "": "pandas index",
        "no": None,
    }
    found, columns = choose_columns([row], name if forced else "auto", Columns(), "a")
    assert found == name
    (example,), dropped = convert([row], columns, "a", split="test")
    assert (example.kind, example.prompt, example.replies) == (kind, prompt, replies)
    assert example.meta == {"topic": "sky", "n": 3, "ok": True}
    assert (example.where, example.split, dropped) == ("a, row 1", "test", [])
    if kind == "text":
        assert example.text == "The sky."


def test_every_format_is_tried() -> None:
    assert {name for name, *_ in KNOWN} == set(FORMATS)


# (columns, row, kind, prompt, replies)
NAMED: list[tuple[Columns, dict[str, Any], str, list, tuple[str, ...]]] = [
    (Columns(prompt="q"), {"q": "sky?"}, "prompt", QUESTION, ()),
    (Columns(prompt="q", response="a"), {"q": "sky?", "a": "blue"}, "demonstration", QUESTION, ("blue",)),
    (Columns(prompt="q.t", response="a.0"), {"q": {"t": "sky?"}, "a.0": "blue"}, "demonstration", QUESTION, ("blue",)),
    (Columns(prompt="q", system="s"), {"q": "sky?", "s": "brief"}, "prompt", says((S, "brief"), (U, "sky?")), ()),
    (Columns(prompt="q", system="s"), {"q": "sky?", "s": None}, "prompt", QUESTION, ()),
    (
        Columns(prompt="q", chosen="c", rejected="r", system="s"),
        {"q": "sky?", "c": "blue", "r": "red", "s": "brief"},
        "preference",
        says((S, "brief"), (U, "sky?")),
        ("blue", "red"),
    ),
    (Columns(chosen="c", rejected="r"), {"c": HH + "x", "r": HH + "y"}, "preference", HH_PROMPT, ("x", "y")),
    (Columns(text="t"), {"t": "x"}, "text", [], ()),
    (Columns(messages="m"), {"m": [["human", "sky?"], ["ai", "blue"]]}, "demonstration", QUESTION, ("blue",)),
    (Columns(messages="m"), {"m": '[["human", "sky?"]]'}, "prompt", QUESTION, ()),  # a CSV cell
    (
        Columns(messages="m", user_role="USER", assistant_role="SYSTEM"),
        {"m": [["USER", "sky?"], ["SYSTEM", "blue"]]},
        "demonstration",
        QUESTION,
        ("blue",),
    ),
    (Columns(prompt="q", responses=("a", "b")), {"q": "sky?", "a": "x", "b": "y"}, "ranking", QUESTION, ("x", "y")),
    (Columns(prompt="q", responses=("l",)), {"q": "sky?", "l": ["x", "y", "z"]}, "ranking", QUESTION, ("x", "y", "z")),
    (Columns(prompt="q", responses=("l",)), {"q": "sky?", "l": '["x", "y"]'}, "ranking", QUESTION, ("x", "y")),
]


@pytest.mark.parametrize(("columns", "row", "kind", "prompt", "replies"), NAMED)
def test_named_columns(
    columns: Columns, row: dict[str, Any], kind: str, prompt: list, replies: tuple[str, ...]
) -> None:
    check_columns(columns)
    assert choose_columns([row], "auto", columns, "a") == ("named columns", columns)
    (example,), _ = convert([row], columns, "a")
    assert (example.kind, example.prompt, example.replies, example.meta) == (kind, prompt, replies, {})


@pytest.mark.parametrize(
    ("passages", "chars", "prompt"),
    [
        ("Facts.", None, "Facts.\n\nsky?"),
        (["One.", "Two."], None, "One.\nTwo.\n\nsky?"),
        ([["T", "One."], ["U", "Two."]], None, "T\nOne.\n\nU\nTwo.\n\nsky?"),
        ([], None, "sky?"),
        ("alpha beta gamma", 16, "alpha beta gamma\n\nsky?"),
        ("alpha beta gamma", 15, "alpha beta\n\nsky?"),
        ("alpha beta gamma", 10, "alpha beta\n\nsky?"),
        ("alphabet", 5, "alpha\n\nsky?"),
    ],
)
def test_a_context_goes_before_the_prompt_and_is_cut_at_a_word(passages: Any, chars: int | None, prompt: str) -> None:
    columns = Columns(prompt="q", context="p", context_chars=chars)
    (example,), _ = convert([{"q": "sky?", "p": passages}], columns, "a")
    assert example.prompt == says((U, prompt))


@pytest.mark.parametrize(
    ("format_name", "row", "reason"),
    [
        ("prompt", {"prompt": None}, "`prompt` is missing"),
        ("prompt", {"prompt": 3}, "a conversation is a int, should be a list of messages"),
        ("prompt", {"prompt": ["x"]}, "a message is neither an object nor a [role, text] pair"),
        ("text", {"text": 3}, "`text` is a int, should be text"),
        ("prompt_completion", {"prompt": "x", "completion": "y", "label": False}, "`label` is false: not a reply to"),
        ("prompt_completion", {"prompt": "x", "completion": None}, "`completion` is missing"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "a message has the role 'tool'"),
        ("messages", {"messages": [{"role": "assistant", "content": None}]}, "a message has no text"),
        (
            "messages",
            {"messages": [{"role": U, "content": [{"type": "image_url"}]}]},
            "a message has a part of type 'im",
        ),
        ("messages", {"messages": [{"role": U, "content": ["x"]}]}, "a message has a part of type 'str'"),
        ("hh", {"chosen": "blue", "rejected": "red"}, "the text has no Human: and Assistant: turns; name the prompt's"),
        ("hh", {"chosen": "x" + HH, "rejected": HH}, "the text has something before its first turn"),
        ("hh", {"chosen": HH + "x", "rejected": HH + "y\n\nHuman: z"}, "a side does not end with the assistant's turn"),
        ("hh", {"chosen": HH + "x", "rejected": "\n\nHuman: no\n\nAssistant: y"}, "the two sides do not share their"),
        ("hh", {"chosen": HH + "x", "rejected": HH + "x\n\nAssistant: y"}, "the two sides do not share their prompt"),
    ],
)
def test_rows_that_cannot_be_used_say_why(format_name: str, row: dict[str, Any], reason: str) -> None:
    examples, ((why, where),) = convert([row], FORMATS[format_name], "a.jsonl")
    assert why.startswith(reason) and where == "a.jsonl, row 1" and not examples


def test_columns_that_fit_no_format_are_named() -> None:
    with pytest.raises(UserError, match=r"a\.csv: no known format has the columns answer, question; name yours"):
        choose_columns([{"question": 1}, {"answer": 2}], "auto", Columns(), "a.csv")


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"a: there is no column `promt`; there are: n, prompt, did you mean `prompt`\?"
    ):
        choose_columns([{"prompt": 1, "n": 2}], "auto", Columns(prompt="promt"), "a")
    with pytest.raises(
        UserError, match=r"no column `output`; the format alpaca needs instruction, output; there are: in"
    ):
        choose_columns([{"instruction": 1}], "alpaca", Columns(), "a")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(prompt="q", chosen="c"), "chosen_column and rejected_column: name both or none"),
        (Columns(prompt="q", rejected="c"), "chosen_column and rejected_column: name both or none"),
        (Columns(response="a"), "prompt_column: is missing; name the column that holds the prompt"),
        (Columns(system="a"), "prompt_column: is missing"),
        (Columns(responses=("a", "b")), "prompt_column: is missing"),
        (Columns(prompt="q", text="t"), "prompt_column and text_column: name only one of them"),
        (Columns(prompt="q", response="a", messages="t"), "messages_column and response_column: name only one of them"),
        (
            Columns(prompt="q", responses=("a",), ranks=("r",), scores=("s",)),
            "rank_columns and score_columns: name only",
        ),
        (Columns(prompt="q", ranks=("r",)), "rank_columns: needs response_columns, which name what was ranked"),
        (Columns(prompt="q", annotator="r"), "annotator_column: needs response_columns"),
        (Columns(prompt="q", context="c", context_chars=0), "context_chars: is 0, should be at least 1"),
    ],
)
def test_columns_that_make_no_format(columns: Columns, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_columns(columns)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "type", "text", "x"]), inner, max_size=3)
        | st.tuples(st.sampled_from([U, A, S, "x"]), st.text(max_size=3)).map(lambda m: says(m)[0])
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(FORMATS)), st.lists(anything, min_size=3, max_size=3))
def test_no_row_breaks_the_stage(name: str, values: list[Any]) -> None:
    columns = FORMATS[name]
    row = dict(zip([*columns.names(), "a", "b", "c"], values, strict=False)) | {"more": values[0]}
    examples, dropped = convert([row], columns, "a")
    assert len(examples) + len(dropped) == 1
    for rows in build_records(clean(examples, STEPS)[0]).files().values():
        for record in rows:
            assert json.loads(to_json(record).encode())


@given(st.lists(anything, min_size=4, max_size=4))
def test_no_ranking_breaks_the_stage(values: list[Any]) -> None:
    row = {"q": "sky?", "a": values[0], "b": values[1], "v": values[2], "who": values[3]}
    for verdicts in [{"pairwise": "v"}, {"ranks": ("v", "v")}, {"scores": ("v",)}]:
        columns = Columns(prompt="q", responses=("a", "b"), annotator="who", **verdicts)
        examples, dropped = convert([row], columns, "a")
        assert len(examples) + len(dropped) == 1
        for rows in build_records(clean(examples, STEPS)[0]).files().values():
            for record in rows:
                assert json.loads(to_json(record).encode())
