"""Length and style control: planted effects that must go, an independent fit, and what must always hold."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit

from rlhf.compare.length_control import (
    ControlledRate,
    controlled_rates,
    count_markdown,
    length_controlled,
    length_question,
    mean_markdown,
    style_controlled,
)
from rlhf.compare.refits import Regression
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, mean_interval
from tests.interval_cases import holds

QUICK = Bootstrap(num_bootstrap=300)


def _study(
    num_prompts: int, seed: int, theta: float = 0.0, per_token: float = 0.0, per_deviation: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wins of a, who is 20 tokens the longer on average (SD 32), before a judge who likes `theta` and length."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(120, 25, num_prompts), generator.normal(100, 20, num_prompts)
    liking = theta + per_token * (a - b) + per_deviation * np.tanh((a - b) / (a - b).std(ddof=1))
    return (generator.random(num_prompts) < expit(liking)).astype(float), a, b


def test_a_planted_liking_for_length_is_removed() -> None:
    """Two policies alike but for length: raw says a is better, by far; controlled says neither."""
    result = length_controlled(*_study(4000, seed=0, per_deviation=1.5), QUICK)
    assert result.raw.is_above(0.55)
    assert holds(result.controlled, 0.5) and result.controlled.mean == pytest.approx(0.5, abs=0.03)
    assert holds(result.coefficients["length"], 1.5)
    assert result.longer == pytest.approx(0.73, abs=0.03)  # P(N(20, 32) > 0)


@pytest.mark.parametrize("per_token", [0.01, 0.03])
def test_a_liking_by_the_token_is_removed_too(per_token: float) -> None:
    """Not the shape that the regression has: tanh is near enough."""
    result = length_controlled(*_study(4000, seed=1, per_token=per_token), QUICK)
    assert result.raw.is_above(0.53) and not holds(result.raw, 0.5)
    assert result.controlled.mean == pytest.approx(0.5, abs=0.03)


def test_without_a_liking_for_length_nothing_changes() -> None:
    result = length_controlled(*_study(4000, seed=2, theta=0.4), QUICK)
    assert result.controlled.mean == pytest.approx(result.raw.mean, abs=0.015)
    assert holds(result.controlled, expit(0.4)) and holds(result.coefficients["length"], 0)


def test_what_is_left_is_how_much_better_the_policy_is() -> None:
    result = length_controlled(*_study(4000, seed=3, theta=-0.5, per_deviation=1.5), QUICK)
    assert result.raw.mean > 0.5  # the judge would have called the worse one better
    assert result.controlled.is_below(0.5) and holds(result.controlled, expit(-0.5))


def test_intervals_hold_the_truth() -> None:
    held = held_raw = 0
    for study in range(300):
        result = length_controlled(*_study(150, seed=study, theta=0.3, per_deviation=1.0), QUICK)
        held += holds(result.controlled, expit(0.3))
        held_raw += holds(result.raw, expit(0.3))
    assert 0.92 <= held / 300 <= 0.98
    assert held_raw / 300 < 0.75


def _shares(num_prompts: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 0.25, 0.5, 1.0], num_prompts)


def test_as_statsmodels_without_a_penalty() -> None:
    wins, (_, a, b) = _shares(200, 4), _study(200, seed=4)
    length = np.tanh((a - b) / np.std(a - b, ddof=1))
    theirs = sm.GLM(wins, sm.add_constant(length), family=sm.families.Binomial()).fit(tol=1e-12)
    ours = length_controlled(wins, a, b, QUICK, ridge=0)
    assert ours.controlled.mean == pytest.approx(expit(theirs.params[0]), abs=1e-6)
    assert ours.coefficients["length"].mean == pytest.approx(theirs.params[1], abs=1e-6)


def test_as_statsmodels_with_difficulty() -> None:
    wins, (_, a, b) = _shares(200, 5), _study(200, seed=5)
    hard = np.random.default_rng(6).normal(3, 7, 200)
    length = np.tanh((a - b) / np.std(a - b, ddof=1))
    design = np.column_stack([np.ones(200), length, (hard - hard.mean()) / hard.std(ddof=1)])
    theirs = sm.GLM(wins, design, family=sm.families.Binomial()).fit(tol=1e-12)
    design[:, 1] = 0
    ours = length_controlled(wins, a, b, QUICK, difficulty=hard, ridge=0)
    assert ours.controlled.mean == pytest.approx(expit(design @ theirs.params).mean(), abs=1e-6)
    assert ours.coefficients["difficulty"].mean == pytest.approx(theirs.params[2], abs=1e-6)
    assert list(ours.coefficients) == ["length", "difficulty"]
    assert holds(ours.controlled, ours.controlled.mean)


def test_the_penalty_as_scipy_minimises_it() -> None:
    wins, (_, a, b) = _shares(40, 7), _study(40, seed=7)
    length = np.tanh((a - b) / np.std(a - b, ddof=1))

    def loss(at: np.ndarray) -> float:
        chance = expit(at[0] + at[1] * length)
        return -(wins * np.log(chance) + (1 - wins) * np.log(1 - chance)).sum() + 5 / 2 * at[1] ** 2

    theirs = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    ours = length_controlled(wins, a, b, QUICK, ridge=5)
    assert logit(ours.controlled.mean) == pytest.approx(theirs[0], abs=1e-5)
    assert ours.coefficients["length"].mean == pytest.approx(theirs[1], abs=1e-5)


@pytest.mark.parametrize("clusters", [None, [at // 2 for at in range(60)]])
def test_of_like_length_it_is_the_raw_rate_and_its_interval(clusters: list[int] | None) -> None:
    wins = _shares(60, 8)
    result = length_controlled(wins, np.full(60, 30), np.full(60, 30), Bootstrap(clusters))
    plain = mean_interval(wins, clusters, (0, 1))
    assert result.raw == plain and result.longer == 0.5
    assert [result.controlled.mean, result.controlled.low, result.controlled.high, result.controlled.n] == (
        pytest.approx([plain.mean, plain.low, plain.high, plain.n], abs=1e-6)
    )
    assert result.coefficients["length"] == Interval(0, 0, 0, plain.n)


def test_always_longer_by_the_same_cannot_be_told_from_better() -> None:
    wins = _shares(60, 9)
    result = length_controlled(wins, np.full(60, 40), np.full(60, 30), QUICK)
    assert result.longer == 1 and result.controlled.mean == pytest.approx(wins.mean(), abs=1e-6)


def test_always_longer_and_always_better_is_not_sure() -> None:
    """Nothing says how a would do at like length, and the interval shows it; a sweep at like length is clear."""
    generator = np.random.default_rng(10)
    lengths = generator.normal(100, 20, 30)
    longer = length_controlled(np.ones(30), lengths + generator.uniform(5, 60, 30), lengths, Bootstrap())
    either = length_controlled(np.ones(30), generator.normal(100, 20, 30), lengths, Bootstrap())
    assert longer.raw.is_above(0.8) and not longer.controlled.is_above(0.7)
    assert either.controlled.is_above(0.8) and either.controlled.mean == pytest.approx(1, abs=1e-4)


def test_copies_within_a_prompt_are_no_evidence() -> None:
    wins, a, b = _study(50, seed=11, per_deviation=1.0)
    once = length_controlled(wins, a, b, QUICK, ridge=0)
    several = Bootstrap(np.repeat(np.arange(50), 4).tolist(), num_bootstrap=300)
    copied = length_controlled(np.repeat(wins, 4), np.repeat(a, 4), np.repeat(b, 4), several, ridge=0)
    assert copied.controlled.n == 50
    assert copied.controlled.low == pytest.approx(once.controlled.low, abs=0.005)  # SD's divisor is n - 1
    assert copied.controlled.high == pytest.approx(once.controlled.high, abs=0.005)


def _ends(result: ControlledRate) -> np.ndarray:
    return np.array([[one.low, one.high] for one in (result.controlled, *result.coefficients.values())])


@pytest.mark.parametrize(("num_prompts", "off"), [(200, 1e-3), (2000, 1e-4)])
@pytest.mark.parametrize("theta", [0.3, 2.5])
def test_ends_are_those_of_full_refits(
    num_prompts: int, off: float, theta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newton's step and its corrections in place of a fit to each resample: close, for even pairs and lopsided ones."""
    bootstrap = Bootstrap(num_bootstrap=1000)
    length = (*_study(num_prompts, 30, theta, per_deviation=0.5), bootstrap)
    style = (*_planted_headings(num_prompts, 31, theta, 0.5), bootstrap)
    near = [length_controlled(*length), style_controlled(*style)]
    monkeypatch.setattr("rlhf.compare.refits._MOST_OFF", -1.0)  # every resample is fitted to all its prompts
    full = [length_controlled(*length), style_controlled(*style)]
    for one, other in zip(near, full, strict=True):
        assert one.controlled.mean == other.controlled.mean
        assert np.abs(_ends(one) - _ends(other)).max() < off


