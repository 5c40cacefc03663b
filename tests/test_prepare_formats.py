"""Every format becomes the same examples; every row that cannot says why."""

import json
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.clean import STEPS, clean
from rlhf.data.convert import convert
from rlhf.data.formats import FORMATS, Columns, check_columns, choose_columns
from rlhf.data.outputs import build_records
from rlhf.data.verdicts import from_ranks, from_scores, parse_verdict, weak_order
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


@pytest.mark.parametrize(
    ("columns", "values", "reason"),
    [
        (Columns(), {"responses": ["x"]}, "fewer than two responses"),
        (Columns(), {"responses": ["x", {"role": "user", "content": "y"}]}, "a response is not one reply"),
        (Columns(pairwise="v"), {"v": [1, 2]}, "`v` has 2 verdicts, 3 responses need 3"),
        (Columns(pairwise="v"), {"v": [1, 2, 3]}, "`v` has a verdict that is not 0 (equal), 1 (first) or 2 (second)"),
        (Columns(pairwise="v"), {"v": [1, 2, True]}, "`v` has a verdict that is not"),
        (Columns(ranks=("v",)), {"v": [1, 2]}, "`v` has 2 numbers for 3 responses"),
        (Columns(ranks=("v",)), {"v": [1, 2, "x"]}, "`v` has something that is not a number"),
        (Columns(scores=("v",)), {"v": [1, 2, float("nan")]}, "`v` has something that is not a number"),
    ],
)
def test_rankings_that_cannot_be_used_say_why(columns: Columns, values: dict[str, Any], reason: str) -> None:
    row = {"q": "sky?", "responses": ["x", "y", "z"], **values}
    columns = Columns(
        prompt="q", responses=("responses",), pairwise=columns.pairwise, ranks=columns.ranks, scores=columns.scores
    )
    _, ((why, _),) = convert([row], columns, "a")
    assert why.startswith(reason)


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


# Verdicts


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0, 0), (1, 1), (2.0, 2), ("2", 2), ("Tie", 0), ("tie (bothbad)", 0), ("model_a", 1), (" B ", 2), (3, None)],
)
def test_parse_verdict(value: Any, verdict: int | None) -> None:
    assert parse_verdict(value) == verdict


def test_verdicts_of_ranks_and_scores() -> None:
    # Pairs (1,2) (1,3) (2,3) of the ranks 2, 1, 2: the second wins, a tie, the second wins.
    assert from_ranks([2, 1, 2]) == (2, 0, 1)
    assert from_scores([0.1, 0.9, 0.1]) == (2, 0, 1)


def test_a_weak_order_counts_who_is_above() -> None:
    assert weak_order(3, (2, 0, 1)) == (2, 1, 2)
    assert weak_order(4, (0, 0, 1, 0, 1, 1)) == (1, 1, 1, 4)
    assert weak_order(3, (0, 1, 0)) is None  # 1 = 2, 2 = 3, yet 1 > 3
    assert weak_order(3, (1, 2, 1)) is None  # 1 > 2 > 3 > 1


@given(st.lists(st.integers(0, 4), min_size=2, max_size=5))
def test_every_ranking_comes_back(ranks: list[int]) -> None:
    assert weak_order(len(ranks), from_ranks(ranks)) == tuple(1 + sum(b < a for b in ranks) for a in ranks)


def test_a_weak_order_is_found_exactly_where_one_exists() -> None:
    pairs = list(combinations(range(4), 2))

    def agrees(ranks: tuple[int, ...], verdicts: tuple[int, ...]) -> bool:
        sign = {0: 0, 1: -1, 2: 1}
        return all(
            (ranks[a] > ranks[b]) - (ranks[a] < ranks[b]) == sign[v] for (a, b), v in zip(pairs, verdicts, strict=True)
        )

    found = 0
    for verdicts in product(range(3), repeat=6):
        exists = any(agrees(ranks, verdicts) for ranks in product(range(4), repeat=4))
        assert (weak_order(4, verdicts) is not None) == exists
        found += exists
    assert found == 75  # the ordered Bell number of 4: the weak orders of four things


# Records of rankings


def ranked(verdicts: Any, replies: tuple[str, ...] = ("x", "y", "z"), **more: Any) -> dict[str, Any]:
    return {"q": "sky?", "l": list(replies), "v": list(verdicts), **more}


def records_of(*rows: dict[str, Any], annotator: str | None = None, **options: Any) -> Any:
    columns = Columns(prompt="q", responses=("l",), pairwise="v", annotator=annotator)
    examples, dropped = convert(rows, columns, "a")
    assert not dropped
    return build_records(examples, **options)


