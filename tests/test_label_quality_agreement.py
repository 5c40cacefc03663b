"""Agreement: published examples, other people's implementations, the definition, and what must not matter."""

import dataclasses
import itertools
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from labeling_app.quality.agreement import (
    cohens_kappa,
    concordance,
    kendalls_w,
    krippendorff_alpha,
    pairwise_kappa,
    percent_agreement,
    verdict_alpha,
)
from labeling_app.quality.figure import Figure
from labeling_app.quality.votes import collect, opposite
from rlhf.records import Ranking, Task
from tests.test_label_quality_votes import ranked, task

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units.
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def alpha_of(table: list[list[int | None]], distance: str) -> Figure:
    """Of observers (rows) by units (columns), None where one is missing."""
    told = [(unit, value) for row in table for unit, value in enumerate(row) if value is not None]
    units, values = np.array(told, dtype=np.int64).reshape(-1, 2).T
    return krippendorff_alpha(units, values, np.arange(len(table[0])), distance)


def alpha_by_definition(units: dict[object, list[int]], ordinal: bool) -> float | None:
    """From the definition: mean squared distance within units over that between any two values, pair by pair."""
    kept = [values for values in units.values() if len(values) > 1]
    everything = [value for values in kept for value in values]

    def squared(a: int, b: int) -> float:
        if not ordinal:
            return float(a != b)
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in everything)
        return (between - (everything.count(a) + everything.count(b)) / 2) ** 2

    observed = sum(
        sum(squared(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1) for values in kept
    )
    expected = sum(squared(a, b) for a, b in itertools.permutations(everything, 2))
    n = len(everything)
    return None if not expected else 1 - (observed / n) / (expected / (n * (n - 1)))


def evalica_alpha(table: pd.DataFrame, distance: str) -> float:
    import evalica

    return evalica.alpha(table.astype(float), distance=distance).alpha  # type: ignore[arg-type]


def pair_tasks(count: int) -> list[Task]:
    return [task(f"t{number}", "a", "b") for number in range(count)]


def told(tasks: list[Task], **by_name: str) -> list[Ranking]:
    """`told(tasks, ann="ab=-")`: ann says a, b, a tie and nothing to the four tasks."""
    ranks = {"a": {"a": 1, "b": 2}, "b": {"a": 2, "b": 1}, "=": {"a": 1, "b": 1}}
    return [
        ranked(of.id, name, ranks[verdict])
        for name, verdicts in by_name.items()
        for of, verdict in zip(tasks, verdicts, strict=True)
        if verdict != "-"
    ]


def values(figure: Figure) -> tuple[float | None, ...]:
    return figure.value, figure.low, figure.high


def test_alpha_of_the_published_example():
    assert alpha_of(EXAMPLE, "nominal").value == pytest.approx(0.743, abs=5e-4)
    assert alpha_of(EXAMPLE, "ordinal").value == pytest.approx(0.815, abs=5e-4)
    assert alpha_of(EXAMPLE, "nominal").n == 11  # the twelfth has one value
    frame = pd.DataFrame(EXAMPLE)
    for distance in ("nominal", "ordinal"):
        assert alpha_of(EXAMPLE, distance).value == pytest.approx(evalica_alpha(frame, distance), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=12), st.booleans())
def test_alpha_is_the_definitions(units, is_ordinal):
    found = krippendorff_alpha(
        np.array([number for number, row in enumerate(units) for _ in row]),
        np.array([value for row in units for value in row]),
        np.arange(len(units)),
        "ordinal" if is_ordinal else "nominal",
    )
    expected = alpha_by_definition(dict(enumerate(units)), is_ordinal)
    assert found.value == (None if expected is None else pytest.approx(expected, abs=1e-9))
    assert found.n == sum(len(row) > 1 for row in units)
    assert (found.reason is None) == (found.low is not None)
    if found.low is not None and found.high is not None and found.value is not None:
        assert found.low <= found.value <= found.high


