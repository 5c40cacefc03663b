"""Votes and a judge combined: PPI++ worked out by hand, its limits, and coverage on studies whose truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.compare.few_votes import MIN_VOTED, FewVotes, combine_votes
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, mean_interval
from tests.interval_cases import holds

# 12 voted prompts of 36: people's mean is 8/12, the judge's is 9/12 there and 16/24 on the others.
PEOPLE = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
JUDGE = [1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, *[1, 0, 1] * 8]
FAST = Bootstrap(num_bootstrap=100)


def test_the_rate_by_hand() -> None:
    found = combine_votes(JUDGE, range(12), PEOPLE)
    # cov = 8/12 - 8/12 * 9/12 = 1/6. All verdicts: 25 of 36, variance 25/36 * 11/36 * 36/35 = 55/252.
    weight = (1 / 6) / ((1 + 12 / 24) * 55 / 252)
    assert found.weight == pytest.approx(weight)
    assert found.combined.mean == pytest.approx(8 / 12 + weight * (16 / 24 - 9 / 12))
    assert found.judge == pytest.approx(25 / 36)
    assert found.bias == pytest.approx(25 / 36 - found.combined.mean)
    assert (found.combined.n, found.num_votes, found.reason) == (12, 12, None)
    assert found.votes == mean_interval(PEOPLE, bounds=(0, 1))


def test_the_interval_by_leaving_out_one_prompt_at_a_time() -> None:
    """The same jackknife, prompt by prompt, with numpy's own means and covariances."""
    f, y = np.array(JUDGE, dtype=float), np.array(PEOPLE, dtype=float)

    def rate(kept: list[int]) -> tuple[float, float]:
        voted, others = [i for i in kept if i < 12], [i for i in kept if i >= 12]
        covariance = np.cov(y[voted], f[voted], bias=True)[0, 1]
        weight = covariance / ((1 + len(voted) / len(others)) * np.var(f[kept], ddof=1))
        return y[voted].mean() + weight * (f[others].mean() - f[voted].mean()), y[voted].mean()

    without = np.array([rate([i for i in range(36) if i != out]) for out in range(36)])
    variance, alone = ((without - without.mean(0)) ** 2).sum(0) * 35 / 36
    # Which is too much by 2 / 12 where a weight is fitted too, by 1 / 12 where only a mean is.
    variance, alone = variance * 10 / 12, alone * 11 / 12
    # Half a prompt more at each bound: (1 - 2/3)^2 and (2/3)^2 more squares, half of them, 13 prompts instead of 12.
    variance, alone = ((144 * v + 5 / 18) / 13**2 for v in (variance, alone))
    middle = (12 * rate(list(range(36)))[0] + 0.5) / 13
    half = stats.t.ppf(0.975, 10) * math.sqrt(variance)
    found = combine_votes(JUDGE, range(12), PEOPLE)
    assert found.combined.low == pytest.approx(middle - half)
    assert found.combined.high == pytest.approx(middle + half)
    assert found.effective == pytest.approx(12 * alone / variance)
    assert found.worth == pytest.approx(found.effective - 12)


def test_the_weight_is_the_one_with_the_least_variance() -> None:
    """Of all weights, tried one by one, PPI++'s gives the smallest variance of the rate."""
    generator = np.random.default_rng(0)
    f = generator.random(4000)
    y = (generator.random(1000) < f[:1000]).astype(float)
    weights = np.linspace(0, 2, 2001)
    variances = [np.var(y - weight * f[:1000]) / 1000 + weight**2 * np.var(f) / 3000 for weight in weights]
    assert combine_votes(f, range(1000), y, FAST).weight == pytest.approx(weights[np.argmin(variances)], abs=0.05)


def test_several_votes_of_a_prompt_are_averaged() -> None:
    twice = [index for index in range(12) for _ in range(2)]
    votes = [vote for vote in PEOPLE for _ in range(2)]
    once, again = combine_votes(JUDGE, range(12), PEOPLE), combine_votes(JUDGE, twice, votes)
    assert (again.combined, again.votes, again.effective) == (once.combined, once.votes, once.effective)
    assert (once.num_votes, again.num_votes) == (12, 24)
    split = combine_votes(JUDGE, [*range(12), 0], [*PEOPLE, 0.0])
    assert split.votes.mean == pytest.approx(7.5 / 12)


