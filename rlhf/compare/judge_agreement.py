"""Do judges agree: gold, the reward model, a language model and people, on the same pairs of responses.

A verdict is the share of wins of the first response (or policy) of a pair: 1 where it is better, 0 where
the second is, one half for a tie; a mean of several votes or responses counts for the side that it is on.
NaN is a pair that a judge did not see.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import binomtest

from rlhf.compare.scale import cluster_numbers
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDING = 1e-9  # thirds and their like do not add up exactly to one half
SECOND, TIE, FIRST = 0, 1, 2


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the pairs that both saw.

    Args:
        a: one judge's name.
        b: the other's.
        num_pairs: pairs that both saw.
        with_ties: the share of them on which both say first, both second or both tie (setup S1 of Zheng
            et al. 2023, "Judging LLM-as-a-Judge", table 5).
        num_decided: pairs on which neither sees a tie.
        without_ties: the share of those on which both say the same (setup S2).
        kappa: Cohen's kappa of the three verdicts: agreement beyond what each judge's habits give by chance.
        apart: the pairs on which they part, the largest difference first.
        reasons: by field, why a value or its interval is missing.
        slices: by the name of a slicing and its label, the same for the pairs with that label.

    Intervals are clustered by prompt, and their `n` is the number of prompts.
    """

    a: str
    b: str
    num_pairs: int
    with_ties: Interval | None
    num_decided: int
    without_ties: Interval | None
    kappa: Interval | None
    apart: list[int]
    reasons: dict[str, str]
    slices: dict[str, dict[str, "Agreement"]]


@dataclass(frozen=True)
class PositionBias:
    """How a judge that saw every pair in both orders depends on the order.

    Args:
        num_pairs: pairs that it judged in both orders.
        consistent: the share whose verdict is the same in both (Zheng et al. 2023, table 2, "consistency").
        to_first: the share whose verdict moves to whichever response stands first ("biased toward first").
        to_second: the share whose verdict moves to whichever stands second.
        first_place: what the first place wins over both orders, ties half; one half without bias.
        p: of the exact sign test that places have no effect: by prompt, does the first gain or lose?
        reasons: by field, why a value is missing.
    """

    num_pairs: int
    consistent: Interval | None
    to_first: float | None
    to_second: float | None
    first_place: Interval | None
    p: float | None
    reasons: dict[str, str]


def sides(verdicts: ArrayLike) -> Ints:
    """Which side each verdict is on: `FIRST`, `TIE` or `SECOND`; the verdicts must not be NaN."""
    values = np.asarray(verdicts, dtype=float)
    return TIE + (values > 0.5 + _ROUNDING).astype(np.int64) - (values < 0.5 - _ROUNDING).astype(np.int64)


def agreements(
    verdicts: Mapping[str, ArrayLike],
    bootstrap: Bootstrap | None = None,
    slices: Mapping[str, Sequence[Hashable]] | None = None,
    either_order: bool = False,
    most: int = 20,
) -> list[Agreement]:
    """How far every two judges agree, in the order of `verdicts`.

    Args:
        verdicts: by judge, (pairs,), in [0, 1] or NaN.
        bootstrap: its clusters are the prompts of the pairs; each pair its own prompt where None.
        slices: by name (category, length), a label for every pair; agreement is told for each label too.
        either_order: which response of a pair is called first means nothing (as where every two of many
            models meet), so kappa counts each pair both ways and chance is even between the sides.
        most: at most so many pairs are told on which two judges part.

    Raises ValueError where lengths are unlike or a verdict is not from 0 to 1.
    """
    bootstrap = bootstrap or Bootstrap()
    arrays = {name: np.asarray(values, dtype=float) for name, values in verdicts.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if bootstrap.clusters is not None:
        lengths["the prompts"] = len(bootstrap.clusters)
    lengths |= {f"the slices by {name}": len(labels) for name, labels in (slices or {}).items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"not as many pairs everywhere: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    for name, values in arrays.items():
        _check_range(name, values)
    bootstrap = _numbered(bootstrap)
    labelled = {name: _numbers_of(labels) for name, labels in (slices or {}).items()}
    found = []
    for a, b in combinations(arrays, 2):
        comparison = _Comparison(a, b, arrays[a], arrays[b], bootstrap, either_order, most)
        seen = ~(np.isnan(arrays[a]) | np.isnan(arrays[b]))
        by_name = {}
        for name, (labels, numbers) in labelled.items():
            by_name[name] = {
                label: comparison.of(np.flatnonzero(seen & (numbers == at))) for at, label in enumerate(labels)
            }
        found.append(replace(comparison.of(np.flatnonzero(seen)), slices=by_name))
    return found


def cohens_kappa(
    a: ArrayLike, b: ArrayLike, bootstrap: Bootstrap | None = None, either_order: bool = False
) -> tuple[Interval | None, str | None]:
    """Cohen's kappa of two judges' verdicts, (pairs,) each, and why it or its interval is missing.

    kappa = (p_o - p_e) / (1 - p_e), with p_o the share of equal verdicts and p_e what the judges' own
    shares of first, tie and second would give by chance (Cohen 1960, "A coefficient of agreement for
    nominal scales"). The interval is the percentile bootstrap over clusters, widened as Student's t widens
    the normal (Hesterberg 2015, section 4.3). See `agreements` for `either_order`.
    """
    bootstrap = bootstrap or Bootstrap()
    one, other = sides(a), sides(b)
    if not one.size:
        return None, "no pair that both judged"
    cluster = cluster_numbers(bootstrap.clusters, len(one))
    n = int(cluster.max()) + 1
    tables = _tables(cluster, one, other, n)
    if either_order:
        tables += _tables(cluster, 2 - one, 2 - other, n)
    kappa = float(_kappa(tables.sum(0)))
    if np.isnan(kappa):
        return None, "no variation: both judges give every pair the same verdict, so agreement by chance is certain"
    if n == 1:
        return Interval(kappa, None, None, n), "no interval: one prompt only"
    resamples = _kappa(_resampled(tables.reshape(n, 9), bootstrap).reshape(-1, 3, 3))
    resamples = resamples[~np.isnan(resamples)]
    if np.ptp(resamples) < _ROUNDING:
        return Interval(kappa, None, None, n), "no interval: every resample gives the same"
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - bootstrap.confidence) / 2))
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(kappa, float(min(low, kappa)), float(max(high, kappa)), n), None


