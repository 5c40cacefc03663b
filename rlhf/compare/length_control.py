"""Win rates as they would be if the two policies' responses were alike in length, or in style.

A judge, human or model, may prefer what is longer or prettier. A logistic regression takes the preference
apart into a term of the policies and terms of style; the controlled win rate is what it predicts where
the responses do not differ in style.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf.compare.refits import Regression, refitted
from rlhf.compare.scale import around, cluster_numbers, percentile_ends
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

LENGTH = "length"
DIFFICULTY = "difficulty"
# The penalty on the terms of style: that of a normal prior whose standard deviation is 2.5 logits a
# standard deviation of the difference (the scale of Gelman et al. 2008, "A weakly informative default prior
# distribution for logistic and other regression models"). Hundreds of prompts outweigh it.
RIDGE = 1 / 2.5**2

# On the policies' own term: too weak to show in any digit, it keeps the term finite where one wins always.
_FLOOR = 1e-6

_ROUNDING = 1e-12  # so little of the largest difference is no spread: thirds and their like do not come out even

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARKDOWN = {
    "headings": re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "list items": re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])\s", re.MULTILINE),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ControlledRate:
    """How often policy a beats policy b, as it is and with style taken out.

    Args:
        raw: the win rate, ties half.
        controlled: the win rate where the responses do not differ in style.
        coefficients: by term, how many logits the preference moves with one unit of it; above 0 where the
            judge likes more of it. One of length is one of tanh(difference / SD); of style, one SD.
        longer: the share of prompts on which a's responses are the longer, ties half. Near 0 or 1 there are
            hardly any prompts to learn from what a like length does, and the controlled rate is extrapolated.
    """

    raw: Interval
    controlled: Interval
    coefficients: dict[str, Interval]
    longer: float


@dataclass(frozen=True)
class Question:
    """How often a policy would win at equal style, ready to be fitted.

    Args:
        wins: (prompts,), how often a beats b.
        style: by term, how much more of it a's response has, in the units of its coefficient, (prompts,).
        longer: see `ControlledRate`.
        ridge: penalty on all terms but the policies' own.
        difficulty: (prompts,), where it is known.
    """

    wins: Array
    style: Mapping[str, Array]
    longer: float
    ridge: float
    difficulty: Array | None = None


def length_controlled(
    wins: ArrayLike,
    a_lengths: ArrayLike,
    b_lengths: ArrayLike,
    bootstrap: Bootstrap,
    difficulty: ArrayLike | None = None,
    ridge: float = RIDGE,
) -> ControlledRate:
    """AlpacaEval 2's length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475, equation 2).

    logit P(a wins on prompt x) = theta + phi tanh((length of a - length of b) / SD) + psi difficulty(x),
    SD being that of the difference over prompts; the controlled rate is the mean over prompts of P with
    phi's term at 0.

    Args:
        wins: (prompts,), how often a beats b, in [0, 1], ties half.
        a_lengths: (prompts,) or (prompts, responses), whose mean counts; in any unit.
        b_lengths: b's.
        bootstrap: how intervals are made.
        difficulty: (prompts,), how hard each prompt is, in any unit, where that is known from elsewhere:
            AlpacaEval has it from a hundred models. No such term where None. Do not take it from the same
            judge's verdicts on a few policies: they hold the same liking for length.
        ridge: penalty on phi and psi; 0 for plain maximum likelihood.

    AlpacaEval penalises by an L1 norm chosen by cross-validation and by made-up comparisons with models that
    game it; here it is a fixed ridge, so the numbers agree where data are plenty. SD and ridge are the same in all
    resamples; two more prompts, one won and one lost at equal style, are drawn with the others as in
    `mean_interval`, whose interval this one is where lengths do not differ.

    Raises ValueError for arrays of unlike length, and for wins or lengths that are none.
    """
    return controlled_rates([length_question(wins, a_lengths, b_lengths, difficulty, ridge)], bootstrap)[0]


def length_question(
    wins: ArrayLike,
    a_lengths: ArrayLike,
    b_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    ridge: float = RIDGE,
) -> Question:
    """What `length_controlled` asks, for `controlled_rates`."""
    wins, a, b = _checked_wins(wins), _by_prompt(a_lengths), _by_prompt(b_lengths)
    if not len(a) == len(b) == len(wins):
        raise ValueError(f"{len(a)} and {len(b)} lengths for {len(wins)} wins")
    terms = {LENGTH: np.tanh(_in_deviations(a - b))}
    return Question(wins, terms, _longer(a, b), ridge, _checked_difficulty(difficulty, len(wins)))


def style_controlled(
    wins: ArrayLike,
    texts: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    lengths: tuple[ArrayLike, ArrayLike],
    bootstrap: Bootstrap,
    ridge: float = RIDGE,
) -> ControlledRate:
    """The win rate controlled for length and markdown, as Chatbot Arena does (Li et al. 2024, "Does style matter?").

    logit P(a wins) = theta + sum over features f of gamma_f (a_f - b_f) / (a_f + b_f + 1) / SD, which takes
    500 tokens against 520 for nearly alike and 20 against 40 for unlike; SD is that of the quotient over
    prompts. Nothing is centred: 0 is no difference in style.

    Args:
        wins: (prompts,), how often a beats b, in [0, 1], ties half.
        texts: a's and b's responses, by prompt; a feature of a prompt is the mean of its responses'.
        lengths: a's and b's, as in `length_controlled`.
        bootstrap: how intervals are made.
        ridge: penalty on each gamma; 0 for plain maximum likelihood.

    Raises ValueError as `length_controlled`.
    """
    a, b = texts
    return controlled_rates([style_question(wins, (mean_markdown(a), mean_markdown(b)), lengths, ridge)], bootstrap)[0]


def style_question(
    wins: ArrayLike,
    markdown: tuple[Mapping[str, Array], Mapping[str, Array]],
    lengths: tuple[ArrayLike, ArrayLike],
    ridge: float = RIDGE,
) -> Question:
    """What `style_controlled` asks, for `controlled_rates`; of a's and b's texts only `mean_markdown` is needed."""
    wins = _checked_wins(wins)
    a, b = ({LENGTH: _by_prompt(one)} | dict(its) for one, its in zip(lengths, markdown, strict=True))
    sizes = {len(values) for counts in (a, b) for values in counts.values()}
    if sizes != {len(wins)}:
        raise ValueError(f"texts and lengths of {sorted(sizes)} prompts for {len(wins)} wins")
    terms = {name: _in_deviations((a[name] - b[name]) / (a[name] + b[name] + 1)) for name in a}
    return Question(wins, terms, _longer(a[LENGTH], b[LENGTH]), ridge)


def count_markdown(text: str) -> dict[str, int]:
    """How many headings, bold passages and list items a text has, code blocks left out."""
    outside = _CODE.sub("", text)
    return {name: len(pattern.findall(outside)) for name, pattern in _MARKDOWN.items()}


def mean_markdown(texts: Sequence[Sequence[str]]) -> dict[str, Array]:
    """What `count_markdown` counts, by feature: the mean over each prompt's responses, (prompts,)."""
    counts = [[tuple(count_markdown(text).values()) for text in row] for row in texts]
    means = [[sum(each) / len(row) for each in zip(*row, strict=True)] for row in counts]
    return dict(zip(_MARKDOWN, np.array(means).T, strict=True))


