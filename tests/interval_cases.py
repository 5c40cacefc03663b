"""What tests ask of intervals."""

from rlhf.intervals import Interval


def holds(interval: Interval, value: float) -> bool:
    """Whether a value lies within an interval that is closed on both sides."""
    return interval.low is not None and interval.high is not None and interval.low <= value <= interval.high
