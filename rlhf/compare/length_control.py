"""Win rates as they would be if the two policies' responses were alike in length, or in style.

A judge, human or model, may prefer what is longer or prettier. A logistic regression takes the preference
apart into a term of the policies and terms of style; the controlled win rate is what it predicts where
the responses do not differ in style.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rlhf.compare.scale import around, cluster_numbers, fit_logistic, percentile_ends
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, drawn_counts

LENGTH = "length"
DIFFICULTY = "difficulty"
# The penalty on the terms of style: that of a normal prior whose standard deviation is 2.5 logits a
# standard deviation of the difference (the scale of Gelman et al. 2008, "A weakly informative default prior
# distribution for logistic and other regression models"). Hundreds of prompts outweigh it.
RIDGE = 1 / 2.5**2

# On the policies' own term: too weak to show in any digit, it keeps the term finite where one wins always.
_FLOOR = 1e-6

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
    wins, a, b = _checked_wins(wins), _by_prompt(a_lengths), _by_prompt(b_lengths)
    if not len(a) == len(b) == len(wins):
        raise ValueError(f"{len(a)} and {len(b)} lengths for {len(wins)} wins")
    terms = {LENGTH: np.tanh(_in_deviations(a - b))}
    return _controlled(wins, terms, _longer(a, b), bootstrap, difficulty, ridge)


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
    wins = _checked_wins(wins)
    a, b = ({LENGTH: _by_prompt(one)} | _style(its) for one, its in zip(lengths, texts, strict=True))
    sizes = {len(values) for counts in (a, b) for values in counts.values()}
    if sizes != {len(wins)}:
        raise ValueError(f"texts and lengths of {sorted(sizes)} prompts for {len(wins)} wins")
    terms = {name: _in_deviations((a[name] - b[name]) / (a[name] + b[name] + 1)) for name in a}
    return _controlled(wins, terms, _longer(a[LENGTH], b[LENGTH]), bootstrap, None, ridge)


def count_markdown(text: str) -> dict[str, int]:
    """How many headings, bold passages and list items a text has, code blocks left out."""
    outside = _CODE.sub("", text)
    return {name: len(pattern.findall(outside)) for name, pattern in _MARKDOWN.items()}


def _style(texts: Sequence[Sequence[str]]) -> dict[str, Array]:
    """Each count's mean over a prompt's responses, by feature."""
    counts = [[count_markdown(text) for text in row] for row in texts]
    return {name: np.array([fmean(one[name] for one in row) for row in counts]) for name in _MARKDOWN}


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
    """In standard deviations from 0, not from the mean; nothing but 0 where all are the same."""
    deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return differences / deviation if deviation > 0 else np.zeros_like(differences)


def _longer(a: Array, b: Array) -> float:
    return float(((a > b) + 0.5 * (a == b)).mean())


def _controlled(
    wins: Array,
    style: Mapping[str, Array],
    longer: float,
    bootstrap: Bootstrap,
    difficulty: ArrayLike | None,
    ridge: float,
) -> ControlledRate:
    raw = bootstrap.interval(wins, (0.0, 1.0))
    names, columns = list(style), [np.ones(len(wins)), *style.values()]
    if difficulty is not None:
        hard = np.asarray(difficulty, dtype=float)
        if hard.shape != wins.shape or not np.isfinite(hard).all():
            raise ValueError(f"difficulty of the shape {hard.shape} for {len(wins)} prompts; one finite number each")
        names.append(DIFFICULTY)
        columns.append(_in_deviations(hard - hard.mean()))
    regression = _Regression(np.column_stack(columns), wins, len(style), ridge)
    once = np.ones((1, len(wins)))
    fitted = regression.fit(once)
    rate, found = float(regression.rates(fitted, once)[0]), fitted[0, 1:]
    clusters = cluster_numbers(bootstrap.clusters, len(wins))
    n = int(clusters.max()) + 1
    ends = np.column_stack([[0.0, 1.0], np.full((2, len(found)), np.nan)])
    if n > 1:
        ends = percentile_ends(_resampled(regression, clusters, n, bootstrap, fitted), n, bootstrap)
    coefficients = {name: around(value, its, n) for name, value, its in zip(names, found, ends.T[1:], strict=True)}
    return ControlledRate(raw, around(rate, ends[:, 0], n), coefficients, longer)


def _resampled(
    regression: "_Regression", clusters: NDArray[np.intp], n: int, bootstrap: Bootstrap, fitted: Array
) -> Array:
    """The controlled rate and the coefficients in each resample, (num_bootstrap, 1 + coefficients)."""
    widened = regression.with_two_more()
    sizes = np.append(np.ones(len(clusters)), np.full(2, len(clusters) / n))
    rows = np.append(clusters, [n, n + 1])
    parts = []
    for counts in drawn_counts(n + 2, bootstrap.num_bootstrap, bootstrap.seed):
        weights = counts[:, rows] * sizes  # (resamples, prompts and two more)
        again = widened.fit(weights, fitted)
        parts.append(np.column_stack([widened.rates(again, weights), again[:, 1:]]))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Regression:
    """`design`, (prompts, terms): ones, then `num_style` columns of style, then difficulty where it is known."""

    design: Array
    wins: Array
    num_style: int
    ridge: float

    def fit(self, weights: Array, start: Array | None = None) -> Array:
        """The coefficients, (fits, terms), for weights (fits, prompts)."""
        penalty = np.append(_FLOOR, np.full(self.design.shape[1] - 1, max(self.ridge, _FLOOR)))
        start = np.zeros((1, len(penalty))) if start is None else start
        return fit_logistic(self.design, weights * self.wins, weights, penalty, start)

    def rates(self, coefficients: Array, weights: Array) -> Array:
        """The predicted win rate without differences in style, (fits,)."""
        if self.design.shape[1] == 1 + self.num_style:  # the same on all prompts
            return expit(coefficients[:, 0])
        alike = self.design.copy()
        alike[:, 1 : 1 + self.num_style] = 0
        return (weights * expit(coefficients @ alike.T)).sum(1) / weights.sum(1)

    def with_two_more(self) -> "_Regression":
        """With two more prompts, lost and won, that have no difference in style and are neither hard nor easy."""
        more = np.zeros((2, self.design.shape[1]))
        more[:, 0] = 1
        wins = np.append(self.wins, [0.0, 1.0])
        return _Regression(np.concatenate([self.design, more]), wins, self.num_style, self.ridge)