def test_a_unit_with_one_value_leaves_the_others_of_its_cluster_alone():
    units, values = np.array([0, 0, 1, 2, 2, 4, 4]), np.array([0, 0, 1, 0, 1, 1, 1])
    figure = krippendorff_alpha(units, values, np.array([0, 0, 1, 1, 2]))
    assert figure.value == pytest.approx(alpha_by_definition({0: [0, 0], 2: [0, 1], 4: [1, 1]}, ordinal=False))
    assert figure.n == 3


def test_verdict_alpha_counts_each_pair_in_both_orders():
    tasks = pair_tasks(8)
    votes = collect(tasks, told(tasks, ann="aab=bbaa", bob="aabb=baa", cho="aa-abbab"))
    both = {}
    for pair, verdict in zip(votes.pair.tolist(), votes.verdict.tolist(), strict=True):
        both.setdefault(pair, []).append(verdict)
        both.setdefault(-1 - pair, []).append(2 - verdict)
    for distance in ("nominal", "ordinal"):
        assert verdict_alpha(votes, distance).value == pytest.approx(alpha_by_definition(both, distance == "ordinal"))
    # As the library has it: a row an annotator, a column a pair and one its mirror image.
    table = pd.DataFrame(np.nan, range(3), range(16))
    for pair, annotator, verdict in zip(votes.pair, votes.annotator, votes.verdict, strict=True):
        table.loc[annotator, pair], table.loc[annotator, pair + 8] = verdict, 2 - verdict
    assert verdict_alpha(votes).value == pytest.approx(evalica_alpha(table, "nominal"), abs=1e-12)


def test_perfect_agreement_is_one_and_its_interval_is_not_made_up():
    tasks = pair_tasks(6)
    figure = verdict_alpha(collect(tasks, told(tasks, ann="aab=bb", bob="aab=bb", cho="a---bb")))
    assert values(figure) == (1.0, None, None)
    assert figure.reason == "no interval: no disagreement yet"
    assert verdict_alpha(collect(tasks[:1], told(tasks[:1], ann="a", bob="b"))).reason == "no interval: one task only"


def test_agreement_of_one_side_only_is_agreement_all_the_same():
    # Both always prefer the first policy's response; order on screen is random, so this is no habit.
    tasks = pair_tasks(20)
    votes = collect(tasks, told(tasks, ann="a" * 20, bob="a" * 19 + "b"))
    alpha = verdict_alpha(votes).value
    assert alpha is not None and alpha > 0.85
    # As given, without both orders, it would be no better than chance.
    one_way = krippendorff_alpha(votes.pair, votes.verdict, votes.pair_task).value
    assert one_way is not None and one_way < 0.05


def test_random_answers_have_an_alpha_of_about_zero():
    rng = Random(0)
    tasks = [task(f"t{number}") for number in range(400)]
    rankings = []
    for one in tasks:
        for name in ("ann", "bob", "cho"):
            rankings.append(ranked(one.id, name, {text: rng.choice((1, 2, 3)) for text in "abc"}))
    votes = collect(tasks, rankings)
    for figure in (verdict_alpha(votes), verdict_alpha(votes, "ordinal")):
        assert figure.value == pytest.approx(0, abs=0.05)
        assert figure.low is not None and figure.high is not None and figure.low < 0 < figure.high
    assert all(figure.value == pytest.approx(0, abs=0.1) for figure in pairwise_kappa(votes).values())
    concord, chance = kendalls_w(tasks, rankings)
    assert chance == pytest.approx(1 / 3)
    assert concord.value == pytest.approx(chance, abs=0.04)


def test_what_must_not_matter_does_not_matter():
    rng = Random(1)
    tasks = [task(f"t{number}") for number in range(30)]
    rankings = []
    for one in tasks:
        for name in ("ann", "bob", "cho", "dee"):
            if rng.random() < 0.7:
                ranks = {
                    text: place if rng.random() < 0.6 else rng.randint(1, 3) for place, text in enumerate("abc", 1)
                }
                rankings.append(ranked(one.id, name, ranks))

    def figures(tasks: list[Task], rankings: list[Ranking]) -> list[tuple[float | None, ...]]:
        votes = collect(tasks, rankings)
        found = [verdict_alpha(votes), verdict_alpha(votes, "ordinal"), percent_agreement(votes)]
        found += sorted(pairwise_kappa(votes).values(), key=lambda figure: (figure.n, figure.value))
        return [values(figure) for figure in [*found, kendalls_w(tasks, rankings)[0]]]

    expected = figures(tasks, rankings)
    shuffled = rng.sample(rankings, len(rankings))
    assert figures(rng.sample(tasks, len(tasks)), shuffled) == expected
    names = {"ann": "zoe", "bob": "yan", "cho": "xi", "dee": "wes"}
    renamed = [dataclasses.replace(row, annotator=names[row.annotator]) for row in rankings]
    turned = [dataclasses.replace(one, responses=one.responses[::-1]) for one in tasks]
    for other in (figures(tasks, renamed), figures(turned, rankings)):
        for one, two in zip(expected, other, strict=True):
            assert one == pytest.approx(two, abs=1e-9)


