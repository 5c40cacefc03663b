"""Reward against KL: how much gold each run has at each distance from the start, and which has more at equal KL.

A point is one policy (a checkpoint, or one setting of a sweep) measured on the same prompts as all others.
Intervals resample prompts; they say nothing of how another training seed would have turned out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from rlhf.compare.statistics import UNDECIDED, Bootstrap
from rlhf.intervals import Interval

BEST_OF_N = "best-of-n"
_TABLE = 4_000_000  # so many numbers of a (resample, prompt) table are held at a time: 32 MB
_NUM_MATCHED = 21  # where a matched comparison looks, evenly over the KL that both runs cover

Values = NDArray[np.float64]  # (prompts,)


# ---- Points


@dataclass(frozen=True, eq=False)
class Point:
    """One policy, measured.

    Args:
        run: the training run, or what else makes one curve.
        setting: what sets this point apart on it: a checkpoint, a beta, an n.
        kl: KL to the start in nats a response, (prompts,).
        gold: the score of the measure to trust, (prompts,).
        score: that of the judge that was trained for, the proxy, (prompts,); None where there is none.
        kl_is_bound: `kl` is an upper bound and no measurement.
    """

    run: str
    setting: str
    kl: Values
    gold: Values
    score: Values | None = None
    kl_is_bound: bool = False

    @classmethod
    def measured(cls, run: str, setting: str, kl: ArrayLike, gold: ArrayLike, score: ArrayLike | None = None) -> Self:
        """A point of values (prompts,) or (prompts, responses); responses are averaged.

        Raises ValueError where values are not finite, or not of the same prompts.
        """
        given = {"kl": kl, "gold": gold} | ({} if score is None else {"score": score})
        values = {name: _by_prompt(name, each) for name, each in given.items()}
        if len({len(each) for each in values.values()}) > 1:
            sizes = ", ".join(f"{len(each)} of {name}" for name, each in values.items())
            raise ValueError(f"a point's values must be of the same prompts, these are of {sizes}")
        return cls(run, setting, values["kl"], values["gold"], values.get("score"))


@dataclass(frozen=True)
class Figures:
    """What a table says of a point."""

    run: str
    setting: str
    kl: Interval
    gold: Interval
    score: Interval | None
    kl_is_bound: bool


def figures(point: Point, bootstrap: Bootstrap) -> Figures:
    """A point's means, each with its interval over prompts."""
    anything = (None, None)
    least = 0.0 if point.kl.min() >= 0 else None  # an estimate of KL from samples may be negative
    return Figures(
        point.run,
        point.setting,
        bootstrap.interval(point.kl, (least, None)),
        bootstrap.interval(point.gold, anything),
        None if point.score is None else bootstrap.interval(point.score, anything),
        point.kl_is_bound,
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, in the order of KL: none has as much gold at no more KL.

    The means decide, and the best of many noisy means is flattered a little: see `frontier_areas`.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.kl.mean(), -point.gold.mean())):
        if not kept or point.gold.mean() > kept[-1].gold.mean():
            kept.append(point)
    return kept


# ---- Best-of-n


