"""Points of reward against KL, their figures, and those that no other beats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

Values = NDArray[np.float64]  # (prompts,)


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


def _by_prompt(name: str, values: ArrayLike) -> Values:
    table = np.asarray(values, dtype=float)
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(f"{name} must be (prompts,) or (prompts, responses), it is {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite")
    return table if table.ndim == 1 else table.mean(1)
