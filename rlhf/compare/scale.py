"""All policies on one scale: Bradley-Terry strengths from who beats whom, with intervals that resample prompts.

The resampling and the fit of many weighted logistic regressions at once serve length_control.py too.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, softmax, stdtrit

from rlhf.compare.statistics import Bootstrap
from rlhf.errors import UserError
from rlhf.intervals import Interval, cluster_index, resampled_sums

POINTS = 400 / math.log(10)  # Elo points in a logit: 400 points are odds of ten to one
PRIOR = 1.0

_MAX_STEPS = 200
# A fit ends after a step that moves no log-odds by more; what is left is about its square.
_CLOSE = 1e-4
_ROUNDING = 1e-9  # sums of thirds and their like do not add up exactly

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How strong policies are, the first at 0.

    Args:
        logits: by name, a policy's strength less the first's: one that is x logits above another beats it
            on a share 1 / (1 + exp(-x)) of prompts, ties half (in Davidson's model: of those without a tie).
        tie: Davidson's nu, by which two equal policies tie on a share nu / (2 + nu); None in Bradley and Terry's.
    """

    logits: dict[str, Interval]
    tie: Interval | None = None

    @property
    def elo(self) -> dict[str, Interval]:
        """The strengths in Elo-like points, the first policy at 0."""
        return {name: _mapped(interval, lambda logit: POINTS * logit) for name, interval in self.logits.items()}


@dataclass(frozen=True)
class _Pairs:
    """Sums over prompts, for every two policies (a before b): `won` by a, ties half; `met`; `tied`. (fits, pairs)."""

    won: Array
    met: Array
    tied: Array | None


def policy_scale(
    names: Sequence[str], wins: Array, bootstrap: Bootstrap, ties: Array | None = None, prior: float = PRIOR
) -> Scale:
    """The strengths of policies with prompt-bootstrap intervals, from per-prompt outcomes.

    Args:
        names: of the policies; the first is the scale's zero.
        wins: (policies, policies, prompts) as `win_matrix` gives them: [a, b] is how often a beats b, ties
            half, and [a, b] + [b, a] is 1; nan where the two were not compared on a prompt.
        bootstrap: how intervals are made.
        ties: (policies, policies, prompts), the share of ties, for Davidson's model of them (1970, "On
            Extending the Bradley-Terry Model to Accommodate Ties"). None counts a tie as half a win.
        prior: prompts' worth of made-up wins, see `bradley_terry`.

    Each cluster is drawn with what all pairs did on it, so what prompts do to several policies at once is
    kept. The interval is the percentile bootstrap, widened as in `mean_interval`; as there, two more prompts
    are drawn with the others: on one the policies have a random order (another in each resample), on the
    other its reverse. Without them a policy that wins always would have an interval of no width. An end is
    None where too many resamples do not bound the strength: a policy that wins always has no upper end.

    Raises UserError where the pairs that were compared do not connect all policies; ValueError for arrays of
    the wrong shape, and wins that do not add up to 1.
    """
    if len(names) < 2 or prior <= 0:
        raise ValueError(f"{len(names)} policies and a prior of {prior}: give two or more, and one above 0")
    sums = _by_cluster(len(names), wins, ties, bootstrap)
    totals, compared = sums.sum(0)[:, None], (sums[:, 1] > 0).sum(0)
    _check_connected(names, totals[1, 0])
    sizes = totals[1, 0] / np.maximum(compared, 1)  # comparisons in a cluster that has some: a prompt's worth
    best = _fit(len(names), _pairs(totals), prior * sizes)
    ends = np.full((2, best.shape[1]), np.nan)
    if len(sums) > 1:
        ends = _resampled_ends(len(names), sums, sizes, prior * sizes, best, bootstrap)
    return _scale(names, best[0], ends, len(sums), ties is not None)


