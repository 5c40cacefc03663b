"""Numbers as report.json has them: rounded, so that the same study gives the same bytes on any machine."""

from typing import Any

from rlhf.intervals import Interval

# Digits kept: far below any interval's width, far above what differs between machines.
_DIGITS = 6


def plain(value: float | None) -> float | None:
    """A number rounded to six digits after the point, None as it is."""
    return None if value is None else round(float(value), _DIGITS) + 0.0  # no -0.0


def maybe_interval(interval: Interval | None) -> dict[str, Any] | None:
    """`interval_numbers`, None as it is."""
    return None if interval is None else interval_numbers(interval)


def interval_numbers(interval: Interval) -> dict[str, Any]:
    """`{mean, low, high, n}`; an end is None where nothing bounds it."""
    return {
        "mean": plain(interval.mean),
        "low": plain(interval.low),
        "high": plain(interval.high),
        "n": interval.n,
    }