def sides(preference: Any) -> tuple[str, str]:
    return preference.chosen[0]["content"], preference.rejected[0]["content"]


def test_a_ranking_with_ties_becomes_a_task_a_ranking_pairs_and_ties() -> None:
    records = records_of(ranked((1, 0, 2)))  # x > y, x = z, z > y
    (task,), (ranking,), (tie,) = records.tasks, records.rankings, records.ties
    assert [response.text for response in task.responses] == ["x", "y", "z"]
    assert [response.sampling["column"] for response in task.responses] == ["1", "2", "3"]
    assert ranking.task_id == task.id and ranking.annotator == "imported-1"
    assert [ranking.ranks[response.id] for response in task.responses] == [1, 3, 1]
    assert [(sides(p), p.margin, p.weight) for p in records.preferences] == [(("x", "y"), 2, 1), (("z", "y"), 2, 1)]
    assert all(p.votes == {"for": 1, "tie": 0, "against": 0} for p in records.preferences)
    assert [side[0]["content"] for side in tie.responses] == ["x", "z"]
    assert {p.group_id for p in records.preferences} == {tie.group_id} == {task.prompt.id} == {records.prompts[0].id}
    assert records.num_without_order == 0


def test_verdicts_without_an_order_are_kept_pair_by_pair() -> None:
    records = records_of(ranked((0, 1, 0)))
    assert not records.rankings and records.num_without_order == 1 and len(records.tasks) == 1
    assert [(sides(p), p.margin) for p in records.preferences] == [(("x", "z"), 1.0)]
    assert len(records.ties) == 2


def test_annotators_vote_on_each_pair() -> None:
    rows = [ranked((1,), ("x", "y"), who="a"), ranked((1,), ("x", "y"), who="b"), ranked((1,), ("y", "x"), who="c")]
    records = records_of(*rows, ranked((0,), ("x", "y"), who="d"), annotator="who")
    (preference,) = records.preferences
    assert sides(preference) == ("x", "y")
    assert preference.votes == {"for": 2, "tie": 1, "against": 1}
    assert preference.weight == (2 + 0.5) / 4
    assert preference.margin == pytest.approx((1 + 1 - 1 + 0) / 4)  # differences in ranks 1, 1, -1, 0
    assert [ranking.annotator for ranking in records.rankings] == ["a", "b", "c", "d"]
    assert len(records.tasks) == 2  # (x, y) and (y, x) were shown apart
    records = records_of(*rows[1:], annotator="who")
    assert not records.preferences and records.ties[0].votes == {"for": 1, "tie": 0, "against": 1}


def test_unnamed_annotators_of_one_task_are_told_apart() -> None:
    records = records_of(ranked((1, 1, 1)), ranked((2, 2, 2)))
    assert [(r.task_id, r.annotator) for r in records.rankings] == [
        (records.tasks[0].id, "imported-1"),
        (records.tasks[0].id, "imported-2"),
    ]


def test_equal_replies_have_ids_of_their_own_and_no_pair() -> None:
    records = records_of(ranked((0, 1, 1), ("x", "x", "z")))
    assert len({response.id for response in records.tasks[0].responses}) == 3
    assert [sides(p) for p in records.preferences] == [("x", "z")] and not records.ties


def test_replies_nobody_ranked_become_tasks_to_label() -> None:
    examples, _ = convert([{"q": "sky?", "l": ["x", "y"]}], Columns(prompt="q", responses=("l",)), "a")
    records = build_records(examples)
    assert set(records.files()) == {"prompts", "tasks"}


def test_demonstrations_from_chosen_take_what_nobody_beat() -> None:
    rows = [
        {"prompt": "sky?", "chosen": "blue", "rejected": "red"},
        {"prompt": "sky?", "chosen": "red", "rejected": "green"},  # red was beaten by blue
        {"prompt": "sea?", "chosen": "red", "rejected": "green"},
    ]
    examples, _ = convert(rows, FORMATS["preference"], "a")
    assert build_records(examples).demonstrations == []
    demonstrations = build_records(examples, "chosen").demonstrations
    assert [d.messages for d in demonstrations] == [
        says((U, "sky?"), (A, "blue")),
        says((U, "sea?"), (A, "red")),
    ]
    assert [
        d.messages[-1]["content"] for d in records_of(ranked((1, 0, 2)), demonstrations_from="chosen").demonstrations
    ] == [
        "x",
        "z",
    ]
