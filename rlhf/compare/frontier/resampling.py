"""All points' means over resampled prompts, the same prompts for all: what every interval here is read from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from rlhf.compare.frontier.points import Point
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

_TABLE = 4_000_000  # so many numbers of a (resample, prompt) table are held at a time: 32 MB


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
        tail = ndtr(widened(stdtrit(self.num_prompts - 1, (1 - self.bootstrap.confidence) / 2), self.num_prompts))
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


def widened(quantile: NDArray[np.float64] | float, n: int) -> NDArray[np.float64] | float:
    """What a resample of n spreads too little: its variance divides by n, not n - 1."""
    return np.sqrt(n / (n - 1)) * quantile
