"""Splits by prompt: disjoint, stable and checked."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.formats import Example
from rlhf.data.split import Shares, assert_disjoint, assign_splits, check_splits, prompt_key, split_of
from rlhf.errors import UserError
from rlhf.records import Demonstration, Messages, Preference, Prompt, Task, write_jsonl

HALF = Shares(0.5, 0.0, 0.5)


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def turns(*texts: str) -> Messages:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]


def test_the_key_ignores_case_white_space_and_composition() -> None:
    assert prompt_key(user("What is\n CAFE\u0301?")) == prompt_key(user("what is caf\u00e9?"))
    assert prompt_key(user("a")) != prompt_key([{"role": "system", "content": "a"}])
    assert prompt_key(turns("a", "b", "c")) != prompt_key(turns("a b c"))


@given(st.lists(st.text(max_size=4), min_size=1), st.integers(0, 5))
def test_a_prompt_is_never_in_two_splits(texts: list[str], seed: int) -> None:
    by_split = assign_splits([Example("prompt", "", user(text)) for text in texts], HALF, seed)
    keys = [{prompt_key(example.prompt) for example in examples} for examples in by_split.values()]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert sum(map(len, by_split.values())) == len(texts)


@given(st.text(), st.integers(0, 5), st.lists(st.text(), max_size=5))
def test_other_rows_do_not_move_a_prompt(text: str, seed: int, others: list[str]) -> None:
    alone = assign_splits([Example("prompt", "", user(text))], HALF, seed)
    together = assign_splits([Example("prompt", "", user(each)) for each in [*others, text]], HALF, seed)
    (split,) = alone
    assert user(text) in [example.prompt for example in together[split]]


def test_shares_are_kept_on_average() -> None:
    splits = [split_of(f"prompt {n}", Shares(0.7, 0.2, 0.1), seed=0) for n in range(10_000)]
    # Four standard deviations of a binomial with n = 10,000: 4 * sqrt(10,000 * 0.7 * 0.3) = 183.
    assert abs(splits.count("train") - 7000) < 184
    assert abs(splits.count("validation") - 2000) < 160
    assert abs(splits.count("test") - 1000) < 120


def test_seeds_differ_and_a_share_of_nothing_gets_nothing() -> None:
    keys = [f"prompt {n}" for n in range(1000)]
    assert [split_of(key, HALF, 0) for key in keys] != [split_of(key, HALF, 1) for key in keys]
    assert {split_of(key, Shares(1.0, 0.0, 0.0), 0) for key in keys} == {"train"}
    assert {split_of(key, Shares(0.0, 1.0, 0.0), 0) for key in keys} == {"validation"}


def test_a_conversation_and_its_continuations_stay_together() -> None:
    examples = [Example("prompt", "", turns(f"q{n}", *rest)) for n in range(40) for rest in ([], ["a", "more"])]
    by_split = assign_splits(examples, HALF, seed=0)
    openings = [{example.prompt[0]["content"] for example in there} for there in by_split.values()]
    assert len(openings) == 2 and not openings[0] & openings[1]
    by_split = assign_splits(examples, HALF, seed=0, split_by="prompt")
    openings = [{example.prompt[0]["content"] for example in there} for there in by_split.values()]
    assert openings[0] & openings[1]  # 40 coins, each kept together only with chance 1/2


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.9, 0.0, 0.2), r"train_share \+ validation_share \+ test_share: is 0.9 \+ 0 \+ 0.2 = 1.1, should be 1"),
        ((1.5, -0.5, 0.0), "train_share: is 1.5, should be between 0 and 1"),
        ((1.0, -0.5, 0.5), "validation_share: is -0.5, should be between 0 and 1"),
        ((float("nan"), 0.0, 1.0), "train_share: is nan"),
    ],
)
def test_bad_shares(shares: tuple[float, float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shares(*shares)


def test_thirds_sum_to_one_in_spite_of_rounding() -> None:
    Shares(0.333333, 0.333333, 0.333334)
    Shares(0.7, 0.2, 0.1)


def test_assert_disjoint_names_the_prompt_and_both_files() -> None:
    shared = [("train", "a.jsonl, row 1", user("What is 1+1?")), ("train", "b.jsonl, row 1", user("other"))]
    assert_disjoint([*shared, ("train", "c.jsonl, row 9", user("other"))])  # twice in one split is no fault
    with pytest.raises(UserError) as caught:
        assert_disjoint([*shared, ("test", "c.jsonl, row 2", user("what is  1+1?"))])
    assert str(caught.value).startswith(
        "a prompt in two splits: 'what is 1+1?' is in a.jsonl, row 1 and in c.jsonl, row 2 (1 such prompts); remove it"
    )


def test_check_splits_reads_every_kind_of_record(tmp_path: Path) -> None:
    prompt = turns("a", "b", "c")
    reply = [{"role": "assistant", "content": "d"}]
    write_jsonl(tmp_path / "demonstrations.jsonl", [Demonstration("1", prompt + reply)])
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt("1", prompt)])
    write_jsonl(tmp_path / "preferences.jsonl", [Preference("1", "1", prompt, reply, reply)])
    write_jsonl(tmp_path / "tasks.jsonl", [Task("1", Prompt("1", prompt), [])])
    write_jsonl(tmp_path / "other.jsonl", [Prompt("1", turns("x"))])
    for kind in ["demonstrations", "preferences", "tasks"]:
        check_splits([tmp_path / f"{kind}.jsonl", tmp_path / "other.jsonl"])
        with pytest.raises(
            UserError, match=rf"a prompt in two splits: 'c' is in .*prompts\.jsonl and in .*{kind}\.jsonl"
        ):
            check_splits([tmp_path / "prompts.jsonl", tmp_path / f"{kind}.jsonl"])


def test_check_splits_reads_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Hi  there"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "hi there"}\n')
    with pytest.raises(UserError, match="a prompt in two splits: 'hi there'"):
        check_splits([tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")])


def test_check_splits_refuses_what_holds_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file; it should hold records"):
        check_splits([tmp_path / "none.jsonl"])
    for line in ["{", "[]", "{}", '{"prompt": 3}', '{"messages": []}', '{"text": null}', json.dumps({"messages": [1]})]:
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + "\n")
        with pytest.raises(UserError, match=r"a\.jsonl, line 2: holds no prompt"):
            check_splits([tmp_path / "a.jsonl"])