def test_many_questions_at_once_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are summed together, and with difficulty, which only some have."""
    studies = [_study(150, seed, theta=0.3, per_deviation=0.5) for seed in range(5)]
    hard = np.random.default_rng(1).normal(3, 7, 150)
    questions = [length_question(*one) for one in studies] + [length_question(*studies[0], difficulty=hard)]
    alone = [controlled_rates([one], QUICK)[0] for one in questions]
    for most in (1, 10**9):
        monkeypatch.setattr("rlhf.compare.refits._MOST_SUMMED", most)
        for one, other in zip(controlled_rates(questions, QUICK), alone, strict=True):
            assert list(one.coefficients) == list(other.coefficients)
            assert one.controlled.mean == other.controlled.mean and one.longer == other.longer
            assert _ends(one) == pytest.approx(_ends(other), abs=1e-9)
            assert (one.raw.low, one.raw.high) == pytest.approx((other.raw.low, other.raw.high), abs=1e-12)
    assert controlled_rates([], QUICK) == []


def test_large_studies_need_no_full_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ten policies on ten thousand prompts take seconds."""
    fits, fit = [], Regression.fit

    def counted(self: Regression, weights: np.ndarray, *start: np.ndarray) -> np.ndarray:
        fits.append(len(weights))
        return fit(self, weights, *start)

    monkeypatch.setattr(Regression, "fit", counted)
    length_controlled(*_study(10_000, 32, per_deviation=0.5), QUICK)
    assert sum(fits) < 10  # two of the whole sample, and few resamples out of 300


