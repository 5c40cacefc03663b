"""Paired tests against scipy and statsmodels, values by hand, and how often they err where the truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.compare.paired import (
    PermutationTest,
    SignTest,
    benjamini_hochberg,
    decide_sentence,
    holm,
    paired_sentence,
    paired_t_test,
    permutation_test,
    prompt_means,
    prompts_to_decide,
    sign_test,
)
from rlhf.intervals import Interval, mean_interval

OUTCOMES = st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0]), min_size=1, max_size=11)


# Several rows of a prompt


def test_rows_of_a_prompt_become_one() -> None:
    assert prompt_means([1.0, 0.0, 0.5, 1.0], ["p", "q", "p", "p"]).tolist() == [2.5 / 3, 0.0]
    with pytest.raises(ValueError, match=r"2 clusters for values of shape \(3,\)"):
        prompt_means([1, 0, 1], ["p", "q"])


# The sign test


def test_the_sign_test_by_hand() -> None:
    # 8 of 10 that are no ties: 2 (1 + 10 + 45) / 2^10. 0.75 and 1 are wins alike.
    outcomes = [1.0] * 5 + [0.75] * 3 + [0.0, 0.25] + [0.5] * 4
    test = sign_test(outcomes)
    assert (test.wins, test.losses, test.ties) == (8, 2, 4)
    assert test.p_value == pytest.approx(112 / 1024)
    assert sign_test([0.5, 0.5]) == SignTest(0, 0, 2, 1.0)
    assert sign_test([1.0, 0.0]) == SignTest(1, 1, 0, 1.0)  # twice 3/4 is not a probability
    assert sign_test([1.0]).p_value == 1.0


def test_a_half_that_is_off_by_rounding_is_a_tie() -> None:
    outcome = (0.1 + 0.2) / 0.6  # 0.5000000000000001
    assert outcome != 0.5
    assert sign_test([outcome, 1 - outcome, 1.0]) == SignTest(1, 0, 2, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5))
def test_the_sign_test_is_that_of_scipy_and_mcnemar(wins: int, losses: int, ties: int) -> None:
    from scipy.stats import binomtest
    from statsmodels.stats.contingency_tables import mcnemar

    if not wins + losses + ties:
        return
    ours = sign_test([1.0] * wins + [0.0] * losses + [0.5] * ties).p_value
    if wins + losses:
        assert ours == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)
        theirs = mcnemar([[ties, wins], [losses, 3]], exact=True).pvalue  # type: ignore[attr-defined]
        assert ours == pytest.approx(theirs, rel=1e-9)
    else:
        assert ours == 1


# The permutation test


def test_the_permutation_test_by_hand() -> None:
    # Off one half by 0.5, 0.5, 0.25: of 8 flips only +++ and --- are as far. A tie changes nothing.
    assert permutation_test([1.0, 1.0, 0.75, 0.5]) == PermutationTest(2 / 8, 8, True)
    # 0.5, 0.5, -0.25 sums to 0.75: as far are +++, ++-, and their opposites.
    assert permutation_test([1.0, 1.0, 0.25]) == PermutationTest(4 / 8, 8, True)
    assert permutation_test([0.5, 0.5]) == PermutationTest(1.0, 1, True)
    assert permutation_test([1.0, 0.0]).p_value == 1.0


@settings(max_examples=40, deadline=None)
@given(OUTCOMES)
def test_the_permutation_test_is_that_of_scipy(outcomes: list[float]) -> None:
    from scipy import stats

    off = np.round(12 * (np.array(outcomes) - 0.5))  # whole numbers: flips that tie do so exactly there too
    if len(off) < 2:  # scipy wants two
        return
    theirs = stats.permutation_test((off,), np.mean, permutation_type="samples", n_resamples=4096, axis=0)
    ours = permutation_test(outcomes)
    assert ours.exact
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_drawn_flips_come_near_the_exact_ones() -> None:
    # Wins and losses only: the mean tells as much as their number, so this is the sign test.
    outcomes = [1.0] * 36 + [0.0] * 22 + [0.5] * 9
    drawn = permutation_test(outcomes, num_permutations=200_000)
    assert not drawn.exact and drawn.num_permutations == 200_000
    assert drawn.p_value == pytest.approx(sign_test(outcomes).p_value, abs=0.003)  # 0.087, standard error 0.0006


def test_drawn_flips_of_many_sizes_agree_with_scipy() -> None:
    from scipy import stats

    generator = np.random.default_rng(3)
    outcomes = np.clip(generator.normal(0.55, 0.2, 60), 0, 1)
    theirs = stats.permutation_test(
        (outcomes - 0.5,), np.mean, permutation_type="samples", n_resamples=20_000, axis=0, rng=generator
    )
    ours = permutation_test(outcomes, num_permutations=20_000)
    assert 0.005 < theirs.pvalue < 0.5
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=5 * math.sqrt(2 * theirs.pvalue / 20_000))


def test_drawn_flips_are_never_certain_and_the_seed_repeats_them() -> None:
    assert permutation_test([1.0] * 200, num_permutations=999) == PermutationTest(1 / 1000, 999, False)
    outcomes = [1.0] * 30 + [0.0] * 20
    assert permutation_test(outcomes, seed=4) == permutation_test(outcomes, seed=4)
    assert permutation_test(outcomes, seed=4) != permutation_test(outcomes, seed=5)


def test_twenty_prompts_are_enumerated_and_twenty_one_are_not() -> None:
    assert permutation_test([1.0] * 20 + [0.5] * 50) == PermutationTest(2 / 2**20, 2**20, True)
    assert not permutation_test([1.0] * 21).exact


# The t-test


def test_the_t_test_by_hand() -> None:
    test = paired_t_test([3.0, 5.0, 4.0], [2.0, 3.0, 1.0])  # differences 1, 2, 3: mean 2, s = 1
    assert (test.mean, test.n) == (2.0, 3)
    assert test.t == pytest.approx(2 * math.sqrt(3))
    # With two degrees of freedom the tail is 1/2 - t / (2 sqrt(2 + t^2)).
    assert test.p_value == pytest.approx(1 - test.t / math.sqrt(2 + test.t**2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=30))
def test_the_t_test_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import ttest_rel

    a, b = np.array(pairs, dtype=float).T
    if len(set(a - b)) == 1:
        return
    theirs, ours = ttest_rel(a, b), paired_t_test(a, b)
    assert (ours.t, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_differences_without_spread() -> None:
    one = paired_t_test([2.0], [1.0])
    assert (one.mean, one.t, one.p_value, one.n) == (1.0, 0.0, 1.0, 1)
    same = paired_t_test([0.1 + 0.2, 1.0], [0.3, 1.0])  # the first differ in their last bit
    assert (same.mean, same.t, same.p_value) == (0.0, 0.0, 1.0)
    shifted = paired_t_test([0.3, 0.2, 1.2], [0.1, 0.0, 1.0])
    assert (shifted.t, shifted.p_value) == (math.inf, 0.0)
    assert paired_t_test([0.0, 0.0], [1.0, 1.0]).t == -math.inf


# Many comparisons


def test_corrections_by_hand() -> None:
    p_values = [0.04, 0.005, 0.03, 0.01]  # sorted 0.005 0.01 0.03 0.04
    # Holm: 4 * 0.005, 3 * 0.01, 2 * 0.03, then 1 * 0.04 is lifted to 0.06.
    assert holm(p_values) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    # Benjamini-Hochberg: 4/4 * 0.04, 4/3 * 0.03, 4/2 * 0.01, 4/1 * 0.005.
    assert benjamini_hochberg(p_values) == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert holm([0.7, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == benjamini_hochberg([]).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_are_those_of_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert benjamini_hochberg(p_values) == pytest.approx(multipletests(p_values, method="fdr_bh")[1])


# How many more prompts


def by_formula(n: int, distance: float, spread: float) -> int:
    """The docstring's inequality, tried number by number with scipy's own distributions."""
    from scipy.stats import norm, t

    more = 0
    while True:
        total = n + more
        quantile = t.ppf(0.975, total + 1) * math.sqrt((total + 2) / (total + 1))
        if total * distance >= quantile * spread * math.sqrt(total + 2) + norm.ppf(0.8) * spread * math.sqrt(more):
            return more
        more += 1


@pytest.mark.parametrize(("wins", "losses", "ties"), [(22, 18, 0), (18, 22, 0), (11, 9, 20), (3, 2, 0), (110, 90, 0)])
def test_how_many_more_by_the_formula(wins: int, losses: int, ties: int) -> None:
    n = wins + losses + ties
    mean = (wins + ties / 2) / n
    # One more win and one more loss; a tie is 0 off one half, anything else 1/2, the mean of all n + 2 is m.
    m = (wins + ties / 2 + 1) / (n + 2)
    spread = math.sqrt((wins + losses + 2) / (n + 2) / 4 - (m - 0.5) ** 2)
    more = prompts_to_decide([1.0] * wins + [0.0] * losses + [0.5] * ties)
    assert more == by_formula(n, abs(mean - 0.5), spread)
    assert more is not None and more > 0


def test_how_many_more_at_the_ends() -> None:
    assert prompts_to_decide([1.0, 0.0, 0.5]) is None
    assert prompts_to_decide([0.5, 0.5 + 1e-8]) is None  # 10^14 prompts are none
    assert prompts_to_decide([1.0] * 30 + [0.0] * 10) == 0
    assert prompts_to_decide([1.0, 1.0]) not in (0, None)
    few, many = (prompts_to_decide([1.0] * 52 + [0.0] * 48, power=power) for power in (0.5, 0.9))
    assert few is not None and many is not None and 0 < few < many


def test_ties_need_fewer_prompts_for_the_same_rate() -> None:
    without = prompts_to_decide([1.0] * 22 + [0.0] * 18)
    with_ties = prompts_to_decide([1.0] * 8 + [0.0] * 4 + [0.5] * 28)
    assert without is not None and with_ties is not None and 0 < with_ties < without / 2


@settings(max_examples=60, deadline=None)
@given(OUTCOMES)
def test_it_is_the_same_from_the_other_side(outcomes: list[float]) -> None:
    assert prompts_to_decide(outcomes) == prompts_to_decide([1 - outcome for outcome in outcomes])


@pytest.mark.parametrize(("wins", "losses", "ties"), [(22, 18, 0), (50, 40, 0), (13, 7, 20)])
def test_so_many_more_decide_four_times_in_five(wins: int, losses: int, ties: int) -> None:
    """New prompts drawn from the outcomes at hand have their rate: the interval must leave one half in 80%."""
    outcomes = np.array([1.0] * wins + [0.0] * losses + [0.5] * ties)
    more = prompts_to_decide(outcomes)
    assert more
    generator = np.random.default_rng(wins)
    decided = 0
    for study in range(300):
        new = generator.choice(outcomes, more)
        whole = mean_interval(np.concatenate([outcomes, new]), bounds=(0, 1), num_bootstrap=400, seed=study)
        decided += whole.is_above(0.5)
    assert 0.73 <= decided / 300 <= 0.87  # 80%, and three standard errors of 300 studies


# How often they err


def _with_ties(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.choice([0.0, 0.5, 1.0], p=[0.3, 0.4, 0.3], size=n)


def _of_four_responses(generator: np.random.Generator, n: int) -> np.ndarray:
    """Two policies that are one, on prompts of unlike difficulty: correlated responses, averaged."""
    easy = generator.random((n, 1))
    a, b = (generator.binomial(4, easy, (n, 2)) for _ in range(2))
    return ((a[:, :, None] > b[:, None, :]) + 0.5 * (a[:, :, None] == b[:, None, :])).mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [_with_ties, _of_four_responses])
@pytest.mark.parametrize("n", [15, 60])
def test_equal_policies_are_called_different_at_most_one_time_in_twenty(
    draw: Callable[[np.random.Generator, int], np.ndarray], n: int
) -> None:
    generator = np.random.default_rng(n)
    p_values = []
    for study in range(2000):
        outcomes = draw(generator, n)
        permuted = permutation_test(outcomes, num_permutations=999, seed=study)
        p_values.append((sign_test(outcomes).p_value, permuted.p_value, paired_t_test(outcomes, 1 - outcomes).p_value))
    sign, permutation, student = (np.array(p_values) <= 0.05).mean(0)
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert max(sign, permutation, student) <= limit
    assert permutation >= 0.015 and student >= 0.03  # not merely silent: of 9 that are no ties few levels are possible


def test_holm_keeps_all_ten_comparisons_of_equal_policies_together_at_five_percent() -> None:
    generator = np.random.default_rng(8)
    p_values = generator.random((2000, 10))
    assert (p_values.min(1) <= 0.05).mean() > 0.35  # 1 - 0.95^10 = 0.40 without a correction
    assert np.mean([holm(row).min() <= 0.05 for row in p_values]) <= 0.065


# Sentences


def test_the_sentence_on_both_tests() -> None:
    assert paired_sentence("ppo", "dpo", SignTest(61, 30, 9, 0.00153), PermutationTest(0.0021, 10_000, False)) == (
        "ppo wins more often on 61 prompts and dpo on 30, with 9 ties, which the sign test leaves out; were they "
        "equally good, chance alone would part them so far with p = 0.0015 (exact sign test) and p = 0.0021 (paired "
        "permutation test, 10,000 random swaps)"
    )
    assert paired_sentence("a", "b", SignTest(1, 0, 0, 1.0), PermutationTest(0.00001, 2, True)) == (
        "a wins more often on 1 prompt and b on 0, with no ties; were they equally good, chance alone would part them "
        "so far with p = 1 (exact sign test) and p < 0.0001 (paired permutation test, all swaps)"
    )


def test_the_sentence_on_how_many_more() -> None:
    open_rate = Interval(0.55, 0.45, 0.65, 100)
    assert decide_sentence("ppo", "dpo", open_rate, 617) == (
        "if ppo goes on to win 55.0%, about 620 more prompts beside these 100 would decide it between ppo and dpo "
        "with a chance of 80%"
    )
    assert "about 1 more prompt beside" in decide_sentence("a", "b", open_rate, 0)  # the interval has the last word
    assert "about 1,100 more prompts" in decide_sentence("a", "b", open_rate, 1001)
    assert decide_sentence("a", "b", Interval(0.5, 0.4, 0.6, 100), None) == (
        "a and b win equally often so far: no number of prompts can be named that would part them"
    )
    for rate in (Interval(0.6, 0.51, 0.7, 100), Interval(0.4, 0.3, 0.49, 100)):
        assert decide_sentence("a", "b", rate, 12) == "100 prompts decide between a and b: no more are needed"


# Errors


@pytest.mark.parametrize("function", [sign_test, permutation_test, prompts_to_decide])
def test_outcomes_must_be_shares(function: Callable[[object], object]) -> None:
    for wrong in ([], [[1.0]]):
        with pytest.raises(ValueError, match="not one number a prompt"):
            function(wrong)
    for wrong in ([1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="finite and from 0 to 1"):
            function(wrong)


def test_other_wrong_input() -> None:
    with pytest.raises(ValueError, match="num_permutations is 0"):
        permutation_test([1.0], num_permutations=0)
    for a, b in (([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]])):
        with pytest.raises(ValueError, match="not one score a prompt"):
            paired_t_test(a, b)
    with pytest.raises(ValueError, match="finite scores"):
        paired_t_test([1.0, math.inf], [1.0, math.inf])
    for wrong in ([1.2], [-0.1], [math.nan], [[0.1]]):
        for correct in (holm, benjamini_hochberg):
            with pytest.raises(ValueError, match="numbers from 0 to 1"):
                correct(wrong)
    for settings_ in ({"power": 0.4}, {"power": 1.0}, {"confidence": 1.0}, {"confidence": 0.0}):
        with pytest.raises(ValueError, match="must be from"):
            prompts_to_decide([1.0], **settings_)
