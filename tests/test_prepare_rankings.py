"""Verdicts become orders where there is one, and rankings become tasks, votes and pairs."""

from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.convert import convert
from rlhf.data.formats import FORMATS, Columns
from rlhf.data.outputs import build_records
from rlhf.data.verdicts import from_ranks, from_scores, parse_verdict, weak_order

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
    assert [[(turn["role"], turn["content"]) for turn in d.messages] for d in demonstrations] == [
        [("user", "sky?"), ("assistant", "blue")],
        [("user", "sea?"), ("assistant", "red")],
    ]
    assert [
        d.messages[-1]["content"] for d in records_of(ranked((1, 0, 2)), demonstrations_from="chosen").demonstrations
    ] == [
        "x",
        "z",
    ]


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