def best_of_n(selecting: ArrayLike, judged: ArrayLike) -> NDArray[np.float64]:
    """The expected judgement of the best of n replies, for every n that a pool of N allows.

    Args:
        selecting: the proxy's scores of the pool, (prompts, N): the highest is chosen.
        judged: what is asked about the chosen one (gold, length, the proxy itself), (prompts, N).

    Returns:
        (prompts, N); column n-1 is for n. Of n replies drawn from the pool without replacement, the i-th
        lowest (from 1) of all is the best with probability C(i-1, n-1) / C(N, n), so that this is
        unbiased and needs no resampling (Nakano et al. 2021, "WebGPT", appendix I; used so by Gao et
        al. 2023, "Scaling laws for reward model overoptimization"). Of equal scores each is chosen as
        often as another.

    Raises ValueError where the two are not of the same replies, or not finite.
    """
    scores, values = np.asarray(selecting, dtype=float), np.asarray(judged, dtype=float)
    if scores.ndim != 2 or scores.shape != values.shape or not scores.size:
        raise ValueError(f"best-of-n needs two tables (prompts, pool), these are {scores.shape} and {values.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise ValueError("best-of-n needs finite scores")
    order = np.argsort(scores, axis=1, kind="stable")
    scores, values = np.take_along_axis(scores, order, 1), np.take_along_axis(values, order, 1)
    new = np.ones(scores.shape, dtype=bool)  # where a score differs from the one below
    new[:, 1:] = scores[:, 1:] != scores[:, :-1]
    group = (np.cumsum(new) - 1).ravel()
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return means[group].reshape(scores.shape) @ _best_of_n_weights(scores.shape[1]).T


def best_of_n_kl(n: int) -> float:
    """An upper bound on the KL of best-of-n to what it samples from, in nats: log n - (n-1)/n.

    Long taken for the KL itself; Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment
    policy" (theorem 3.1), show that it is a bound, and a loose one where few replies have most of the
    probability. A comparison at equal KL is therefore never too kind to best-of-n.
    """
    return float(np.log(n) - (n - 1) / n)


def best_of_n_points(selecting: ArrayLike, gold: ArrayLike, sizes: Sequence[int] | None = None) -> list[Point]:
    """Best-of-n as a curve: a point for each of `sizes`, by default 1, 2, 4, ... and the whole pool.

    Args:
        selecting: the proxy's scores of a pool of the start's replies, (prompts, N).
        gold: the same replies' gold.
        sizes: values of n, each from 1 to N.
    """
    proxy, judged = best_of_n(selecting, selecting), best_of_n(selecting, gold)
    num_prompts, num_pool = judged.shape
    if sizes is None:
        sizes = sorted({2**power for power in range(num_pool.bit_length())} | {num_pool})
    wrong = [n for n in sizes if not 1 <= n <= num_pool]
    if wrong:
        raise ValueError(f"best of {wrong[0]} cannot be told from a pool of {num_pool} replies a prompt")
    return [
        Point(BEST_OF_N, str(n), np.full(num_prompts, best_of_n_kl(n)), judged[:, n - 1], proxy[:, n - 1], True)
        for n in sizes
    ]


def _best_of_n_weights(num_pool: int) -> NDArray[np.float64]:
    """C(i-1, n-1) / C(N, n) as (N, N): row n-1, column i-1; each row from the one before, so nothing overflows."""
    place = np.arange(1, num_pool + 1)
    rows = [np.full(num_pool, 1 / num_pool)]
    for n in range(1, num_pool):
        rows.append(rows[-1] * np.maximum(place - n, 0) / n * (n + 1) / (num_pool - n))
    return np.array(rows)


# ---- Resampling


@dataclass(frozen=True, eq=False)
class Draws:
    """All points' means over resampled prompts: drawn once, asked many times.

    Args:
        points: the columns of the tables.
        kl, gold, score: (1 + num_bootstrap, points); row 0 is the sample itself. NaN where there is no score.
        num_prompts: clusters.
        bootstrap: how they were drawn.
        start: the column of the policy that every run starts from, None where it was not given.
    """

    points: list[Point]
    kl: NDArray[np.float64]
    gold: NDArray[np.float64]
    score: NDArray[np.float64]
    num_prompts: int
    bootstrap: Bootstrap
    start: int | None = None

    def columns(self, runs: Sequence[str]) -> list[int]:
        """The columns of some runs' points, and of the start. Raises ValueError for a run without points."""
        own = [column for column in range(len(self.points)) if column != self.start]
        for run in runs:
            if all(self.points[column].run != run for column in own):
                raise ValueError(f"no point is of the run `{run}`")
        found = [column for column in own if self.points[column].run in runs]
        return found if self.start is None else [self.start, *found]

    def interval(self, values: NDArray[np.float64]) -> Interval:
        """The interval of a figure of the rows, (1 + num_bootstrap,).

        The basic bootstrap (Davison and Hinkley 1997, "Bootstrap methods and their application", section
        5.2), widened as Student's t widens the normal: a figure that noise makes too large, such as that
        of a frontier, is made too large once more by resampling, and this takes it off again.
        """
        estimate = float(values[0])
        if self.num_prompts == 1:
            return Interval(estimate, None, None, 1)
        tail = ndtr(_widened(stdtrit(self.num_prompts - 1, (1 - self.bootstrap.confidence) / 2), self.num_prompts))
        least, most = np.quantile(values[1:], [tail, 1 - tail])
        low, high = min(estimate, 2 * estimate - most), max(estimate, 2 * estimate - least)
        return Interval(estimate, float(low), float(high), self.num_prompts)


def resample(points: Sequence[Point], bootstrap: Bootstrap, start: Point | None = None) -> Draws:
    """The points' means, and those of `num_bootstrap` resamples of the prompts, the same for all points.

    Args:
        points: of all runs, on the same prompts in the same order.
        bootstrap: its clusters are the prompts of the rows.
        start: the policy that every run starts from, at KL 0; it becomes the first point of each curve.

    Raises ValueError where there are no points, or they are not of the same prompts.
    """
    columns = [*points] if start is None else [*points, start]
    sizes = {len(point.gold) for point in columns}
    if len(sizes) != 1:
        raise ValueError(f"points must be of the same prompts, these are of {sorted(sizes)}")
    num_rows = sizes.pop()
    clusters = range(num_rows) if bootstrap.clusters is None else bootstrap.clusters
    if len(clusters) != num_rows:
        raise ValueError(f"{len(clusters)} clusters for {num_rows} prompts")
    scores = [np.zeros(num_rows) if point.score is None else point.score for point in columns]
    rows = np.stack([*(point.kl for point in columns), *(point.gold for point in columns), *scores], 1)
    # Columns that are alike are summed once: rounding must not tell two policies apart that wrote the same.
    rows, place = np.unique(rows, axis=1, return_inverse=True)
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    table = np.zeros((len(numbers), rows.shape[1] + 1))  # the last column counts a cluster's rows
    np.add.at(table, [numbers[cluster] for cluster in clusters], np.column_stack([rows, np.ones(num_rows)]))
    totals = np.concatenate([table.sum(0, keepdims=True), _resampled_sums(table, bootstrap)])
    kl, gold, score = np.split((totals[:, :-1] / totals[:, -1:])[:, np.ravel(place)], 3, axis=1)
    score[:, [point.score is None for point in columns]] = np.nan
    return Draws(columns, kl, gold, score, len(numbers), bootstrap, None if start is None else len(points))


def _resampled_sums(table: NDArray[np.float64], bootstrap: Bootstrap) -> NDArray[np.float64]:
    n = len(table)
    generator = np.random.default_rng(bootstrap.seed)
    step = max(1, _TABLE // n)
    parts = []
    for first in range(0, bootstrap.num_bootstrap, step):
        rows = min(step, bootstrap.num_bootstrap - first)
        drawn = generator.integers(0, n, (rows, n)) + np.arange(0, rows * n, n)[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float) @ table)
    return np.concatenate(parts)


# ---- At equal KL


@dataclass(frozen=True)
class MatchedKl:
    """Two runs at equal KL.

    Args:
        a, b: the runs.
        low, high: the KL that both cover, in nats; None where there is none.
        kl: where in it they are compared.
        differences: gold of `a` less gold of `b`, at each of `kl`; each interval is for its KL alone.
        average: the difference's mean over the whole range.
        reason: why there is nothing to compare; None where there is.
    """

    a: str
    b: str
    low: float | None = None
    high: float | None = None
    kl: tuple[float, ...] = ()
    differences: tuple[Interval, ...] = ()
    average: Interval | None = None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """The run with more gold at equal KL, or "undecided" where the average's interval holds 0."""
        if self.average is not None and self.average.is_above(0):
            return self.a
        return self.b if self.average is not None and self.average.is_below(0) else UNDECIDED


def matched_kl(draws: Draws, a: str, b: str, at: Sequence[float] | None = None) -> MatchedKl:
    """Which of two runs has more gold at equal KL, over the KL that both cover.

    Between two measured points gold is read off the straight line. That much can be had: who draws each
    reply from one of two policies by a coin gets the mean of their golds, at no more than the mean of
    their KLs (KL is convex). What lies beyond a run's points is never guessed.

    Args:
        draws: from `resample`.
        a, b: runs.
        at: where to compare, in nats; 21 places by default. Those that not both cover are left out.
    """
    columns = [draws.columns([run]) for run in (a, b)]
    low, high, reason = _shared_range(draws, {a: columns[0], b: columns[1]})
    if reason is not None:
        return MatchedKl(a, b, reason=reason)
    places = np.linspace(low, high, _NUM_MATCHED) if at is None else np.array([x for x in at if low <= x <= high])
    heights, areas = np.zeros((2, len(draws.kl), len(places))), np.zeros((2, len(draws.kl)))
    for run, own in enumerate(columns):
        for row, (kl, gold) in enumerate(zip(draws.kl[:, own], draws.gold[:, own], strict=True)):
            x, y = _curve(kl, gold)
            heights[run, row] = np.interp(places, x, y)
            areas[run, row] = _area(x, y, low, high)
    differences = tuple(draws.interval(column) for column in (heights[0] - heights[1]).T)
    average = draws.interval((areas[0] - areas[1]) / (high - low))
    return MatchedKl(a, b, low, high, tuple(places.tolist()), differences, average)


@dataclass(frozen=True)
class FrontierAreas:
    """The area under each method's frontier, in gold times nats, between the same two KLs for all.

    Args:
        low, high: the KL that all cover; divide by `high - low` for the mean height.
        areas: by method.
        differences: the first method's area less the second's, for every two.
        reason: why there is none; None where there is.
    """

    low: float | None
    high: float | None
    areas: dict[str, Interval]
    differences: dict[tuple[str, str], Interval]
    reason: str | None = None


def frontier_areas(draws: Draws, methods: Mapping[str, Sequence[str]]) -> FrontierAreas:
    """The area under the Pareto frontier of each method: a run, or the runs of a sweep.

    A frontier is what a budget of KL buys: straight lines through the points that no other beats (see
    `matched_kl`), level after the best. The same prompts choose its points and measure them, which
    flatters a frontier of many points that are alike; each resample chooses anew, which takes a part of
    that off, not all. Where it matters, choose on other prompts than those that are shown.

    Args:
        draws: from `resample`.
        methods: the runs of each, by its name.
    """
    columns = {name: draws.columns(runs) for name, runs in methods.items()}
    low, high, reason = _shared_range(draws, columns)
    if reason is not None:
        return FrontierAreas(None, None, {}, {}, reason)
    rows = {
        name: np.array(
            [
                _area(*_frontier(kl, gold), low, high)
                for kl, gold in zip(draws.kl[:, own], draws.gold[:, own], strict=True)
            ]
        )
        for name, own in columns.items()
    }
    areas = {name: draws.interval(values) for name, values in rows.items()}
    differences = {(a, b): draws.interval(rows[a] - rows[b]) for a, b in combinations(rows, 2)}
    return FrontierAreas(low, high, areas, differences)


def _shared_range(draws: Draws, columns: Mapping[str, Sequence[int]]) -> tuple[float, float, str | None]:
    """The KL that all of some curves cover, and why there is none."""
    spans = {name: (draws.kl[0, own].min(), draws.kl[0, own].max()) for name, own in columns.items()}
    low, high = max(span[0] for span in spans.values()), min(span[1] for span in spans.values())
    short = [name for name, span in spans.items() if span[0] == span[1]]
    if short:
        return low, high, f"{short[0]} is measured at one KL only; measure more of its checkpoints, or the start"
    if low >= high:
        told = " and ".join(f"{name} covers {least:.3g} to {most:.3g}" for name, (least, most) in spans.items())
        return low, high, f"no KL in common: {told} nats"
    return float(low), float(high), None


def _curve(kl: NDArray[np.float64], gold: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All points in the order of KL; those at the same KL are averaged."""
    x, place = np.unique(kl, return_inverse=True)
    return x, np.bincount(place, gold) / np.bincount(place)


def _frontier(kl: NDArray[np.float64], gold: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points that no other beats, in the order of KL."""
    order = np.lexsort((-gold, kl))
    kl, gold = kl[order], gold[order]
    kept = np.concatenate([[True], gold[1:] > np.maximum.accumulate(gold)[:-1]])
    return kl[kept], gold[kept]


def _area(x: NDArray[np.float64], y: NDArray[np.float64], low: float, high: float) -> float:
    """The area under straight lines through (x, y) from `low` to `high`; level outside of x."""
    at = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(at, x, y)
    return float((np.diff(at) * (heights[1:] + heights[:-1]) / 2).sum())


# ---- Over-optimisation


@dataclass(frozen=True)
class OverOptimisation:
    """From where on a run buys the judge's score with gold.

    Args:
        run: the run.
        kl: KL of its point with the most gold, in nats; None where nothing is sure to fall after it.
        setting: of that point.
        seen_at: KL of the first later point that surely has less gold and a higher score.
        fall: gold there less gold at the peak; among all pairs of the run's points at once.
        rise: the score there less the score at the peak.
        reason: why there is none; None where there is one.
    """

    run: str
    kl: float | None = None
    setting: str | None = None
    seen_at: float | None = None
    fall: Interval | None = None
    rise: Interval | None = None
    reason: str | None = None


def over_optimisation(draws: Draws, run: str) -> OverOptimisation:
    """The KL after which a run's gold falls while its score rises (Gao et al. 2023), if that is sure.

    Both the fall and the rise, of the same prompts, must have intervals without 0. Whoever seeks a fall
    among many noisy points finds one, so the fall's interval holds for all pairs of points at once: it is
    as wide as the largest of all pairs' standardised deviations in `confidence` of the resamples (the
    single-step max-t method; Westfall and Young 1993, "Resampling-based multiple testing"). With one
    point the run has no curve, and the last point has nothing after it: then `reason` says so.
    """
    order = sorted(draws.columns([run]), key=lambda column: draws.kl[0, column])
    points = [draws.points[column] for column in order]
    peak = int(np.argmax(draws.gold[0, order]))
    if len(order) < 2 or draws.num_prompts < 2:
        return OverOptimisation(run, reason="it takes two points and two prompts to see a fall")
    if any(point.score is None for point in points):
        return OverOptimisation(run, reason="the judge that was trained for has not scored every point")
    if peak == len(order) - 1:
        return OverOptimisation(run, reason="gold is highest at the largest KL that was measured")
    margins = _simultaneous_margins(draws.gold[:, order], draws.num_prompts, draws.bootstrap.confidence)
    falls = False
    for later in range(peak + 1, len(order)):
        change = float(draws.gold[0, order[later]] - draws.gold[0, order[peak]])
        margin = float(margins[peak, later])
        fall = Interval(change, change - margin, change + margin, draws.num_prompts)
        before, after = points[peak].score, points[later].score
        assert before is not None and after is not None
        rise = draws.bootstrap.interval(after - before, (None, None))
        falls = falls or fall.is_below(0)
        if fall.is_below(0) and rise.is_above(0):
            kl, seen_at = (float(draws.kl[0, order[at]]) for at in (peak, later))
            return OverOptimisation(run, kl, points[peak].setting, seen_at, fall, rise)
    if falls:
        return OverOptimisation(run, reason="gold falls, but the judge's score is not sure to rise meanwhile")
    return OverOptimisation(run, reason="no later point has less gold by more than chance")


def _simultaneous_margins(means: NDArray[np.float64], num_prompts: int, confidence: float) -> NDArray[np.float64]:
    """Half the widths of intervals that hold the differences of all pairs of columns at once, (columns, columns)."""
    size = means.shape[1]
    first, second = np.triu_indices(size, 1)
    off = means[1:] - means[0]
    between = off[:, first] - off[:, second]  # (num_bootstrap, pairs)
    spread = between.std(0)
    largest = np.max(np.abs(between) / np.where(spread > 0, spread, np.inf), axis=1)
    # From the normal's scale to Student's t, of as many degrees of freedom as prompts allow.
    critical = -stdtrit(num_prompts - 1, ndtr(-np.quantile(largest, confidence)))
    margins = np.zeros((size, size))
    margins[first, second] = margins[second, first] = -_widened(-critical * spread, num_prompts)
    return margins


def _widened(quantile: NDArray[np.float64] | float, n: int) -> NDArray[np.float64] | float:
    """What a resample of n spreads too little: its variance divides by n, not n - 1."""
    return np.sqrt(n / (n - 1)) * quantile


def _by_prompt(name: str, values: ArrayLike) -> Values:
    table = np.asarray(values, dtype=float)
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(f"{name} must be (prompts,) or (prompts, responses), it is {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite")
    return table if table.ndim == 1 else table.mean(1)
