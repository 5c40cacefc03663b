"""The scores of a round: every reward function asked, its answer checked, several made one."""

import math
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.ppo.asking import ask
from rlhf.ppo.endpoint import RewardError
from rlhf.ppo.rewards import Reward


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: dict[str, Any],
    timeout: float,
) -> list[list[float]]:
    """The scores of each reward function, asked one after another, of `timeout` seconds each.

    A function may return a list, an array or a tensor of one number a completion.

    Raises:
        RewardError: a function raised, took too long, or gave something else, None and NaN included.
    """
    return [
        _checked(reward, ask(reward, prompts, completions, columns, timeout), len(completions)) for reward in rewards
    ]


def combine(scores: Sequence[Sequence[float]], weights: Sequence[float] | None, how: str, k: float) -> list[float]:
    """Several reward functions' scores as one score a completion.

    With s_i = w_i r_i over the n functions: `sum`, `mean`, `minimum` (Coste et al. 2023, "Reward model
    ensembles help mitigate overoptimization", worst-case optimization), and `lower_bound` =
    mean(s) - k std(s), the std of the n themselves (their uncertainty-weighted optimization, which
    subtracts the variance; the std is in the unit of the scores, so k means the same at any scale).

    Args:
        scores: `(functions, completions)`.
        weights: one a function; None is 1 each.
        how: sum, mean, minimum or lower_bound.
        k: standard deviations that lower_bound subtracts.

    Raises:
        UserError: not one weight a function.
    """
    if weights is not None and len(weights) != len(scores):
        raise UserError(f"reward_weights: {len(weights)} weights for {len(scores)} reward functions; give one for each")
    weighted = np.asarray(scores, float)
    if weights is not None:
        weighted = weighted * np.asarray(weights, float)[:, None]
    if how == "sum":
        return weighted.sum(0).tolist()
    if how == "mean":
        return weighted.mean(0).tolist()
    if how == "minimum":
        return weighted.min(0).tolist()
    if how == "lower_bound":
        return (weighted.mean(0) - k * weighted.std(0)).tolist()
    raise ValueError(f"reward_ensemble: `{how}` is not sum, mean, minimum or lower_bound")


def _checked(reward: Reward, answer: Any, count: int) -> list[float]:
    """The answer as `count` finite numbers."""
    where = f"reward `{reward.name}`"
    shape = getattr(answer, "shape", None)
    if shape is not None and len(shape) != 1:
        raise RewardError(f"{where}: returned an array of shape {tuple(shape)}; return one of shape ({count},)")
    values = answer.tolist() if shape is not None else answer
    if not isinstance(values, list | tuple):
        raise RewardError(f"{where}: returned {_told(values)}; return a list of {count} numbers, one a completion")
    if len(values) != count:
        raise RewardError(f"{where}: returned {len(values)} scores for {count} completions; return one for each")
    if nothing := [index for index, value in enumerate(values) if value is None]:
        raise RewardError(
            f"{where}: returned None for {_which(nothing, count)}; PPO needs a number for each completion, "
            "return 0.0 where it has nothing to say"
        )
    numbers = [_number(value) for value in values]
    if strange := [index for index, number in enumerate(numbers) if number is None]:
        raise RewardError(
            f"{where}: returned {_told(values[strange[0]])} for {_which(strange, count)}; return numbers alone"
        )
    scores = [number for number in numbers if number is not None]
    if wild := [index for index, number in enumerate(scores) if not math.isfinite(number)]:
        raise RewardError(
            f"{where}: returned {scores[wild[0]]} for {_which(wild, count)}; return finite numbers, "
            "bound it where it divides or takes a logarithm"
        )
    return scores


def _number(value: Any) -> float | None:
    if not isinstance(value, Real) and hasattr(value, "item"):  # numpy's and torch's scalars
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # of several numbers
            return None
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:
        return math.inf


def _told(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({reprlib.repr(value)})"


def _which(indices: list[int], count: int) -> str:
    return f"{len(indices)} of {count} completions (the first at index {indices[0]})"