def test_one_prompt_says_nothing() -> None:
    result = length_controlled([1.0], [30], [20], QUICK)
    assert (result.controlled.low, result.controlled.high, result.controlled.n) == (0, 1, 1)
    assert result.coefficients["length"] == Interval(0, None, None, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(0, 1000), st.floats(0.1, 50))
def test_sides_and_units(num_prompts: int, seed: int, unit: float) -> None:
    wins, (_, a, b) = _shares(num_prompts, seed), _study(num_prompts, seed)
    bootstrap = Bootstrap(num_bootstrap=100)
    one = length_controlled(wins, a, b, bootstrap)
    assert one.controlled.low is not None and one.controlled.high is not None
    assert 0 <= one.controlled.low <= one.controlled.mean <= one.controlled.high <= 1
    assert length_controlled(wins, unit * a, unit * b, bootstrap).controlled.mean == pytest.approx(one.controlled.mean)
    other = length_controlled(1 - wins, b, a, bootstrap)
    assert other.controlled.mean == pytest.approx(1 - one.controlled.mean, abs=1e-6)
    assert other.coefficients["length"].mean == pytest.approx(one.coefficients["length"].mean, abs=1e-6)
    assert other.longer == pytest.approx(1 - one.longer)


def test_a_prompt_s_responses_are_averaged() -> None:
    wins, a, b = _study(40, seed=12)
    several = np.stack([a - 5, a + 5], 1)
    assert length_controlled(wins, several, b, QUICK).controlled.mean == pytest.approx(
        length_controlled(wins, a, b, QUICK).controlled.mean
    )


def test_markdown_by_hand() -> None:
    text = (
        "# Title\n\n### Part **one**\nSome **bold words** and __more__, 2 * 3 * 4 ** 2\n#hashtag\n"
        "- one\n  * two\n+ three\n1. four\n2) five\n-six\n3.14 is no item\n"
        "```python\n# a comment\n- not an item\n**not bold**\n```\n## After\n```\n# never closed\n"
    )
    assert count_markdown(text) == {"headings": 3, "bold": 3, "list items": 5}
    assert count_markdown("") == {"headings": 0, "bold": 0, "list items": 0}


def test_markdown_is_averaged_over_a_prompts_responses() -> None:
    counted = mean_markdown([["# One\n- a", "- b\n- c"], ["**bold**", ""]])
    assert {name: values.tolist() for name, values in counted.items()} == {
        "headings": [0.5, 0.0],
        "bold": [0.0, 0.5],
        "list items": [1.5, 0.0],
    }