def test_the_interval_holds_the_truth_and_heeds_clusters():
    # Two annotators see a fair coin's side; each errs with 0.2, on all five pairs of a task or on none.
    # They agree with 0.2^2 + 0.8^2 = 0.68, chance is 0.5: alpha is 0.36.
    held, held_apart, runs, tasks = 0, 0, 150, 40
    for run in range(runs):
        rng = np.random.default_rng(run)
        truth = rng.integers(0, 2, (tasks, 5))
        verdicts = [np.where(rng.random((tasks, 1)) < 0.2, 1 - truth, truth).ravel() for _ in range(2)]
        units = np.tile(np.arange(tasks * 5), 2)
        together = krippendorff_alpha(units, np.concatenate(verdicts), np.repeat(np.arange(tasks), 5))
        apart = krippendorff_alpha(units, np.concatenate(verdicts), np.arange(tasks * 5))
        for figure, is_together in ((together, True), (apart, False)):
            assert figure.low is not None and figure.high is not None
            held += is_together and figure.low <= 0.36 <= figure.high
            held_apart += not is_together and figure.low <= 0.36 <= figure.high
    assert held / runs > 0.9
    assert held_apart / runs < 0.75


def test_percent_agreement_by_hand():
    tasks = pair_tasks(4)
    votes = collect(tasks, told(tasks, ann="aab=", bob="ab==", cho="a---"))
    # Task 0: three of three couples agree; 1: a and b; 2: b and a tie; 3: both a tie.
    assert percent_agreement(votes).value == pytest.approx(4 / 6)
    assert percent_agreement(votes).n == 6
    assert percent_agreement(votes, decided=True).value == pytest.approx(3 / 4)
    assert percent_agreement(votes, annotator="cho").value == 1.0
    assert percent_agreement(votes, annotator="cho").n == 2
    assert percent_agreement(votes, annotator="ann").value == pytest.approx(3 / 5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # statsmodels, where the error is 0
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_kappa_and_its_error_are_statsmodels(couples):
    from scipy.stats import t
    from statsmodels.stats.inter_rater import cohens_kappa as reference

    one, other = np.array(couples).T
    figure = cohens_kappa(one, other, np.arange(len(couples)))
    table = np.zeros((3, 3))
    for a, b in couples:
        table[a, b] += 1
        table[2 - a, 2 - b] += 1
    if set(one) | set(other) == {1}:
        assert values(figure) == (None, None, None)
        return
    found = reference(table)
    assert figure.value == pytest.approx(found["kappa"], abs=1e-9)
    if figure.low is not None and figure.high is not None and figure.low > -1 and figure.high < 1:
        # The table holds each couple twice, so its variance is half of what it should be.
        n = len(couples)
        half = t.ppf(0.975, n - 1) * np.sqrt(2 * found["var_kappa"] * n / (n - 1))
        assert figure.high - figure.low == pytest.approx(2 * half, rel=1e-6)


def test_kappa_of_every_two_who_share_a_task():
    tasks = pair_tasks(6)
    rankings = told(tasks, ann="aabb--", bob="aaba--", cho="----ab", dee="----ab")
    found = pairwise_kappa(collect(tasks, rankings))
    assert set(found) == {("ann", "bob"), ("cho", "dee")}
    # Both orders: 8 couples, 6 the same; chance is 1/2: (3/4 - 1/2) / (1/2).
    assert found["ann", "bob"].value == pytest.approx(0.5)
    assert (found["ann", "bob"].n, found["cho", "dee"].n) == (4, 2)
    assert found["cho", "dee"].value == 1.0
    assert found["cho", "dee"].reason == "no interval: no disagreement yet"


def test_kappas_interval_heeds_tasks():
    rng = np.random.default_rng(0)
    one = np.repeat(rng.integers(0, 3, 30), 4)
    other = np.repeat(np.where(rng.random(30) < 0.6, one[::4], rng.integers(0, 3, 30)), 4)
    apart, together = cohens_kappa(one, other, np.arange(120)), cohens_kappa(one, other, np.repeat(np.arange(30), 4))
    assert apart.value == together.value
    assert apart.low is not None and together.low is not None and apart.high is not None and together.high is not None
    # Four copies of each verdict know as much as one: twice the width of 120 that are independent.
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.05)


