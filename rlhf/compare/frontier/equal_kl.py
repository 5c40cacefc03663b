"""Which of two runs has more gold at equal KL."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.compare.frontier.curves import area, curve, frontier, shared_range
from rlhf.compare.frontier.resampling import Draws
from rlhf.compare.statistics import UNDECIDED
from rlhf.intervals import Interval

_NUM_MATCHED = 21  # where a matched comparison looks, evenly over the KL that both runs cover


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


def matched_kl(draws: Draws, a: str, b: str, at: Sequence[float] | None = None, best: bool = False) -> MatchedKl:
    """Which of two runs has more gold at equal KL, over the KL that both cover.

    Between two measured points gold is read off the straight line. That much can be had: who draws each
    reply from one of two policies by a coin gets the mean of their golds, at no more than the mean of
    their KLs (KL is convex). What lies beyond a run's points is never guessed.

    Args:
        draws: from `resample`.
        a, b: runs.
        at: where to compare, in nats; 21 places by default. Those that not both cover are left out.
        best: compare what each has at most for that KL or less, its frontier, and not all its points. A run that
            first moves far away and then comes back has points that nobody would choose; of many points that are
            alike the luckiest make a frontier (see `frontier_areas`).
    """
    columns = [draws.columns([run]) for run in (a, b)]
    low, high, reason = shared_range(draws, {a: columns[0], b: columns[1]})
    if reason is not None:
        return MatchedKl(a, b, reason=reason)
    places = np.linspace(low, high, _NUM_MATCHED) if at is None else np.array([x for x in at if low <= x <= high])
    heights, areas = np.zeros((2, len(draws.kl), len(places))), np.zeros((2, len(draws.kl)))
    for run, own in enumerate(columns):
        for row, (kl, gold) in enumerate(zip(draws.kl[:, own], draws.gold[:, own], strict=True)):
            x, y = (frontier if best else curve)(kl, gold)
            heights[run, row] = np.interp(places, x, y)
            areas[run, row] = area(x, y, low, high)
    differences = tuple(draws.interval(column) for column in (heights[0] - heights[1]).T)
    average = draws.interval((areas[0] - areas[1]) / (high - low))
    return MatchedKl(a, b, low, high, tuple(places.tolist()), differences, average)