def test_copies_of_a_prompt_are_no_evidence() -> None:
    """Every prompt three times, under one cluster: the same interval, not a shorter one."""
    judge, votes = np.repeat(JUDGE, 3), np.repeat(PEOPLE, 3)
    clusters = np.repeat(np.arange(36), 3).tolist()
    once = combine_votes(JUDGE, range(12), PEOPLE)
    together = combine_votes(judge, range(36), votes, Bootstrap(clusters))
    apart = combine_votes(judge, range(36), votes)
    assert together.combined.n == 12
    # (The judge's variance has one degree of freedom less of 36 or of 108.)
    assert together.combined.mean == pytest.approx(once.combined.mean, abs=0.01)
    assert _width(together.combined) == pytest.approx(_width(once.combined), rel=0.03)
    assert _width(apart.combined) < 0.7 * _width(once.combined)


def test_a_good_judge_makes_the_interval_shorter() -> None:
    generator = np.random.default_rng(1)
    y = (generator.random(1000) < 0.6).astype(float)
    f = np.where(generator.random(1000) < 0.1, 1 - y, y)  # wrong one time in ten: correlation about 0.8
    found = combine_votes(f, range(100), y[:100])
    assert _width(found.combined) < 0.75 * _width(found.votes)
    # Variance left: 1 - 0.8^2 * (1 - 100/1000) = 0.42, so 100 votes are worth about 236.
    assert 170 < found.effective < 330
    assert found.sentence == (
        f"The judge makes 100 prompts with 100 human votes worth {found.effective:.0f}: "
        f"{found.worth:.0f} voted prompts more."
    )


def test_a_biased_judge_is_corrected() -> None:
    """It calls half of the lost prompts won: 0.8 where people say 0.6."""
    generator = np.random.default_rng(2)
    y = (generator.random(3000) < 0.6).astype(float)
    f = np.where(generator.random(3000) < 0.5, 1.0, y)
    found = combine_votes(f, range(400), y[:400])
    assert found.judge > 0.75
    assert found.combined.low is not None and found.combined.high is not None
    assert found.combined.low < 0.6 < found.combined.high and found.combined.high < 0.7
    assert found.bias == pytest.approx(0.2, abs=0.06)


def test_no_judge_is_worth_more_than_a_vote_on_every_prompt() -> None:
    generator = np.random.default_rng(3)
    y = (generator.random(60) < 0.5).astype(float)
    found = combine_votes(y, range(50), y[:50])
    assert found.combined.mean == pytest.approx(y.mean(), abs=0.01)
    assert 50 < found.effective <= 60


def _width(interval: Interval) -> float:
    assert interval.low is not None and interval.high is not None
    return interval.high - interval.low


@pytest.mark.parametrize(
    ("judge", "votes", "reason"),
    [
        ([1.0, 0.0] * 20, [1.0, 0.0] * 4, "fewer than 10 voted prompts cannot tell what the judge is worth"),
        ([0.5] * 40, [1.0, 0.0] * 10, "the judge says the same of every prompt"),
        ([1.0, 0.0] * 20, [1.0, 0.0] * 20, "people voted on all prompts, or on all but one"),
        ([1.0, 0.0] * 10 + [1.0], [1.0, 0.0] * 10, "people voted on all prompts, or on all but one"),
        ([1.0, 0.0] * 20, [0.0, 1.0] * 10, "the judge's verdicts say nothing of how people vote"),  # the opposite
        ([1.0, 0.0] * 20, [1.0, 1.0, 0.0, 0.0] * 5, "the judge's verdicts say nothing of how people vote"),
        ([1.0, 0.0] * 20, [1.0] * 20, "the judge's verdicts say nothing of how people vote"),  # people all agree
    ],
)
def test_a_judge_of_no_use_leaves_the_votes_alone(judge: list[float], votes: list[float], reason: str) -> None:
    found = combine_votes(judge, range(len(votes)), votes, FAST)
    alone = mean_interval(votes, bounds=(0, 1), num_bootstrap=100)
    assert (found.combined, found.votes, found.weight, found.reason) == (alone, alone, 0, reason)
    assert found.effective == len(votes) and found.worth == 0
    assert found.sentence == f"From {len(votes)} prompts with {len(votes)} human votes alone: {reason}."