def position_bias(as_first: ArrayLike, as_second: ArrayLike, bootstrap: Bootstrap | None = None) -> PositionBias:
    """How much a judge's verdicts depend on which response it is shown first.

    Args:
        as_first: (pairs,): the verdict on response a with a shown first; 1 where a is better, NaN unseen.
        as_second: (pairs,): the verdict on the same response a with a shown second; 1 where a is better.
        bootstrap: its clusters are the prompts of the pairs.

    The test is exact: were places without effect, what the first place gains on a prompt over both orders
    would as often be a loss. Pairs of a prompt are added up first, and prompts without gain do not count.
    """
    bootstrap = bootstrap or Bootstrap()
    one, other = np.asarray(as_first, dtype=float), np.asarray(as_second, dtype=float)
    if one.shape != other.shape:
        raise ValueError(f"{one.size} verdicts in one order and {other.size} in the other")
    for name, values in (("the verdicts in the first order", one), ("the verdicts in the second", other)):
        _check_range(name, values)
    seen = np.flatnonzero(~(np.isnan(one) | np.isnan(other)))
    if not seen.size:
        fields = ("consistent", "to_first", "to_second", "first_place", "p")
        return PositionBias(
            0, None, None, None, None, None, dict.fromkeys(fields, "no pair that was judged in both orders")
        )
    one, other, within = one[seen], other[seen], _within(bootstrap, seen)
    gain = one - other  # what response a gains by standing first; a response b would lose as much
    moved = sides(one) - sides(other)
    clusters = range(len(one)) if within.clusters is None else within.clusters
    by_prompt: dict[Hashable, float] = {}
    for name, value in zip(clusters, gain.tolist(), strict=True):
        by_prompt[name] = by_prompt.get(name, 0.0) + value
    gains = np.array(list(by_prompt.values()))
    num_gain, num_loss = int((gains > _ROUNDING).sum()), int((gains < -_ROUNDING).sum())
    decided = num_gain + num_loss
    return PositionBias(
        num_pairs=len(one),
        consistent=within.interval((moved == 0).astype(float), (0.0, 1.0)),
        to_first=float((moved > 0).mean()),
        to_second=float((moved < 0).mean()),
        first_place=within.interval((1 + gain) / 2, (0.0, 1.0)),
        p=float(binomtest(num_gain, decided).pvalue) if decided else None,
        reasons={} if decided else {"p": "the order changed the verdict on no prompt"},
    )


def combine_orders(as_first: ArrayLike, as_second: ArrayLike) -> Floats:
    """One verdict from both orders, (pairs,): a side only where both orders take it, else a tie.

    As MT-bench does it (Zheng et al. 2023, section 3.4, "swapping positions"). Verdicts are on the same
    response, as in `position_bias`; where both are on one side it is their mean. NaN where an order is missing.
    """
    one, other = np.asarray(as_first, dtype=float), np.asarray(as_second, dtype=float)
    if one.shape != other.shape:
        raise ValueError(f"{one.size} verdicts in one order and {other.size} in the other")
    combined = np.where(sides(one) == sides(other), (one + other) / 2, 0.5)
    return np.where(np.isnan(one) | np.isnan(other), np.nan, combined)


