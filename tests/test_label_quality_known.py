"""Gold tasks, repeats, pace and disputes: by hand and by scipy and statsmodels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from labeling_app.quality.disputes import disputed
from labeling_app.quality.figure import Figure, wilson
from labeling_app.quality.known import known_accuracy, self_consistency
from labeling_app.quality.pace import days, num_by_kind, seconds_per_task, shortest_seconds, too_fast
from labeling_app.quality.votes import collect
from rlhf.records import Ranking
from tests.test_label_quality_votes import ranked, task


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_statsmodels_and_scipys(shares):
    k, n = shares
    figure = wilson(k, n, "")
    assert figure.value == k / n
    assert figure.n == n
    assert (figure.low, figure.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert (figure.low, figure.high) == pytest.approx(tuple(binomtest(k, n).proportion_ci(method="wilson")), abs=1e-9)
    assert figure.low is not None and figure.high is not None and figure.low <= k / n <= figure.high


def test_accuracy_on_gold_tasks():
    golds = {"g1": {"g1-a": 1, "g1-b": 2}, "g2": {"g2-a": 1, "g2-b": 2, "g2-c": 3}, "p": {"p-a": 1, "p-b": 2}}
    rankings = [
        ranked("g1", "ann", "ab", kind="gold"),
        ranked("g1", "ann", {"a": 1, "b": 1}, kind="gold"),  # of two, a tie is wrong
        ranked("g2", "ann", {"a": 1, "b": 1, "c": 3}, kind="gold"),  # of three, only a reversal is
        ranked("g2", "ann", "acb", kind="gold"),
        ranked("g1", "ann", "ba"),  # not asked as gold
        ranked("unknown", "ann", "ba", kind="gold"),
        ranked("p", "ann", "ba", kind="practice"),
    ]
    figure = known_accuracy(rankings, golds)
    assert (figure.value, figure.n) == (0.5, 4)
    assert (figure.low, figure.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson for 2 of 4
    assert known_accuracy(rankings, golds, "practice") == wilson(0, 1, "")
    assert known_accuracy([], golds) == Figure(None, n=0, reason="no answers to gold tasks yet")
    assert known_accuracy([], golds, "practice").reason == "no answers to practice tasks yet"


def test_self_consistency():
    rankings = [
        ranked("t1", "ann", "ab"),
        ranked("t1", "ann", "ab", kind="repeat"),
        ranked("t2", "ann", "ab", kind="surplus"),
        ranked("t2", "ann", "ba", kind="repeat"),
        ranked("t1", "bob", "ba", kind="repeat"),  # their first answer is not there
    ]
    assert self_consistency(rankings) == wilson(1, 2, "")
    assert self_consistency(rankings[:1]) == Figure(None, n=0, reason="no task was asked a second time yet")


def test_days():
    rankings = [
        ranked("t1", "bob", "ab", at="2026-11-21T23:30:00+00:00"),
        ranked("t2", "ann", "ab", at="2026-11-21T10:00:00+00:00"),
        ranked("t3", "bob", "ab", at="2026-11-21T23:30:00-02:00"),  # the 22nd in UTC
        ranked("t4", "bob", "ab", at="2026-11-20T08:00:00Z", kind="gold"),
        ranked("t5", "bob", "ab", at="2026-11-21T12:00:00"),
        ranked("t6", "bob", "ab", at="2026-11-21T12:00:00Z", kind="practice"),
        ranked("t7", "bob", "ab"),
    ]
    found = days(rankings)
    assert found == {"2026-11-20": {"bob": 1}, "2026-11-21": {"ann": 1, "bob": 2}, "2026-11-22": {"bob": 1}}
    assert list(found) == sorted(found)
    assert num_by_kind(rankings) == {"gold": 1, "practice": 1, "task": 5}


def timed(*seconds: float | None, **more: str) -> list[Ranking]:
    return [ranked(f"t{number}", "ann", "ab", seconds=at, **more) for number, at in enumerate(seconds)]


def test_seconds_per_task_by_hand():
    figure, quantiles = seconds_per_task(timed(*range(1, 102), None) + timed(5000, kind="practice"))
    assert figure.value == 51
    assert quantiles == {"10": 11, "25": 26, "75": 76, "90": 91}
    # Of 101, P(Bin(101, 1/2) <= 40) = 0.0230 and P(<= 41) = 0.0366: from the 41st to the 61st.
    assert (figure.low, figure.high, figure.n) == (41, 61, 101)
    assert seconds_per_task(timed(9, 1, 3, 8, 4, 2))[0] == Figure(3.5, 1, 9, 6)
    assert seconds_per_task(timed(9, 1, 3))[0] == Figure(3, n=3, reason="no interval: fewer than six answers")
    assert seconds_per_task(timed(None)) == (Figure(None, reason="no answer has its seconds recorded"), {})


def test_the_medians_interval_holds_the_median():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        figure, _quantiles = seconds_per_task(timed(*rng.exponential(60, 25).tolist()))
        assert figure.low is not None and figure.high is not None
        held += figure.low <= 60 * np.log(2) <= figure.high
    assert held / 300 > 0.93


def test_too_fast_to_have_read():
    # 300 + 300 characters at 60 a second: ten seconds. The prompt is not counted.
    shortest = shortest_seconds([task("t0", "x" * 300, "y" * 300), task("t1", "x" * 300, "y" * 300)])
    assert shortest == {"t0": 10.0, "t1": 10.0}
    assert too_fast(timed(9.9, 10.0, 0.1), shortest) == wilson(1, 2, "")  # t2 is not among the tasks
    assert too_fast(timed(None, 9.9, kind="practice"), shortest).reason == "no answer has its seconds recorded"


def test_disputed_tasks_by_hand():
    tasks = [task(id, "a", "b") for id in ("same", "split", "tie", "alone", "three")] + [task("triple")]
    rankings = [
        *(ranked("same", name, "ab") for name in ("ann", "bob")),
        *(ranked("split", name, verdict) for name, verdict in [("ann", "ab"), ("bob", "ba")]),
        *(ranked("tie", name, verdict) for name, verdict in [("ann", "ab"), ("bob", {"a": 1, "b": 1})]),
        ranked("alone", "ann", "ab"),
        *(ranked("three", name, verdict) for name, verdict in [("ann", "ab"), ("bob", "ba"), ("cho", "ab")]),
        *(ranked("triple", name, verdict) for name, verdict in [("ann", "abc"), ("bob", "acb")]),
    ]
    votes = collect(tasks, rankings)
    assert disputed(votes) == [
        {"task_id": "split", "score": 1.0, "n": 2},
        {"task_id": "three", "score": 0.666667, "n": 3},
        {"task_id": "tie", "score": 0.5, "n": 2},
        {"task_id": "triple", "score": 0.333333, "n": 2},
    ]
    assert [row["task_id"] for row in disputed(votes, most=2)] == ["split", "three"]
    assert disputed(collect([], [])) == []


def test_of_equally_disputed_tasks_the_one_with_more_votes_comes_first():
    half, tasks = {"a": 1, "b": 1}, [task(id, "a", "b") for id in ("a-two", "b-four", "c-two")]
    rankings = [ranked(id, name, ranks) for id in ("c-two", "a-two") for name, ranks in [("ann", "ab"), ("bob", half)]]
    # One of four against the rest: three of six couples.
    rankings += [ranked("b-four", name, "ba" if name == "dee" else "ab") for name in ("ann", "bob", "cho", "dee")]
    found = disputed(collect(tasks, rankings))
    assert {row["score"] for row in found} == {0.5}
    assert [row["task_id"] for row in found] == ["b-four", "a-two", "c-two"]
