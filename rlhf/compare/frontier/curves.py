"""Straight lines through points of gold against KL: where two curves can be compared, and the area under one."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.frontier.resampling import Draws


def shared_range(draws: Draws, columns: Mapping[str, Sequence[int]]) -> tuple[float, float, str | None]:
    """The KL that all of some curves cover, and why there is none."""
    spans = {name: (draws.kl[0, own].min(), draws.kl[0, own].max()) for name, own in columns.items()}
    low, high = max(span[0] for span in spans.values()), min(span[1] for span in spans.values())
    short = [name for name, span in spans.items() if span[0] == span[1]]
    if short:
        return low, high, f"{short[0]} is measured at one KL only; measure more of its checkpoints, or other settings"
    if low >= high:
        told = " and ".join(f"{name} covers {least:.3g} to {most:.3g}" for name, (least, most) in spans.items())
        return low, high, f"no KL in common: {told} nats"
    return float(low), float(high), None


def curve(kl: NDArray[np.float64], gold: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All points in the order of KL; those at the same KL are averaged."""
    x, place = np.unique(kl, return_inverse=True)
    return x, np.bincount(place, gold) / np.bincount(place)


def frontier(kl: NDArray[np.float64], gold: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points that no other beats, in the order of KL."""
    order = np.lexsort((-gold, kl))
    kl, gold = kl[order], gold[order]
    kept = np.concatenate([[True], gold[1:] > np.maximum.accumulate(gold)[:-1]])
    return kl[kept], gold[kept]


def area(x: NDArray[np.float64], y: NDArray[np.float64], low: float, high: float) -> float:
    """The area under straight lines through (x, y) from `low` to `high`; level outside of x."""
    at = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(at, x, y)
    return float((np.diff(at) * (heights[1:] + heights[:-1]) / 2).sum())