def bradley_terry(names: Sequence[str], wins: Array, prior: float = PRIOR) -> Array:
    """The strengths of policies from how often each beat each, (policies,) in logits, the first 0.

    P(a beats b) = 1 / (1 + exp(strength of b - strength of a)) (Bradley and Terry 1952, "Rank Analysis of
    Incomplete Block Designs"), by maximum likelihood.

    Args:
        names: of the policies.
        wins: (policies, policies), [a, b] the number of prompts on which a beat b, a tie half to each.
        prior: `prior / policies` of a win is added to both sides of every pair that was compared, so that a
            policy that wins always has a finite strength. 1 is half a prompt a side for two policies: Firth's
            correction (1993, "Bias Reduction of Maximum Likelihood Estimates"), which also takes away most
            of the bias away from zero; for more policies it is that of equally strong ones. It moves a
            strength by about strength / prompts. 0 is plain maximum likelihood.

    Raises UserError where the pairs that were compared do not connect all policies; ValueError where prior
    is 0 and there is no maximum, for some policies only win, or only lose, against the others (Ford 1957).
    """
    first, second = np.triu_indices(len(names), 1)
    won, lost = wins[first, second], wins[second, first]
    _check_connected(names, won + lost)
    if prior == 0 and _num_parts(np.asarray(wins) > 0, "strong") > 1:
        raise ValueError("some policies only win, or only lose, against the others: give a prior above 0")
    counted = _Pairs(won[None].astype(float), (won + lost)[None].astype(float), None)
    return np.append(0.0, _fit(len(names), counted, prior * (counted.met[0] > 0))[0])


def fit_logistic(design: Array, wins: Array, trials: Array, ridge: Array, start: Array) -> Array:
    """Many logistic regressions on the same rows with other weights: their coefficients, (fits, terms).

    Args:
        design: (rows, terms).
        wins: (fits, rows), need not be whole.
        trials: (fits, rows), at least `wins`.
        ridge: (terms,), what each squared coefficient is penalised with, times one half.
        start: (fits, terms), or (1, terms) for all.
    """
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)

    def slopes(at: Array) -> tuple[Array, Array]:
        chance = expit(at @ design.T)  # (fits, rows), or one row for all fits
        if len(chance) < len(trials):  # the first step from one start: no table of (fits, rows) to fill
            gradient = wins @ design - trials @ (chance.T * design)
            curvature = trials @ ((chance * (1 - chance)).T * squares)
        else:
            expected = trials * chance
            gradient = (wins - expected) @ design
            curvature = (expected - expected * chance) @ squares
        return gradient - ridge * at, curvature.reshape(-1, *np.diag(ridge).shape) + np.diag(ridge)

    return _newton(slopes, start, np.abs(design).max(0, initial=0))


def cluster_numbers(clusters: Sequence[Hashable] | None, num_rows: int) -> NDArray[np.intp]:
    """The number of each row's cluster, in the order of their first rows; each row its own where None."""
    if clusters is None:
        return np.arange(num_rows)
    if len(clusters) != num_rows:
        raise ValueError(f"{len(clusters)} clusters for {num_rows} prompts")
    return cluster_index(clusters)


def cluster_sums(values: Array, clusters: NDArray[np.intp], num_clusters: int) -> Array:
    """The sums of each cluster's rows, (clusters, columns), of values (rows, columns)."""
    if len(clusters) == num_clusters and (clusters == np.arange(num_clusters)).all():
        return values
    columns = [np.bincount(clusters, column, num_clusters).astype(float) for column in values.T]
    return np.stack(columns, 1)


def percentile_ends(
    resampled: Array, n: int, bootstrap: Bootstrap, method: Literal["linear", "nearest"] = "linear"
) -> Array:
    """The ends of the intervals of `n` clusters and two more, widened as in `mean_interval`: (2, values)."""
    n += 2
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - bootstrap.confidence) / 2))
    return np.quantile(resampled, [tail, 1 - tail], axis=0, method=method)


def around(mean: float, ends: Array, n: int) -> Interval:
    """The interval with these ends, not finite where nothing bounds it, that holds its mean."""
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    below, above = (None if low is None else min(low, mean)), (None if high is None else max(high, mean))
    return Interval(float(mean), below, above, n)


def _outcomes(num_policies: int, wins: Array) -> Array:
    """How often a beats b, (prompts, pairs), nan where they were not compared."""
    if wins.ndim != 3 or wins.shape[:2] != (num_policies, num_policies) or not wins.shape[2]:
        raise ValueError(f"wins of the shape {wins.shape} for {num_policies} policies and some prompts")
    first, second = np.triu_indices(num_policies, 1)
    won, lost = wins[first, second], wins[second, first]
    seen = np.isfinite(won)
    fits = np.isclose(won[seen] + lost[seen], 1) & (np.minimum(won, lost)[seen] >= 0)
    if not fits.all() or np.isfinite(lost[~seen]).any():
        raise ValueError("what a policy wins against another, it must lose: wins[a, b] + wins[b, a] must be 1")
    return won.T


