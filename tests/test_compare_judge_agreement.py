"""agreement between judges and position bias: tables worked out by hand, statsmodels' kappa, planted biases."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.compare.judge_agreement import (
    FIRST,
    SECOND,
    TIE,
    _resampled,
    agreements,
    cohens_kappa,
    combine_orders,
    position_bias,
    sides,
)
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, mean_interval

NAN = float("nan")
VERDICT = st.sampled_from([0.0, 0.5, 1.0])
COUPLES = st.lists(st.tuples(VERDICT, VERDICT), min_size=2, max_size=40)


def test_a_mean_of_votes_counts_for_its_side() -> None:
    assert sides([1, 2 / 3, 0.5, 1 / 3, 0]).tolist() == [FIRST, FIRST, TIE, SECOND, SECOND]
    assert sides([0.5 + 1e-12, 0.5 - 1e-12]).tolist() == [TIE, TIE]  # rounding is no verdict


def test_an_agreement_by_hand() -> None:
    gold = [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.5, NAN, 1.0]
    model = [1.0, 1.0, 0.0, 0.5, 0.0, 0.25, 1.0, 1.0, 1.0, NAN]
    (found,) = agreements({"gold": gold, "model": model})
    assert (found.a, found.b, found.num_pairs, found.num_decided) == ("gold", "model", 8, 6)
    # Equal: pairs 0, 1, 3, 4, 5. Without the ties 3 and 7: pairs 0, 1, 4, 5 of 6.
    assert found.with_ties is not None and found.without_ties is not None and found.kappa is not None
    assert (found.with_ties.mean, found.with_ties.n) == (5 / 8, 8)
    assert found.without_ties.mean == pytest.approx(4 / 6)
    # gold: 3 first, 2 tie, 3 second; model: 4 first, 1 tie, 3 second. By chance (12 + 2 + 9) / 64.
    assert found.kappa.mean == pytest.approx((5 / 8 - 23 / 64) / (1 - 23 / 64))
    assert found.apart == [2, 6, 7]  # two full reversals, then a tie against a win
    assert found.reasons == {} and found.slices == {}


def test_shares_have_the_houses_intervals_by_prompt() -> None:
    one, other = [1.0, 1.0, 0.0, 0.0, 1.0, 0.5], [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    prompts = ["p", "p", "q", "q", "r", "s"]
    (found,) = agreements({"x": one, "y": other}, Bootstrap(prompts))
    assert found.with_ties == mean_interval([1, 0, 1, 1, 0, 0], prompts, (0, 1))
    assert found.without_ties == mean_interval([1, 0, 1, 1, 0], prompts[:5], (0, 1))
    assert found.kappa is not None and found.kappa.n == 4


def test_every_two_judges_and_every_slice() -> None:
    verdicts = {"gold": [1.0, 0.0, 1.0, 0.0], "model": [1.0, 0.0, 0.0, 1.0], "people": [1.0, 0.0, 1.0, NAN]}
    found = agreements(verdicts, slices={"length": ["short", "short", "long", "long"], "topic": [1, 2, 1, 2]})
    assert [(pair.a, pair.b) for pair in found] == [("gold", "model"), ("gold", "people"), ("model", "people")]
    by_length = found[0].slices["length"]
    assert list(by_length) == ["short", "long"]
    assert by_length["short"].with_ties is not None and by_length["short"].with_ties.mean == 1
    assert by_length["long"].with_ties is not None and by_length["long"].with_ties.mean == 0
    assert by_length["long"].apart == [2, 3]  # numbers of all pairs, not of the slice
    assert found[1].slices["topic"]["2"].num_pairs == 1


def test_the_largest_disagreements_come_first_and_not_all_of_them() -> None:
    one, other = [0.6, 1.0, 0.0, 0.9, 0.5], [0.4, 0.0, 0.0, 0.1, 1.0]
    (found,) = agreements({"x": one, "y": other}, most=3)
    assert found.apart == [1, 3, 4]  # by 1, 0.8 and 0.5; then 0.2


@pytest.mark.parametrize(
    ("one", "other", "field", "words"),
    [
        ([NAN, 1.0], [1.0, NAN], "with_ties", "no pair that both judged"),
        ([NAN, 1.0], [1.0, NAN], "without_ties", "no pair that both judged"),
        ([NAN, 1.0], [1.0, NAN], "kappa", "no pair that both judged"),
        ([0.5, 1.0], [1.0, 0.5], "without_ties", "no pair on which neither sees a tie"),
        ([1.0, 1.0], [1.0, 1.0], "kappa", "no variation: both judges give every pair the same verdict"),
        ([0.5, 0.5], [0.5, 0.5], "kappa", "no variation"),
    ],
)
def test_what_is_undefined_is_none_with_a_reason(one: list, other: list, field: str, words: str) -> None:
    (found,) = agreements({"x": one, "y": other})
    assert getattr(found, field) is None
    assert words in found.reasons[field]


def test_a_kappa_without_an_interval_says_why() -> None:
    kappa, reason = cohens_kappa([1.0, 0.0, 1.0], [1.0, 0.0, 0.0], Bootstrap(["p", "p", "p"]))
    # Equal 2 of 3; by chance (2 * 1 + 1 * 2) / 9.
    assert kappa is not None and kappa.mean == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))
    assert (kappa.low, kappa.high, kappa.n) == (None, None, 1)
    assert reason == "no interval: one prompt only"
    kappa, reason = cohens_kappa([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert kappa == Interval(1.0, None, None, 3)
    assert reason is not None and reason == "no interval: every resample gives the same"


def test_one_that_always_says_first_agrees_by_chance_only() -> None:
    always, other = [1.0] * 10, [1.0] * 9 + [0.0]
    kappa, _ = cohens_kappa(always, other)
    assert kappa is not None and kappa.mean == 0
    # In either order chance is even: equal 0.9, by chance 0.5.
    kappa, _ = cohens_kappa(always, other, either_order=True)
    assert kappa is not None and kappa.mean == pytest.approx(0.8)


@settings(max_examples=60, deadline=None)
@given(COUPLES, st.booleans())
def test_kappa_is_statsmodels(couples: list[tuple[float, float]], either_order: bool) -> None:
    from statsmodels.stats.inter_rater import cohens_kappa as expected

    table = np.zeros((3, 3))
    for a, b in couples:
        table[int(2 * a), int(2 * b)] += 1
        if either_order:
            table[int(2 - 2 * a), int(2 - 2 * b)] += 1
    one, other = zip(*couples, strict=True)
    kappa, reason = cohens_kappa(one, other, Bootstrap(num_bootstrap=50), either_order)
    if (table.sum(1) > 0).sum() == 1 and (table.sum(0) > 0).sum() == 1 and np.trace(table) == table.sum():
        assert kappa is None and reason is not None
    else:
        theirs: Any = expected(table, return_results=False)
        assert kappa is not None and kappa.mean == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(COUPLES)
def test_naming_the_responses_or_judges_the_other_way_changes_nothing(couples: list[tuple[float, float]]) -> None:
    one, other = (np.array(side) for side in zip(*couples, strict=True))
    bootstrap = Bootstrap(num_bootstrap=50)
    (found,) = agreements({"x": one, "y": other}, bootstrap)
    (swapped,) = agreements({"y": other, "x": one}, bootstrap)
    (renamed,) = agreements({"x": 1 - one, "y": 1 - other}, bootstrap)
    for again in (swapped, renamed):
        assert again.with_ties == found.with_ties and again.without_ties == found.without_ties
        assert again.apart == found.apart
        assert (again.kappa is None) == (found.kappa is None)
        if found.kappa is not None and again.kappa is not None:
            assert again.kappa.mean == pytest.approx(found.kappa.mean)
    # Which response is named first may differ from pair to pair where kappa counts both ways.
    flip = np.arange(len(one)) % 2 == 1
    kappas = [
        cohens_kappa(np.where(at, 1 - one, one), np.where(at, 1 - other, other), bootstrap, True)[0]
        for at in (np.zeros_like(flip), flip)
    ]
    assert kappas[0] == kappas[1]


def test_kappas_interval_is_the_asymptotic_one_and_holds_prompts_together() -> None:
    from statsmodels.stats.inter_rater import cohens_kappa as expected

    generator = np.random.default_rng(3)
    one = generator.choice([0.0, 0.5, 1.0], 800, p=[0.3, 0.2, 0.5])
    other = np.where(generator.random(800) < 0.6, one, generator.choice([0.0, 0.5, 1.0], 800))
    table = np.zeros((3, 3))
    np.add.at(table, ((2 * one).astype(int), (2 * other).astype(int)), 1)
    theirs: Any = expected(table)
    kappa, _ = cohens_kappa(one, other)
    assert kappa is not None and kappa.low is not None and kappa.high is not None
    assert kappa.low == pytest.approx(theirs.kappa_low, abs=0.008)
    assert kappa.high == pytest.approx(theirs.kappa_upp, abs=0.008)
    # Four copies of each pair under its prompt are no evidence; as if they were, the interval halves.
    prompts = np.repeat(np.arange(800), 4).tolist()
    together, _ = cohens_kappa(np.repeat(one, 4), np.repeat(other, 4), Bootstrap(prompts))
    apart, _ = cohens_kappa(np.repeat(one, 4), np.repeat(other, 4))
    assert together == kappa
    assert apart is not None and apart.low is not None and apart.high is not None
    assert (apart.high - apart.low) / (kappa.high - kappa.low) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [30, 100])
def test_kappas_interval_holds_the_truth(num_prompts: int) -> None:
    """Two pairs a prompt. Judges agree on a share of 0.6, else each draws anew from 0.3, 0.2, 0.5: kappa is 0.6."""
    generator = np.random.default_rng(num_prompts)
    prompts = np.repeat(np.arange(num_prompts), 2).tolist()
    held, studies = 0, 1000
    for study in range(studies):
        one, anew = generator.choice([0.0, 0.5, 1.0], (2, 2 * num_prompts), p=[0.3, 0.2, 0.5])
        agree = np.repeat(generator.random(num_prompts) < 0.6, 2)  # a prompt is clear to both judges or to none
        kappa, _ = cohens_kappa(one, np.where(agree, one, anew), Bootstrap(prompts, num_bootstrap=500, seed=study))
        assert kappa is not None and kappa.low is not None and kappa.high is not None
        held += kappa.low <= 0.6 <= kappa.high
    assert 0.93 <= held / studies <= 0.97


@pytest.mark.parametrize(
    ("verdicts", "bootstrap", "slices", "words"),
    [
        ({"x": [1.0], "y": [1.0, 0.0]}, Bootstrap(), {}, "not as many pairs everywhere: x 1, y 2"),
        ({"x": [1.0], "y": [0.0]}, Bootstrap(["p", "q"]), {}, "x 1, y 1, the prompts 2"),
        ({"x": [1.0], "y": [0.0]}, Bootstrap(), {"length": []}, "x 1, y 1, the slices by length 0"),
        ({"x": [1.0], "y": [2.0]}, Bootstrap(), {}, "y: verdicts must be from 0 to 1, or NaN"),
    ],
)
def test_what_cannot_be_compared(verdicts: dict, bootstrap: Bootstrap, slices: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agreements(verdicts, bootstrap, slices)


def test_position_bias_by_hand() -> None:
    # a first: wins wins wins ties loses wins; a second: wins loses loses loses loses ties. Pairs 0 and 4 hold.
    as_first, as_second = [1, 1, 1, 0.5, 0, 1, NAN], [1, 0, 0, 0, 0, 0.5, 1]
    found = position_bias(as_first, as_second)
    assert found.num_pairs == 6 and found.reasons == {}
    assert found.consistent is not None and found.consistent.mean == pytest.approx(2 / 6)
    assert (found.to_first, found.to_second) == (pytest.approx(4 / 6), 0)
    # The first place wins 4.5 of 6 where a stands there, 6 - 1.5 of 6 where b does.
    assert found.first_place is not None and found.first_place.mean == pytest.approx(9 / 12)
    assert found.p == pytest.approx(2 / 2**4)  # four of four to the first, none to the second
    other_way = position_bias(as_second, as_first)
    assert (other_way.to_first, other_way.to_second, other_way.p) == (0, pytest.approx(4 / 6), found.p)


def test_the_position_test_is_by_prompt() -> None:
    as_first, as_second = np.ones(12), np.zeros(12)
    assert position_bias(as_first, as_second).p == pytest.approx(2 / 2**12)
    of_three = position_bias(as_first, as_second, Bootstrap(["p", "q", "r"] * 4))
    assert of_three.p == pytest.approx(2 / 2**3)
    assert of_three.first_place is not None and of_three.first_place.n == 3
    # On a prompt with a gain and a loss the two cancel.
    mixed = position_bias([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], Bootstrap(["p", "p", "q"]))
    assert mixed.p == 1 and mixed.to_first == pytest.approx(2 / 3)
    # A large gain and a small loss are a gain: two of two prompts.
    assert position_bias([1.0, 0.5, 1.0], [0.0, 1.0, 0.0], Bootstrap(["p", "p", "q"])).p == pytest.approx(2 / 2**2)


def test_a_planted_position_bias_is_found_and_combining_orders_removes_it() -> None:
    generator = np.random.default_rng(11)
    better = generator.random(600) < 0.6  # a is the better one
    blind = generator.random(600) < 0.3  # the judge takes whatever stands first
    as_first, as_second = np.where(blind, 1.0, better), np.where(blind, 0.0, better)
    found = position_bias(as_first, as_second)
    assert found.consistent is not None and found.first_place is not None and found.p is not None
    assert found.consistent.low is not None and found.consistent.high is not None
    assert found.consistent.low < 0.7 < found.consistent.high
    assert found.first_place.is_above(0.5) and found.p < 1e-10
    combined = combine_orders(as_first, as_second)
    assert combined[blind].tolist() == [0.5] * int(blind.sum())
    assert np.array_equal(combined[~blind], better[~blind].astype(float))
    # What one order overstates, both together do not: the rest are ties.
    assert as_first.mean() - better.mean() > 0.08
    assert combined.mean() == pytest.approx(0.5 * blind.mean() + better[~blind].mean() * (1 - blind.mean()))


@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_judge_without_bias_is_hardly_ever_accused(seed: int) -> None:
    generator = np.random.default_rng(seed)
    accused = 0
    for _ in range(300):
        as_first, as_second = generator.choice([0.0, 0.5, 1.0], (2, 25))
        p = position_bias(as_first, as_second, Bootstrap(num_bootstrap=10)).p
        accused += p is not None and p <= 0.05
    # The exact test is at most 0.05; 300 studies give it 0.05 + 3 * sqrt(0.05 * 0.95 / 300).
    assert accused / 300 <= 0.088


def test_the_sign_test_is_scipys() -> None:
    as_first = [1.0] * 9 + [0.0] * 3 + [1.0] * 5
    as_second = [0.0] * 9 + [1.0] * 3 + [1.0] * 5
    assert position_bias(as_first, as_second).p == pytest.approx(2 * stats.binom.cdf(3, 12, 0.5))


def test_orders_are_combined_as_in_mt_bench() -> None:
    as_first = [1, 1, 1, 0.5, 0.5, 0, 0.9, 0.8, NAN]
    as_second = [1, 0, 0.5, 0.5, 0, 0, 0.7, 0.3, 1]
    found = combine_orders(as_first, as_second)
    assert found[:8] == pytest.approx([1, 0.5, 0.5, 0.5, 0.5, 0, 0.8, 0.5])
    assert np.isnan(found[8])


def test_position_bias_that_cannot_be_told() -> None:
    never = position_bias([NAN, 1.0], [1.0, NAN])
    assert never.num_pairs == 0
    for field in ("consistent", "to_first", "to_second", "first_place", "p"):
        assert getattr(never, field) is None
        assert never.reasons[field] == "no pair that was judged in both orders"
    steady = position_bias([1.0, 0.0], [1.0, 0.0])
    assert steady.p is None and steady.reasons == {"p": "the order changed the verdict on no prompt"}
    assert steady.consistent is not None and steady.consistent.mean == 1


@pytest.mark.parametrize("function", [position_bias, combine_orders])
def test_both_orders_need_the_same_pairs(function) -> None:
    with pytest.raises(ValueError, match="1 verdicts in one order and 2 in the other"):
        function([1.0], [1.0, 0.0])


def test_verdicts_of_an_order_are_checked() -> None:
    with pytest.raises(ValueError, match="the verdicts in the second: verdicts must be from 0 to 1"):
        position_bias([1.0], [-1.0])


@pytest.mark.parametrize("most", [2, 300])  # the second is too much for a row to be the digits of one number
def test_kinds_of_prompts_are_drawn_in_the_same_order_however_sorted(most: int) -> None:
    tables = np.random.default_rng(0).integers(0, most, (40, 9)).astype(float)
    kinds, counts = np.unique(tables, axis=0, return_counts=True)
    drawn = np.random.default_rng(3).multinomial(40, counts / 40, size=50)
    assert (_resampled(tables, Bootstrap(num_bootstrap=50, seed=3)) == drawn @ kinds).all()
