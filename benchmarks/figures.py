"""Figures as the tables in docs/results.md write them."""

from typing import Any


def figure(value: dict[str, Any] | None, digits: int = 2) -> str:
    """A mean with its interval, as 0.62 (0.57 to 0.67); nothing for None."""
    if value is None:
        return ""
    mean, low, high = (f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def reward_row(name: object, reward: dict[str, Any], digits: int = 2) -> str:
    """The start of a Markdown row: a reward stage's accuracy beside its baseline and its ceiling."""
    ceiling = figure(reward["human_ceiling"], digits) or "one vote a pair"
    cells = [str(name), figure(reward["accuracy"], digits), figure(reward["longer_wins"], digits), ceiling]
    return f"| {' | '.join(cells)} |"