def _checked_wins(wins: ArrayLike) -> Array:
    values = np.asarray(wins, dtype=float)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("wins must be one number from 0 to 1 for each of some prompts")
    return values


def _by_prompt(values: ArrayLike) -> Array:
    given = np.asarray(values, dtype=float)
    if not np.isfinite(given).all():
        raise ValueError("lengths must be finite")
    return given if given.ndim == 1 else given.mean(1)


def _in_deviations(differences: Array) -> Array:
    """In standard deviations from 0, not from the mean; nothing but 0 where all are the same but for rounding."""
    deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
    rounding = _ROUNDING * np.abs(differences).max(initial=0)
    return differences / deviation if deviation > rounding else np.zeros_like(differences)


def _longer(a: Array, b: Array) -> float:
    return float(((a > b) + 0.5 * (a == b)).mean())


def _checked_difficulty(difficulty: ArrayLike | None, num_prompts: int) -> Array | None:
    """In standard deviations from its mean."""
    if difficulty is None:
        return None
    hard = np.asarray(difficulty, dtype=float)
    if hard.shape != (num_prompts,) or not np.isfinite(hard).all():
        raise ValueError(f"difficulty of the shape {hard.shape} for {num_prompts} prompts; one finite number each")
    return _in_deviations(hard - hard.mean())


def controlled_rates(questions: Sequence[Question], bootstrap: Bootstrap) -> list[ControlledRate]:
    """What each question asks, all resampled together, which is many times as fast as one by one.

    Args:
        questions: on the same prompts.
        bootstrap: how intervals are made.
    """
    if not questions:
        return []
    raws = bootstrap.intervals(np.stack([one.wins for one in questions]), (0.0, 1.0))
    clusters = cluster_numbers(bootstrap.clusters, len(questions[0].wins))
    regressions = [_regression(one) for one in questions]
    ends = [np.column_stack([[0.0, 1.0], np.full((2, one.num_terms - 1), np.nan)]) for one in regressions]
    if raws[0].n > 1:
        ends = [percentile_ends(one, raws[0].n, bootstrap) for one in refitted(regressions, clusters, bootstrap)]
    return [_controlled(*each) for each in zip(questions, raws, regressions, ends, strict=True)]


def _regression(question: Question) -> Regression:
    columns = [np.ones(len(question.wins)), *question.style.values()]
    if question.difficulty is not None:
        columns.append(question.difficulty)
    penalty = np.append(_FLOOR, np.full(len(columns) - 1, max(question.ridge, _FLOOR)))
    return Regression(np.column_stack(columns), question.wins, len(question.style), penalty)


def _controlled(question: Question, raw: Interval, regression: Regression, ends: Array) -> ControlledRate:
    once = np.ones((1, len(question.wins)))
    fitted = regression.fit(once)
    rate, *coefficients = (
        around(value, its, raw.n)
        for value, its in zip([float(regression.rates(fitted, once)[0]), *fitted[0, 1:]], ends.T, strict=True)
    )
    names = [*question.style] if question.difficulty is None else [*question.style, DIFFICULTY]
    return ControlledRate(raw, rate, dict(zip(names, coefficients, strict=True)), question.longer)
