"""From where on a run buys the judge's score with gold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from rlhf.compare.frontier.resampling import Draws, widened
from rlhf.intervals import Interval


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
    margins[first, second] = margins[second, first] = -widened(-critical * spread, num_prompts)
    return margins
