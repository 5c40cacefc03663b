"""wins, ties and verdicts: arrays worked out by hand, and what must hold for any scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlhf.compare.statistics import (
    UNDECIDED,
    Bootstrap,
    Pair,
    compare_all,
    compare_pair,
    disagreements,
    prompt_ties,
    prompt_wins,
    seen_from_the_other,
    win_matrix,
    winners,
)
from rlhf.intervals import Interval

SCORES = arrays(float, st.tuples(st.just(3), st.integers(1, 8), st.integers(1, 3)), elements=st.integers(-2, 2))


def test_one_response_a_prompt_by_hand() -> None:
    a = np.array([[2.0], [1.0], [0.0], [5.0]])
    b = np.array([[1.0], [1.0], [3.0], [4.0]])
    assert prompt_wins(a, b).tolist() == [1, 0.5, 0, 1]
    assert prompt_ties(a, b).tolist() == [0, 1, 0, 0]


def test_all_cross_pairs_by_hand() -> None:
    # 3>1, 3>2, 1=1, 1<2: two wins and a tie of four. Then one response against two: 2>1, 2=2.
    assert prompt_wins(np.array([[3.0, 1.0]]), np.array([[1.0, 2.0]])).tolist() == [2.5 / 4]
    assert prompt_ties(np.array([[3.0, 1.0]]), np.array([[1.0, 2.0]])).tolist() == [1 / 4]
    assert prompt_wins(np.array([[2.0]]), np.array([[1.0, 2.0]])).tolist() == [1.5 / 2]


def test_the_matrix_by_hand() -> None:
    scores = np.array([[[1.0], [1.0]], [[2.0], [1.0]], [[0.0], [3.0]]])  # (3 policies, 2 prompts, 1 response)
    assert win_matrix(scores).mean(2).tolist() == [[0.5, 0.25, 0.5], [0.75, 0.5, 0.5], [0.5, 0.5, 0.5]]


def test_a_pair_by_hand() -> None:
    a = np.array([[1.0]] * 19 + [[0.0]])
    b = np.array([[0.0]] * 18 + [[1.0]] * 2)  # 18 wins, a tie, a loss
    pair = compare_pair("x", "y", "gold", a, b, Bootstrap())
    assert (pair.win_rate.mean, pair.win_rate.n, pair.ties) == (18.5 / 20, 20, 1 / 20)
    assert pair.verdict == "x"
    assert compare_pair("y", "x", "gold", b, a, Bootstrap()).verdict == "x"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.51, 0.9, "a"), (0.1, 0.49, "b"), (0.5, 0.9, UNDECIDED), (0.1, 0.5, UNDECIDED), (0.4, 0.6, UNDECIDED)],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Pair("a", "b", "gold", Interval((low + high) / 2, low, high, 50), 0.0).verdict == verdict


def test_prompts_that_are_the_same_are_one_cluster() -> None:
    a, b = np.array([[1.0], [1.0], [0.0]]), np.array([[0.0], [0.0], [1.0]])
    assert compare_pair("a", "b", "gold", a, b, Bootstrap(clusters=["p", "p", "q"])).win_rate.n == 2
    assert compare_pair("a", "b", "gold", a, b, Bootstrap()).win_rate.n == 3


def test_all_pairs_are_those_compared_one_by_one() -> None:
    scores = {judge: np.random.default_rng(seed).integers(0, 5, (3, 9, 2)) for seed, judge in enumerate("xy")}
    found = compare_all(["a", "b", "c"], scores, Bootstrap())
    places = [(a, b, judge) for a, b in ((0, 1), (0, 2), (1, 2)) for judge in "xy"]
    assert [(pair.a, pair.b, pair.judge) for pair in found] == [("abc"[a], "abc"[b], judge) for a, b, judge in places]
    for pair, (a, b, judge) in zip(found, places, strict=True):
        alone = compare_pair(pair.a, pair.b, judge, scores[judge][a], scores[judge][b], Bootstrap())
        assert (pair.ties, pair.win_rate.n) == (alone.ties, alone.win_rate.n)
        ends = [(one.win_rate.mean, one.win_rate.low, one.win_rate.high) for one in (pair, alone)]
        assert ends[0] == pytest.approx(ends[1], abs=1e-12)


def test_intervals_of_several_responses_a_prompt_resample_prompts() -> None:
    values = np.random.default_rng(0).random((2, 7, 3))
    together = Bootstrap().intervals(values, (0.0, 1.0))
    assert together == [Bootstrap().interval(one, (0.0, 1.0)) for one in values]
    assert [one.n for one in together] == [7, 7]


def test_seen_from_the_other_side() -> None:
    assert seen_from_the_other(Interval(0.75, 0.5, 1.0, 4)) == Interval(0.25, 0.0, 0.5, 4)


def test_who_is_best_on_each_prompt() -> None:
    scores = np.array([[[1.0], [1.0], [4.0]], [[2.0], [1.0], [4.0]], [[0.0], [1.0], [3.0]]])
    assert winners(scores) == [[1], [0, 1, 2], [0, 1]]


def test_where_judges_disagree() -> None:
    gold = np.array([[[1.0], [1.0], [1.0]], [[2.0], [1.0], [2.0]]])
    score = np.array([[[5.0], [5.0], [5.0]], [[4.0], [4.0], [6.0]]])
    assert disagreements(gold, score).tolist() == [True, False, False]  # a tie contradicts nothing


@settings(max_examples=80, deadline=None)
@given(SCORES)
def test_one_side_wins_what_the_other_loses(scores: np.ndarray) -> None:
    matrix = win_matrix(scores)
    assert np.allclose(matrix + matrix.transpose(1, 0, 2), 1)
    assert np.allclose(matrix.diagonal(), 0.5)
    assert np.array_equal(win_matrix(np.exp(scores) * 3 - 1), matrix)  # only the order of scores counts
    assert ((matrix >= 0) & (matrix <= 1)).all()


@settings(max_examples=80, deadline=None)
@given(SCORES)
def test_wins_and_ties_agree_with_counting(scores: np.ndarray) -> None:
    a, b = scores[0], scores[1]
    for at in range(a.shape[0]):
        pairs = [(x, y) for x in a[at] for y in b[at]]
        ties = sum(x == y for x, y in pairs)
        assert prompt_wins(a, b)[at] == pytest.approx((sum(x > y for x, y in pairs) + ties / 2) / len(pairs))
        assert prompt_ties(a, b)[at] == pytest.approx(ties / len(pairs))


@settings(max_examples=40, deadline=None)
@given(SCORES, st.permutations(range(3)))
def test_the_order_of_policies_does_not_matter(scores: np.ndarray, order: list[int]) -> None:
    assert np.array_equal(win_matrix(scores[order]), win_matrix(scores)[np.ix_(order, order)])


def test_many_intervals_at_once_are_those_one_by_one() -> None:
    values = np.random.default_rng(0).random((3, 30))
    bootstrap = Bootstrap([at // 2 for at in range(30)], num_bootstrap=200)
    for row, one in zip(values, bootstrap.intervals(values, (0.0, 1.0)), strict=True):
        alone = bootstrap.interval(row, (0.0, 1.0))
        assert (one.mean, one.n) == (alone.mean, 15)
        assert (one.low, one.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