@dataclass(frozen=True)
class _Comparison:
    """Two judges' verdicts on all pairs, of which any part can be compared."""

    a: str
    b: str
    one: Floats
    other: Floats
    bootstrap: Bootstrap
    either_order: bool
    most: int

    def of(self, rows: Ints) -> Agreement:
        """The agreement on some of the pairs, which both judges saw."""
        one, other = sides(self.one[rows]), sides(self.other[rows])
        same = (one == other).astype(float)
        decided = np.flatnonzero((one != TIE) & (other != TIE))
        reasons = {}
        if not rows.size:
            reasons["with_ties"] = "no pair that both judged"
        if not decided.size:
            reasons["without_ties"] = "no pair on which neither sees a tie" if rows.size else "no pair that both judged"
        within = _within(self.bootstrap, rows)
        kappa, reason = cohens_kappa(self.one[rows], self.other[rows], within, self.either_order)
        if reason is not None:
            reasons["kappa"] = reason
        with_ties = within.interval(same, (0.0, 1.0)) if rows.size else None
        without_ties = with_ties if len(decided) == len(rows) else None
        if 0 < len(decided) < len(rows):
            without_ties = _within(self.bootstrap, rows[decided]).interval(same[decided], (0.0, 1.0))
        parted = rows[one != other]
        sizes = np.abs(self.one[parted] - self.other[parted])
        return Agreement(
            self.a,
            self.b,
            num_pairs=len(rows),
            with_ties=with_ties,
            num_decided=len(decided),
            without_ties=without_ties,
            kappa=kappa,
            apart=parted[np.argsort(-sizes, kind="stable")][: self.most].tolist(),
            reasons=reasons,
            slices={},
        )


def _check_range(name: str, values: Floats) -> None:
    if not (np.isnan(values) | ((values >= 0) & (values <= 1))).all():
        raise ValueError(f"{name}: verdicts must be from 0 to 1, or NaN where there is none")


def _numbered(bootstrap: Bootstrap) -> Bootstrap:
    """The same bootstrap with numbers for names of clusters, which an array can hold."""
    if bootstrap.clusters is None:
        return bootstrap
    return replace(bootstrap, clusters=cluster_numbers(bootstrap.clusters, len(bootstrap.clusters)).tolist())


def _numbers_of(labels: Sequence[Hashable]) -> tuple[list[str], Ints]:
    """The labels, each once, and the number of each row's, (rows,)."""
    texts = [str(label) for label in labels]
    numbers = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    return list(numbers), np.array([numbers[text] for text in texts], dtype=np.int64)


def _within(bootstrap: Bootstrap, rows: Ints) -> Bootstrap:
    """The same bootstrap for some of the rows."""
    clusters = bootstrap.clusters
    return bootstrap if clusters is None else replace(bootstrap, clusters=[clusters[row] for row in rows.tolist()])


def _tables(cluster: NDArray[np.intp], one: Ints, other: Ints, num_clusters: int) -> Floats:
    """How often each cluster has each two verdicts, (clusters, 3, 3)."""
    cells = np.bincount(9 * cluster + 3 * one + other, minlength=9 * num_clusters)
    return cells.reshape(num_clusters, 3, 3).astype(float)


def _kappa(tables: Floats) -> Floats:
    """Cohen's kappa of tables (..., 3, 3), (...,); NaN where chance alone gives full agreement."""
    n = tables.sum((-2, -1))
    same = np.trace(tables, axis1=-2, axis2=-1) / n
    by_chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / n**2
    defined = by_chance < 1 - _ROUNDING
    return np.where(defined, (same - by_chance) / np.where(defined, 1 - by_chance, 1), np.nan)


def _resampled(tables: Floats, bootstrap: Bootstrap) -> Floats:
    """The sums of clusters drawn with replacement, (num_bootstrap, columns).

    Clusters with the same table are drawn as one: how often each kind comes is multinomial, which is the
    same draw and takes no longer for ten thousand prompts than for ten.
    """
    # Rows as digits of one number: sorted many times as fast, in the same order.
    digits = (tables.max() + 1) ** np.arange(tables.shape[1])[::-1]
    if digits[0] * (tables.max() + 1) < 2**53:
        _, first, counts = np.unique(tables @ digits, return_index=True, return_counts=True)
        kinds = tables[first]
    else:
        kinds, counts = np.unique(tables, axis=0, return_counts=True)
    generator = np.random.default_rng(bootstrap.seed)
    drawn = generator.multinomial(len(tables), counts / len(tables), size=bootstrap.num_bootstrap)
    return drawn.astype(float) @ kinds
