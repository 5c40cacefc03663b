"""What hypothesis draws for PPO's mathematics: numbers that float32 holds, so that a plain loop can agree."""

from hypothesis import settings
from hypothesis import strategies as st

drawn = settings(max_examples=50, deadline=None)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


NUMBER = floats(-4, 4)
