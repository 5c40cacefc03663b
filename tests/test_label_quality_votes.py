"""Verdicts on pairs, and how figures get their intervals."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from labeling_app.quality.figure import Figure, as_json, mean_figure, missing, percentile_ends, resampled_sums
from labeling_app.quality.votes import FIRST, FIRST_LOOKS, SECOND, SERIOUS, TIE, collect
from rlhf.records import Prompt, Ranking, Response, Task


def task(id: str, *texts: str) -> Task:
    """A task whose response to text `x` has the id `ID-x`; a, b and c where no texts are given."""
    prompt = Prompt(f"p{id}", [{"role": "user", "content": id}])
    return Task(id, prompt, [Response(f"{id}-{text}", prompt.id, text, "run") for text in texts or "abc"])


def ranked(task_id: str, annotator: str, ranks: Mapping[str, int] | str, **more: Any) -> Ranking:
    """An answer by text: {"a": 1, "b": 2}, or "ab" for the same; shown in that order."""
    by_text = ranks if isinstance(ranks, Mapping) else {text: place for place, text in enumerate(ranks, 1)}
    by_id = {f"{task_id}-{text}": rank for text, rank in by_text.items()}
    return Ranking(task_id, annotator, by_id, **{"shown": list(by_id), **more})


def test_verdicts_by_hand():
    tasks = [task("t2", "a", "b", "c"), task("t1", "x", "y")]
    rankings = [
        ranked("t2", "bob", {"a": 2, "b": 1, "c": 1}),
        ranked("t2", "ann", "abc"),
        ranked("t1", "bob", "yx"),
    ]
    votes = collect(tasks, rankings)
    assert (votes.task_ids, votes.annotators) == (["t1", "t2"], ["ann", "bob"])
    assert votes.pairs == [("t1-x", "t1-y"), ("t2-a", "t2-b"), ("t2-a", "t2-c"), ("t2-b", "t2-c")]
    assert votes.pair_task.tolist() == [0, 1, 1, 1]
    told = list(zip(votes.pair.tolist(), votes.annotator.tolist(), votes.verdict.tolist(), strict=True))
    of_bc = [(3, 0, FIRST), (3, 1, TIE)]
    assert told == [(0, 1, SECOND), (1, 0, FIRST), (1, 1, SECOND), (2, 0, FIRST), (2, 1, SECOND), *of_bc]
    first, second = votes.couples
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(1, 2), (3, 4), (5, 6)]


def test_every_two_votes_on_a_pair_are_a_couple():
    votes = collect([task("t", "a", "b")], [ranked("t", name, "ab") for name in "dcba"])
    first, second = (votes.annotator[at].tolist() for at in votes.couples)
    found = {(votes.annotators[a], votes.annotators[b]) for a, b in zip(first, second, strict=True)}
    assert found == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert len(votes.couples[0]) == 6


def test_pairs_of_equal_texts_are_no_pairs():
    twins = task("t", "a", "a ", "b")
    votes = collect([twins], [ranked("t", "ann", {"a": 1, "a ": 3, "b": 2})])
    assert votes.pairs == [("t-a", "t-b"), ("t-a ", "t-b")]
    assert votes.verdict.tolist() == [FIRST, SECOND]


def test_only_the_kinds_asked_for_and_the_tasks_given_count():
    kinds = ["task", "surplus", "gold", "repeat", "practice"]
    rankings = [ranked("t", kind, "ab", kind=kind) for kind in kinds] + [ranked("elsewhere", "eve", "ab")]
    tasks = [task("t", "a", "b")]
    assert collect(tasks, rankings).annotators == ["surplus", "task"]
    assert collect(tasks, rankings, FIRST_LOOKS).annotators == ["gold", "surplus", "task"]
    assert collect(tasks, rankings, SERIOUS).annotators == ["gold", "repeat", "surplus", "task"]


def test_nothing_is_nothing():
    votes = collect([], [])
    assert votes.pair.size == votes.verdict.size == votes.task.size == votes.couples[0].size == 0


def test_resampled_sums_keep_the_mean_and_the_spread():
    table = np.array([[0.0, 1.0], [1.0, 1.0], [5.0, 1.0], [2.0, 1.0]])
    sums = resampled_sums(table, seed=0)
    assert (sums[:, 1] == 4).all()  # as many rows as there were
    assert sums[:, 0].mean() == pytest.approx(8, abs=0.6)
    assert sums[:, 0].var() == pytest.approx(4 * table[:, 0].var(), rel=0.2)
    assert (sums == resampled_sums(table, seed=0)).all()
    assert (sums != resampled_sums(table, seed=1)).any()


def test_few_clusters_widen_the_percentiles():
    resamples = np.linspace(0, 1, 10_001)
    # Of infinitely many clusters the 2.5th and 97.5th percentile; of five, t(4) at sqrt(5/4) * -2.776 = -3.104,
    # where the normal has 0.00095 below.
    assert percentile_ends(resamples, 10**9) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert percentile_ends(resamples, 5) == pytest.approx((0.00095, 0.99905), abs=1e-4)


def test_a_mean_has_its_values_counted_and_its_clusters_resampled():
    values = [1.0, 1.0, 0.0, 0.0] * 10
    apart = mean_figure(values, range(40), "")
    together = mean_figure(values, [number // 2 for number in range(40)], "")
    assert apart.value == together.value == 0.5
    assert apart.n == together.n == 40
    assert apart.low is not None and together.low is not None and together.low < apart.low
    assert mean_figure([], [], "nobody came") == Figure(None, None, None, 0, "nobody came")


def test_a_figure_as_json():
    told = as_json(Figure(np.float64(1 / 3), 0.1, None, n=int(np.int64(3))), p=0.5)
    assert json.loads(json.dumps(told)) == {
        "value": 0.333333,
        "low": 0.1,
        "high": None,
        "n": 3,
        "reason": None,
        "p": 0.5,
    }
    assert as_json(missing("why")) == {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
