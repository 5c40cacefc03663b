"""Does the first place win? The exact test against scipy's, every order tried, and biases planted on purpose."""

import itertools
from math import comb
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from labeling_app.quality.figure import Figure
from labeling_app.quality.position import permutation_p, position_bias
from rlhf.records import Ranking

PLACES = "abcdef"


def shown(*places: int, **more: Any) -> Ranking:
    """An answer by the ranks that the places on screen got: shown(2, 1) prefers the second."""
    ids = list(PLACES[: len(places)])
    task_id = more.pop("task_id", "t")
    return Ranking(task_id, "ann", dict(zip(ids, places, strict=True)), shown=ids, **more)


def p_of(rankings: list[Ranking]) -> float:
    p = position_bias(rankings)[1]
    assert p is not None
    return p


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_for_pairs_it_is_the_binomial_test_of_the_decided(first, second, ties):
    if first + second + ties == 0:
        return
    figure, p = position_bias([shown(1, 2)] * first + [shown(2, 1)] * second + [shown(1, 1)] * ties)
    n = first + second
    assert p == (pytest.approx(binomtest(first, n).pvalue, abs=1e-9) if n else 1.0)
    assert figure.value == pytest.approx((first + ties / 2) / (n + ties))
    assert figure.n == n + ties


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=4), min_size=1, max_size=4))
def test_it_is_the_permutation_test_with_every_order_tried(answers):
    def won(ranks: tuple[int, ...]) -> float:
        return sum((ranks[0] < other) + (ranks[0] == other) / 2 for other in ranks[1:])

    observed = sum(won(tuple(ranks)) for ranks in answers)
    middle = sum(len(ranks) - 1 for ranks in answers) / 2
    orders = itertools.product(*(itertools.permutations(ranks) for ranks in answers))
    sums = [sum(won(order) for order in every) for every in orders]
    expected = np.mean([abs(total - middle) >= abs(observed - middle) - 1e-9 for total in sums])
    assert p_of([shown(*ranks) for ranks in answers]) == pytest.approx(expected, abs=1e-9)


def test_by_hand():
    # Four responses: the first beats two and ties one, 2.5 of 3; then 0 of 1.
    figure, p = position_bias([shown(1, 1, 2, 3), shown(2, 1)])
    assert figure.value == pytest.approx(2.5 / 4)
    assert figure.n == 2
    # The first place by order gets 2.5, 2.5, 1 or 0, and 0 or 1. The mean is 2; of the eight sums only 1 + 1 is nearer
    # to it than the 2.5 seen.
    assert p == pytest.approx(7 / 8)


def test_many_answers_are_as_the_normal_has_it():
    rng = Random(0)
    rankings = [shown(*rng.sample(range(1, 5), 4)) for _ in range(3000)]
    figure, p = position_bias(rankings)
    # Wins of 3 are 0, 1, 2 or 3, each as likely: variance 1.25 an answer.
    assert figure.value is not None
    z = (figure.value - 0.5) * 3 * np.sqrt(3000 / 1.25)
    assert p == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)


def test_a_strong_bias_is_seen_and_not_called_impossible():
    figure, p = position_bias([shown(1, 2, task_id=str(number)) for number in range(2000)])
    assert p == 1e-12  # 2 * 0.5^2000 is less than the sum can tell
    assert figure.value == 1.0
    assert figure.low is not None and 0.99 < figure.low < 1
    assert p_of([shown(2, 1)] * 10) == pytest.approx(2 / 2**10)


def test_no_bias_is_called_one_in_twenty_times():
    rng = Random(1)
    ps = [p_of([shown(*rng.sample((1, 2, 3), 3)) for _ in range(60)]) for _ in range(400)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.08


def test_practice_and_answers_without_an_order_do_not_count():
    without = Ranking("t", "ann", {"a": 1, "b": 2})
    assert position_bias([shown(1, 2, kind="practice"), without]) == (
        Figure(None, n=0, reason="no answer has its order on screen recorded"),
        None,
    )
    assert position_bias([shown(1, 2), shown(2, 1, kind="repeat"), without])[0].n == 2


def test_the_sums_distribution_by_hand():
    # Two fair steps of 0 or 2 and one of 0, 1 or 2 with a third each; the mean is 3.
    steps = np.array([[0.5, 0, 0.5], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    assert permutation_p(steps, 6) == pytest.approx(2 * (1 / 12))
    assert permutation_p(steps, 5) == pytest.approx(2 * (2 / 12))
    assert permutation_p(steps, 3) == pytest.approx(1.0)
    fair = np.tile([0.5, 0.5], (50, 1))
    assert permutation_p(fair, 35) == pytest.approx(sum(comb(50, k) for k in range(35, 51)) * 2 / 2**50)