@settings(deadline=None)
@given(
    st.integers(3, 6).flatmap(
        lambda k: st.lists(st.lists(st.integers(1, k), min_size=k, max_size=k), min_size=2, max_size=6)
    )
)
def test_w_is_friedmans_statistic(rows):
    ranks = np.array(rows)
    num, k = ranks.shape
    if all(len(set(row)) == 1 for row in rows):
        assert concordance(ranks) is None
    else:
        # Kendall's W = Friedman's chi squared / (m (k - 1)); scipy corrects for ties too.
        assert concordance(ranks) == pytest.approx(friedmanchisquare(*ranks.T).statistic / (num * (k - 1)), abs=1e-9)


def test_w_by_hand_and_over_tasks():
    tasks = [task("t1"), task("t2"), task("t3", "a", "b")]
    rankings = [ranked("t1", "ann", "abc"), ranked("t1", "bob", "abc"), ranked("t1", "cho", "abc")]
    rankings += [ranked("t2", "ann", "abc"), ranked("t2", "bob", "cba"), ranked("t3", "ann", "ab")]
    figure, chance = kendalls_w(tasks, rankings)
    assert figure.value == pytest.approx((1 + 0) / 2)  # opposite orders: all rank sums are equal
    assert figure.n == 2
    assert chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_reasons_where_nothing_can_be_said():
    tasks = pair_tasks(3)
    alone = told(tasks, ann="ab-", bob="--a")
    nobody = "fewer than two annotators share a task"
    for votes in (collect(tasks, alone), collect([], []), collect(tasks, [])):
        for figure in (verdict_alpha(votes), percent_agreement(votes)):
            assert figure == Figure(None, n=0, reason=nobody)
        assert pairwise_kappa(votes) == {}
        assert percent_agreement(votes, annotator="ann").reason == "shares no task with anyone"
    ties = collect(tasks, told(tasks, ann="===", bob="==="))
    assert verdict_alpha(ties).reason == "no variation: every verdict is the same, so agreement by chance is certain"
    assert verdict_alpha(ties).n == 3
    (figure,) = pairwise_kappa(ties).values()
    assert figure.reason == "no variation: both call everything a tie, so agreement by chance is certain"
    assert figure.n == 3
    assert percent_agreement(ties).value == 1.0
    assert percent_agreement(ties, decided=True).reason == "no two annotators decided for a side on the same pair"


def test_reasons_why_there_is_no_w():
    pairs, triple = pair_tasks(2), [task("t")]
    assert kendalls_w(pairs, told(pairs, ann="ab", bob="ab"))[0].reason == "no task has more than two responses"
    alone = [ranked("t", "ann", "abc"), ranked("t", "bob", "abc", kind="practice")]
    assert kendalls_w(triple, alone) == (
        Figure(None, n=0, reason="fewer than two annotators share a task of more than two responses"),
        None,
    )
    ties = [ranked("t", name, {"a": 1, "b": 1, "c": 1}) for name in ("ann", "bob")]
    assert kendalls_w(triple, ties)[0].reason == "no variation: all of them call everything a tie"


def test_opposite_is_its_own_inverse():
    verdicts = np.array([0, 1, 2])
    assert opposite(verdicts).tolist() == [2, 1, 0]
    assert opposite(opposite(verdicts)).tolist() == [0, 1, 2]