def _by_cluster(num_policies: int, wins: Array, ties: Array | None, bootstrap: Bootstrap) -> Array:
    """Sums of the cluster's prompts, (clusters, won and met and perhaps tied, pairs); those with a comparison only."""
    won = _outcomes(num_policies, wins)
    met = np.isfinite(won)
    tables = [np.nan_to_num(won), met.astype(float)]
    if ties is not None:
        tables.append(np.where(met, np.asarray(ties, dtype=float)[np.triu_indices(num_policies, 1)].T, 0.0))
    clusters = cluster_numbers(bootstrap.clusters, len(won))
    sums = cluster_sums(np.concatenate(tables, 1), clusters, int(clusters.max()) + 1)
    sums = sums.reshape(len(sums), len(tables), -1)
    return sums[sums[:, 1].any(1)]


def _resampled_ends(
    num_policies: int, sums: Array, sizes: Array, prior: Array, best: Array, bootstrap: Bootstrap
) -> Array:
    """The ends of the intervals of what `_fit` fits, (2, terms), not finite where nothing bounds it."""
    n, tables, pairs = sums.shape
    first, second = np.triu_indices(num_policies, 1)
    table = np.zeros((n + 2, tables * pairs + 2))  # the last two columns count the two more prompts
    table[:n, :-2] = sums.reshape(n, -1)
    table[n, -2] = table[n + 1, -1] = 1
    totals = resampled_sums(table, bootstrap.num_bootstrap, bootstrap.seed)
    drawn, ordered, reversed_ = totals[:, :-2], totals[:, [-2]], totals[:, [-1]]
    drawn = drawn.reshape(-1, tables, pairs).transpose(1, 0, 2).copy()
    places = np.random.default_rng([bootstrap.seed, 1]).random((len(totals), num_policies))
    drawn[0] += sizes * np.where(places[:, first] > places[:, second], ordered, reversed_)
    drawn[1] += sizes * (ordered + reversed_)
    fitted = _fit(num_policies, _pairs(drawn), prior, best)
    lows, highs = fitted, fitted.copy()
    for sided, ends, without in zip(
        _bounded(num_policies, drawn[0], drawn[1]), (lows, highs), (-np.inf, np.inf), strict=True
    ):
        ends[:, : num_policies - 1][~sided] = without
    low, high = (percentile_ends(ends, n, bootstrap, "nearest") for ends in (lows, highs))
    return np.stack([low[0], high[1]])


def _check_connected(names: Sequence[str], met: Array) -> None:
    """Raise UserError where `met`, (pairs,), leaves policies without a chain of comparisons between them."""
    from scipy.sparse.csgraph import connected_components

    compared = np.zeros((len(names), len(names)), dtype=bool)
    compared[np.triu_indices(len(names), 1)] = met > 0
    count, part = connected_components(compared, directed=False)
    if count > 1:
        members = [[f"`{name}`" for name, its in zip(names, part, strict=True) if its == at] for at in range(count)]
        raise UserError(
            f"policies: {' / '.join(map(', '.join, members))} were never compared with each other, so one scale cannot "
            "hold them; have one policy of each group judged against one of another, or leave a group out"
        )


def _num_parts(beaten: NDArray[np.bool_], connection: str) -> int:
    from scipy.sparse.csgraph import connected_components

    return int(connected_components(beaten, directed=True, connection=connection, return_labels=False))


def _pairs(tables: Array) -> _Pairs:
    return _Pairs(tables[0], tables[1], tables[2] if len(tables) == 3 else None)


def _fit(num_policies: int, counted: _Pairs, prior: Array, start: Array | None = None) -> Array:
    """The strengths of all policies but the first, then the log of Davidson's nu, where ties are: (fits, terms)."""
    first, second = np.triu_indices(num_policies, 1)
    design = (np.eye(num_policies)[first] - np.eye(num_policies)[second])[:, 1:]  # (pairs, policies - 1)
    added = prior / num_policies
    won, met = counted.won + added, counted.met + 2 * added
    if counted.tied is None:
        start = np.zeros((len(won), num_policies - 1)) if start is None else start
        return fit_logistic(design, won, met, np.zeros(num_policies - 1), start)
    half = 0.5 * prior / len(first)  # half a tie in all, so that nu is above 0
    tied = _Pairs(won + half / 2, met + half, counted.tied + half)
    start = np.zeros((len(won), num_policies)) if start is None else start
    return _newton(_davidson(design, tied), start, np.ones(num_policies))