def test_the_fewest_votes_that_a_judge_can_help() -> None:
    generator = np.random.default_rng(4)
    y = generator.permutation([1.0, 0.0] * 50)
    assert combine_votes(y, range(MIN_VOTED - 1), y[: MIN_VOTED - 1], FAST).reason is not None
    assert combine_votes(y, range(MIN_VOTED), y[:MIN_VOTED], FAST).reason is None


def test_a_judge_that_foresaw_every_vote_is_not_certain() -> None:
    """26 of 30 won and the judge knew them all. Without the added prompts the interval is 0.08 wide."""
    y = [1.0] * 26 + [0.0] * 4
    found = combine_votes(y * 10, range(30), y)
    assert found.weight > 0.8
    assert 0.09 < _width(found.combined) < _width(found.votes)


@pytest.mark.parametrize(
    ("judge", "voted", "votes", "clusters", "words"),
    [
        ([0.5], [], [], None, "no human votes"),
        ([0.5, 1.0], [0, 1], [1.0], None, "1 votes for 2 indices of prompts"),
        ([0.5, 1.0], [2], [1.0], None, "votes on prompts 2 to 2, of 2 that the judge saw"),
        ([0.5, 1.0], [-1], [1.0], None, "votes on prompts -1 to -1, of 2"),
        ([0.5, 1.5], [0], [1.0], None, "the judge's verdicts must be from 0 to 1"),
        ([0.5, math.nan], [0], [1.0], None, "the judge's verdicts must be from 0 to 1"),
        ([0.5, 1.0], [0], [-1.0], None, "votes must be from 0 to 1"),
        ([0.5, 1.0], [0], [1.0], ["p"], "1 clusters for 2 prompts"),
    ],
)
def test_what_cannot_be_combined(judge: list, voted: list, votes: list, clusters: list | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        combine_votes(judge, voted, votes, Bootstrap(clusters))


VERDICTS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=20, max_size=40)


