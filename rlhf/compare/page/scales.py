"""Round marks on a scale, and their words."""

import math
from collections.abc import Sequence


def ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """Three to six round numbers that reach from at most `low` to at least `high`."""
    width = max(high - low, 1e-9, abs(high) * 1e-3)
    power = 10.0 ** math.floor(math.log10(width / 4))
    step = next(power * factor for factor in steps if width / (power * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float, step: float, key: str) -> str:
    if key == "win_rate":
        return f"{value:.0%}" if step >= 0.01 and round(step * 1000) % 10 == 0 else f"{value:.1%}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if f"{step:e}".startswith("2.5") and step < 10 else 0)
    return f"{value:,.{digits}f}"
