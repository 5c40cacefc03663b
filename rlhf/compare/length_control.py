"""Win rates as they would be if the two policies' responses were alike in length, or in style.

A judge, human or model, may prefer what is longer or prettier. A logistic regression takes the preference
apart into a term of the policies and terms of style; the controlled win rate is what it predicts where
the responses do not differ in style.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rlhf.compare.scale import around, cluster_numbers, cluster_sums, fit_logistic, percentile_ends
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, drawn_counts, resampled_sums

LENGTH = "length"
DIFFICULTY = "difficulty"
# The penalty on the terms of style: that of a normal prior whose standard deviation is 2.5 logits a
# standard deviation of the difference (the scale of Gelman et al. 2008, "A weakly informative default prior
# distribution for logistic and other regression models"). Hundreds of prompts outweigh it.
RIDGE = 1 / 2.5**2

# On the policies' own term: too weak to show in any digit, it keeps the term finite where one wins always.
_FLOOR = 1e-6

# Refits without a pass over the prompts take so many steps; a resample whose log-odds move further (root mean square)
# is fitted fully, as is one that may be further off than _MOST_OFF in some coefficient.
_NEWTON_STEPS = 3
_FAR = 0.5
_MOST_OFF = 1e-4

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
        ends = percentile_ends(_resampled(regression, clusters, n, bootstrap), n, bootstrap)
    coefficients = {name: around(value, its, n) for name, value, its in zip(names, found, ends.T[1:], strict=True)}
    return ControlledRate(raw, around(rate, ends[:, 0], n), coefficients, longer)


def _resampled(regression: "_Regression", clusters: NDArray[np.intp], n: int, bootstrap: Bootstrap) -> Array:
    """The controlled rate and the coefficients in each resample, (num_bootstrap, 1 + coefficients).

    Most are found by `refits`; those that it is not sure of are fitted to all prompts, as are all where the rate is
    a mean over prompts.
    """
    widened = regression.with_two_more()
    sizes = np.append(np.ones(len(clusters)), np.full(2, len(clusters) / n))
    rows = np.append(clusters, [n, n + 1])
    whole = widened.fit(sizes[None])[0]
    table = cluster_sums(sizes[:, None] * widened.slopes(whole), rows, n + 2)
    again, error = widened.refits(whole, sizes, resampled_sums(table, bootstrap.num_bootstrap, bootstrap.seed))
    rates = expit(again[:, 0])
    unsure = (error > _MOST_OFF) | widened.has_difficulty
    first = 0
    for counts in drawn_counts(n + 2, bootstrap.num_bootstrap, bootstrap.seed) if unsure.any() else ():
        some = np.flatnonzero(unsure[first : first + len(counts)])
        if some.size:
            weights = counts[some][:, rows] * sizes  # (resamples, prompts and two more)
            again[first + some] = widened.fit(weights, again[first + some])
            rates[first + some] = widened.rates(again[first + some], weights)
        first += len(counts)
    return np.column_stack([rates, again[:, 1:]])


@dataclass(frozen=True)
class _Regression:
    """`design`, (prompts, terms): ones, then `num_style` columns of style, then difficulty where it is known."""

    design: Array
    wins: Array
    num_style: int
    ridge: float

    @property
    def has_difficulty(self) -> bool:
        """Whether the rate without differences in style is not the same on all prompts."""
        return self.design.shape[1] > 1 + self.num_style

    @property
    def penalty(self) -> Array:
        """On each squared coefficient, times one half, (terms,)."""
        return np.append(_FLOOR, np.full(self.design.shape[1] - 1, max(self.ridge, _FLOOR)))

    def fit(self, weights: Array, start: Array | None = None) -> Array:
        """The coefficients, (fits, terms), for weights (fits, prompts)."""
        start = np.zeros((1, self.design.shape[1])) if start is None else start
        return fit_logistic(self.design, weights * self.wins, weights, self.penalty, start)

    def slopes(self, at: Array) -> Array:
        """Each prompt's gradient and its first and second derivative at coefficients (terms,).

        All with their sign turned but the gradient; of the derivatives, which are symmetric, each entry once.
        """
        chance = expit(self.design @ at)
        variance = chance * (1 - chance)
        second, third = _entries(len(at), 2), _entries(len(at), 3)
        information = variance[:, None] * self.design[:, second].prod(2)
        change = (variance * (1 - 2 * chance))[:, None] * self.design[:, third].prod(2)
        return np.column_stack([(self.wins - chance)[:, None] * self.design, information, change])

    def refits(self, whole: Array, sizes: Array, sums: Array) -> tuple[Array, Array]:
        """The coefficients of each resample, (resamples, terms), and about how far off they are at most, (resamples,).

        Newton's method on the Taylor series of the gradient around the fit to the whole sample, to the third order:
        no step passes over a resample's prompts. The third derivative is the whole sample's, which leaves an error
        of the size of what the second and third order add times the square of how far the log-odds moved. A resample
        that moved too far for a series stays at `whole`, its error infinite.

        Args:
            whole: the coefficients of the whole sample, (terms,).
            sizes: the weight of each prompt in it, (prompts,).
            sums: of `slopes` over each resample's prompts.
        """
        terms, num_second = len(whole), len(_entries(len(whole), 2))
        gradient = sums[:, :terms] - self.penalty * whole
        information = _symmetric(sums[:, terms : terms + num_second], terms, 2) + np.diag(self.penalty)
        first = _solved(information, gradient)
        moved = np.sqrt(((first @ (self.design.T * sizes @ self.design / sizes.sum())) * first).sum(1))
        near = moved < _FAR
        change = _symmetric(sums[near, terms + num_second :], terms, 3)
        third = self._third_derivative(whole, sizes)
        step = first[near]
        for _ in range(_NEWTON_STEPS):
            once = (change @ step[:, None, :, None])[..., 0]  # (near, terms, terms)
            twice = ((step[:, :, None] * step[:, None, :]).reshape(-1, terms**2) @ third).reshape(once.shape)
            left = gradient[near] - _times(information[near] + once / 2 + twice / 6, step)
            step = step + _solved(information[near] + once + twice / 2, left)
        again, error = np.tile(whole, (len(sums), 1)), np.full(len(sums), np.inf)
        again[near] += step
        error[near] = np.abs(step - first[near]).max(1) * moved[near] ** 2
        return again, error

    def _third_derivative(self, at: Array, sizes: Array) -> Array:
        """Of the whole sample's gradient, its sign turned, (terms^2, terms^2)."""
        chance = expit(self.design @ at)
        variance = chance * (1 - chance)
        squares = (self.design[:, :, None] * self.design[:, None, :]).reshape(len(self.design), -1)
        return (sizes * variance * (1 - 6 * variance) * squares.T) @ squares

    def rates(self, coefficients: Array, weights: Array) -> Array:
        """The predicted win rate without differences in style, (fits,)."""
        if not self.has_difficulty:
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


def _entries(terms: int, order: int) -> NDArray[np.intp]:
    """The places (entries, order) of a symmetric array's entries, each once."""
    return np.array(list(combinations_with_replacement(range(terms), order)))


def _symmetric(entries: Array, terms: int, order: int) -> Array:
    """The symmetric arrays (fits, terms, terms ...) with these entries, (fits, entries)."""
    arrays = np.empty((len(entries), *[terms] * order))
    places = _entries(terms, order)
    for axes in permutations(range(order)):
        arrays[:, *places[:, list(axes)].T] = entries
    return arrays


def _times(matrices: Array, vectors: Array) -> Array:
    """Each matrix, (fits, terms, terms), times its vector, (fits, terms)."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


def _solved(matrices: Array, vectors: Array) -> Array:
    """What each matrix, (fits, terms, terms), takes to its vector, (fits, terms)."""
    return np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0]