def _styled(num_prompts: int, seed: int) -> tuple[list[list[str]], list[list[str]], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)

    def write() -> str:
        headings, items = generator.poisson(1.5), generator.poisson(3)
        return "# Heading\n" * headings + "- item\n" * items + "**bold** " * generator.poisson(1)

    a, b = ([[write()] for _ in range(num_prompts)] for _ in range(2))
    return a, b, generator.normal(120, 25, num_prompts), generator.normal(100, 20, num_prompts)


def _proportional(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    quotient = (a - b) / (a + b + 1)
    return quotient / quotient.std(ddof=1)


def _planted_headings(num_prompts: int, seed: int, theta: float, gamma: float) -> tuple[np.ndarray, tuple, tuple]:
    a, b, a_lengths, b_lengths = _styled(num_prompts, seed)
    headings = _proportional(*(np.array([row[0].count("#") for row in texts], float) for texts in (a, b)))
    wins = np.random.default_rng(seed + 1).random(num_prompts) < expit(theta + gamma * headings)
    return wins.astype(float), (a, b), (a_lengths, b_lengths)


def test_a_planted_liking_for_headings_is_found() -> None:
    result = style_controlled(*_planted_headings(3000, 20, theta=0.3, gamma=0.8), QUICK)
    assert holds(result.controlled, expit(0.3)) and result.controlled.is_above(0.5)
    assert holds(result.coefficients["headings"], 0.8) and result.coefficients["headings"].is_above(0.6)
    for other in ("length", "bold", "list items"):
        assert abs(result.coefficients[other].mean) < 0.15
    assert list(result.coefficients) == ["length", "headings", "bold", "list items"]


def test_style_as_statsmodels_without_a_penalty() -> None:
    wins, texts, lengths = _planted_headings(300, 21, theta=0.2, gamma=0.5)
    counts = [
        np.array([[row[0].count(sign) for row in its] for sign in ("#", "**bold**", "- item")], float) for its in texts
    ]
    columns = [_proportional(*lengths), *(_proportional(a, b) for a, b in zip(*counts, strict=True))]
    design = sm.add_constant(np.column_stack(columns))
    theirs = sm.GLM(wins, design, family=sm.families.Binomial()).fit(tol=1e-12).params
    ours = style_controlled(wins, texts, lengths, QUICK, ridge=0)
    assert ours.controlled.mean == pytest.approx(expit(theirs[0]), abs=1e-6)
    assert [one.mean for one in ours.coefficients.values()] == pytest.approx(theirs[1:], abs=1e-6)


def test_coefficients_hold_the_truth() -> None:
    held = 0
    for study in range(150):
        result: ControlledRate = style_controlled(*_planted_headings(200, 100 + study, theta=0.3, gamma=0.6), QUICK)
        held += holds(result.coefficients["headings"], 0.6)
    assert 0.9 <= held / 150 <= 0.99


@pytest.mark.parametrize(
    ("wins", "a", "difficulty", "words"),
    [
        ([], [], None, "from 0 to 1 for each of some prompts"),
        ([0.5, 1.5], [1, 2], None, "from 0 to 1"),
        ([0.5, np.nan], [1, 2], None, "from 0 to 1"),
        ([[0.5], [1.0]], [1, 2], None, "from 0 to 1"),
        ([0.5, 1.0], [1], None, "1 and 1 lengths for 2 wins"),
        ([0.5, 1.0], [1, np.inf], None, "lengths must be finite"),
        ([0.5, 1.0], [1, 2], [1.0], r"difficulty of the shape \(1,\) for 2 prompts"),
        ([0.5, 1.0], [1, 2], [1.0, np.nan], "one finite number each"),
    ],
)
def test_what_cannot_be_controlled(wins: list, a: list, difficulty: list | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        length_controlled(wins, a, a, QUICK, difficulty)


def test_texts_must_be_of_the_same_prompts() -> None:
    with pytest.raises(ValueError, match=r"texts and lengths of \[1, 2\] prompts for 2 wins"):
        style_controlled([0.5, 1.0], ([["x"]], [["y"], ["z"]]), ([3, 4], [3, 4]), QUICK)


def test_a_difference_that_is_always_the_same_is_no_difference_in_style() -> None:
    """(10 - 11) / (10 + 11 + 1) on every prompt: its deviation is rounding, and must not be divided by."""
    wins, texts = np.array([1.0, 0.0] * 30), [["**a** b"], ["a"]] * 30
    rate = style_controlled(wins, (texts, texts[::-1]), (np.full(60, 10.0), np.full(60, 11.0)), Bootstrap())
    assert rate.coefficients["length"].mean == 0
    assert 0.2 < rate.controlled.mean < 0.8