@settings(max_examples=80, deadline=None)
@given(VERDICTS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_what_must_hold_for_any_votes(judge: list[float], num_voted: int, random) -> None:
    votes = [random.choice([0.0, 0.5, 1.0]) for _ in range(num_voted)]
    found = combine_votes(judge, range(num_voted), votes, FAST)
    low, high = found.combined.low, found.combined.high
    assert low is not None and high is not None
    assert 0 <= low <= found.combined.mean <= high <= 1
    assert num_voted <= found.effective <= len(judge)
    assert (found.weight == 0) == (found.reason is not None)
    # Seen from the other policy all is mirrored.
    other = combine_votes([1 - f for f in judge], range(num_voted), [1 - y for y in votes], FAST)
    assert other.weight == pytest.approx(found.weight)
    assert other.combined.mean == pytest.approx(1 - found.combined.mean)
    if found.reason is None:
        assert (other.combined.low, other.combined.high) == pytest.approx((1 - high, 1 - low))
    # The order of the prompts does not matter.
    order = random.sample(range(len(judge)), len(judge))
    place = {prompt: at for at, prompt in enumerate(order)}
    shuffled = combine_votes([judge[prompt] for prompt in order], [place[i] for i in range(num_voted)], votes, FAST)
    assert shuffled.weight == pytest.approx(found.weight)
    assert shuffled.combined.mean == pytest.approx(found.combined.mean)


# Made-up studies: of some prompts, what people say and what the judge says.
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
NUM_PROMPTS = 400


def _judge_that_errs(share_won: float, calls_lost: float, calls_won: float) -> Draw:
    """It calls this share of the won prompts lost and that of the lost ones won."""

    def draw(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        y = (generator.random(n) < share_won).astype(float)
        errs = generator.random(n) < np.where(y == 1, calls_lost, calls_won)
        return y, np.where(errs, 1 - y, y)

    return draw


def _useless(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return (generator.random(n) < 0.6).astype(float), generator.choice([0.0, 0.5, 1.0], n)


def _graded(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The judge gives a probability, and three people vote by it: mean 2 / 3.3."""
    q = generator.beta(2, 1.3, n)
    return generator.binomial(3, q) / 3, q


def _ties(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The judge adds a leaning of its own to what people see: ties, wins, losses; mean 0.55."""
    y = generator.choice([0.0, 0.5, 1.0], n, p=[0.3, 0.3, 0.4])
    return y, np.clip(y + generator.choice([0.0, 0.5], n), 0, 1)


JUDGES = {
    "good": (_judge_that_errs(0.6, 0.15, 0.15), 0.6),
    "biased": (_judge_that_errs(0.6, 0.02, 0.4), 0.6),
    "useless": (_useless, 0.6),
    "graded": (_graded, 2 / 3.3),
    "ties": (_ties, 0.55),
}
STUDIES = 2000


def _study(draw: Draw, num_voted: int, generator: np.random.Generator, seed: int) -> FewVotes:
    y, f = draw(generator, NUM_PROMPTS)
    return combine_votes(f, range(num_voted), y[:num_voted], Bootstrap(num_bootstrap=200, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("num_voted", [30, 100])
@pytest.mark.parametrize("judge", JUDGES)
def test_intervals_hold_the_truth_whatever_the_judge(judge: str, num_voted: int) -> None:
    draw, truth = JUDGES[judge]
    generator = np.random.default_rng(num_voted)
    found = [_study(draw, num_voted, generator, seed) for seed in range(STUDIES)]
    held = np.mean([holds(study.combined, truth) for study in found])
    # 93 to 97 times of 100, give or take one standard error of what so many studies can tell.
    noise = math.sqrt(0.05 * 0.95 / STUDIES)
    assert 0.93 - noise <= held <= 0.97 + noise
    # The rate is people's, whatever the judge's own: its mean error is within four standard errors of none.
    rates = np.array([study.combined.mean for study in found])
    assert abs(rates.mean() - truth) < 4 * rates.std() / math.sqrt(STUDIES) + 0.005
    shorter = np.mean([_width(study.combined) for study in found]) / np.mean([_width(study.votes) for study in found])
    assert shorter <= (1.01 if judge == "useless" else 0.93)


@pytest.mark.slow
def test_intervals_hold_the_truth_where_prompts_hang_together() -> None:
    """60 topics of five prompts, 30 of them voted on: whole topics are won or lost by the same policy."""
    generator = np.random.default_rng(7)
    clusters = np.repeat(np.arange(60), 5).tolist()
    held = held_if_apart = 0
    for seed in range(1000):
        easy = np.repeat(generator.beta(1.2, 0.8, 60), 5)  # mean 0.6
        y = (generator.random(300) < easy).astype(float)
        f = np.where(generator.random(300) < 0.25, 1 - y, y)
        args = f, range(150), y[:150]
        held += holds(combine_votes(*args, Bootstrap(clusters, num_bootstrap=200, seed=seed)).combined, 0.6)
        held_if_apart += holds(combine_votes(*args, Bootstrap(num_bootstrap=200, seed=seed)).combined, 0.6)
    assert 0.93 <= held / 1000 <= 0.97
    assert held_if_apart / 1000 < 0.87


@pytest.mark.slow
def test_a_nearly_perfect_judge_and_a_walkover_are_on_the_safe_side() -> None:
    """Errors of a few in a hundred cannot be learned from 30 votes: the interval is then rather too long."""
    for draw, truth in [(_judge_that_errs(0.6, 0.03, 0.03), 0.6), (_judge_that_errs(0.9, 0.1, 0.1), 0.9)]:
        generator = np.random.default_rng(9)
        found = [_study(draw, 30, generator, seed) for seed in range(1000)]
        assert np.mean([holds(study.combined, truth) for study in found]) >= 0.925


@pytest.mark.slow
def test_equal_policies_are_hardly_ever_told_apart() -> None:
    """The judge prefers one of them by ten points; the votes know better."""
    generator = np.random.default_rng(10)
    called = judge_called = 0
    for seed in range(1000):
        study = _study(_judge_that_errs(0.5, 0.1, 0.3), 60, generator, seed)
        called += study.combined.is_above(0.5) or study.combined.is_below(0.5)
        judge_called += study.judge > 0.55
    assert called / 1000 <= 0.07 and judge_called / 1000 > 0.9
