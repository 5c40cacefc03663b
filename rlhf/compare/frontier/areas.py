"""The area under each method's frontier: what a budget of KL buys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf.compare.frontier.curves import area, frontier, shared_range
from rlhf.compare.frontier.resampling import Draws
from rlhf.intervals import Interval


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
    low, high, reason = shared_range(draws, columns)
    if reason is not None:
        return FrontierAreas(None, None, {}, {}, reason)
    rows = {
        name: np.array(
            [
                area(*frontier(kl, gold), low, high)
                for kl, gold in zip(draws.kl[:, own], draws.gold[:, own], strict=True)
            ]
        )
        for name, own in columns.items()
    }
    areas = {name: draws.interval(values) for name, values in rows.items()}
    differences = {(a, b): draws.interval(rows[a] - rows[b]) for a, b in combinations(rows, 2)}
    return FrontierAreas(low, high, areas, differences)