def _davidson(design: Array, counted: _Pairs) -> Callable[[Array], tuple[Array, Array]]:
    """Gradient and information of Davidson's log-likelihood (1970, section 2), in the strengths and log nu.

    With d = strength of a - strength of b, a's win, b's win and a tie are as likely as exp(d / 2), exp(-d / 2)
    and nu to each other.
    """
    tied, num_strengths = np.asarray(counted.tied), design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)

    def slopes(at: Array) -> tuple[Array, Array]:
        gap = at[:, :-1] @ design.T
        win, loss, tie = softmax(np.stack([gap / 2, -gap / 2, np.broadcast_to(at[:, -1:], gap.shape)]), axis=0)
        lead = (win - loss) / 2
        gradient = np.column_stack(
            [(counted.won - counted.met * (0.5 + lead)) @ design, (tied - counted.met * tie).sum(1)]
        )
        information = np.empty((len(tied), num_strengths + 1, num_strengths + 1))
        within = (counted.met * ((win + loss) / 4 - lead**2)) @ squares
        information[:, :-1, :-1] = within.reshape(-1, num_strengths, num_strengths)
        information[:, :-1, -1] = information[:, -1, :-1] = -(counted.met * tie * lead) @ design
        information[:, -1, -1] = (counted.met * tie * (1 - tie)).sum(1)
        return gradient, information

    return slopes


def _newton(slopes: Callable[[Array], tuple[Array, Array]], start: Array, reach: Array) -> Array:
    """Where concave log-likelihoods, one a row, have their maximum: Newton's method, all rows at once.

    A step is Newton's own times log(1 + r) / r, with r the most by which it would move a log-odds: so short
    it always climbs, from any start (Sun and Tran-Dinh 2019, "Generalized Self-Concordant Functions",
    section 3), and near the maximum it is the whole step.

    Args:
        slopes: gradient (fits, terms) and information (fits, terms, terms) at coefficients (fits, terms).
        start: (fits, terms), or one row for all.
        reach: (terms,), how far a log-odds moves at most with each coefficient.
    """
    at = start
    for _ in range(_MAX_STEPS):
        gradient, information = slopes(at)
        step = np.linalg.solve(information, gradient[:, :, None])[:, :, 0]
        far = np.abs(step) @ reach
        at = at + step * (np.log1p(far) / np.where(far > 0, far, 1))[:, None]
        if far.max() < _CLOSE:
            return at
    raise ArithmeticError(f"a fit did not settle in {_MAX_STEPS} steps")


def _bounded(num_policies: int, won: Array, met: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the strengths of all policies but the first have a lower, and an upper, bound: (fits, policies - 1).

    A policy is bounded from below where it has beaten the first, or one that has, and so on; a tie beats both.
    """
    first, second = np.triu_indices(num_policies, 1)
    beats = np.zeros((len(won), num_policies, num_policies))
    beats[:, first, second] = won > 0
    beats[:, second, first] = met - won > _ROUNDING * met
    beats += np.eye(num_policies)
    for _ in range(num_policies.bit_length()):  # after each, chains of twice the length
        beats = (beats @ beats > 0).astype(float)
    return beats[:, 1:, 0] > 0, beats[:, 0, 1:] > 0


def _scale(names: Sequence[str], best: Array, ends: Array, n: int, with_ties: bool) -> Scale:
    found = [around(value, end, n) for value, end in zip(best, ends.T, strict=True)]
    tie = _mapped(found.pop(), math.exp) if with_ties else None
    return Scale(dict(zip(names, [Interval(0.0, 0.0, 0.0, n), *found], strict=True)), tie)


def _mapped(interval: Interval, to: Callable[[float], float]) -> Interval:
    """The interval of an increasing function of what this is the interval of."""
    low, high = (None if end is None else to(end) for end in (interval.low, interval.high))
    return Interval(to(interval.mean), low, high, interval.n)
