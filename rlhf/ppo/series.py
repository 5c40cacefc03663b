"""Reading a run's metrics: one row a step, a figure's series, its ends, and whether it moved by more than chance."""

import itertools
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

Row = dict[str, Any]  # a round's metrics, or an evaluation's; or the run's config


def by_step(rows: list[Row]) -> list[Row]:
    """One row a step, training's and evaluation's together.

    Where the step falls back, the run was resumed from a checkpoint: what lay beyond it is gone.
    """
    merged: dict[float, Row] = {}
    for row in rows:
        step = number(row, "step") if isinstance(row, dict) else None
        if step is not None:
            merged = {old: kept for old, kept in merged.items() if old <= step}
            merged[step] = merged.get(step, {}) | row
    return list(merged.values())


def number(row: Row, key: str) -> float | None:
    """The figure, None where it is absent or no finite number."""
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def series(rows: list[Row], key: str) -> list[float]:
    """The figures of this key that are numbers, in the order of the steps."""
    return [value for row in rows if (value := number(row, key)) is not None]


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last quarter."""
    quarter = max(1, len(values) // 4)
    return fmean(values[:quarter]), fmean(values[-quarter:])


def sustained(values: Sequence[float]) -> float:
    """The mean of all or of the last quarter, whichever is larger: one odd round does not make it."""
    return max(fmean(values), ends(values)[1])


def moved(values: Sequence[float], errors: float = 2) -> int:
    """1 or -1 where the last quarter lies above or below the first by more than chance, else 0.

    Chance is within so many standard errors of the difference. A round's variance is half the mean square of the
    steps from round to round, which a trend hardly enlarges (von Neumann 1941).
    """
    if len(values) < 2:
        return 0
    first, last = ends(values)
    variance = fmean((after - before) ** 2 for before, after in itertools.pairwise(values)) / 2
    bound = errors * math.sqrt(variance * 2 / max(1, len(values) // 4)) + 1e-9 * max(map(abs, values))
    return 0 if abs(last - first) <= bound else int(math.copysign(1, last - first))
