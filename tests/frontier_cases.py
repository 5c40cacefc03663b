"""Points of reward against KL by hand, for the tests of rlhf.compare.frontier."""

import numpy as np

from rlhf.compare.frontier.points import Point
from rlhf.compare.statistics import Bootstrap

FEW = Bootstrap(num_bootstrap=300)


def point(run: str, kl: float, gold: float, score: float | None = None, num_prompts: int = 4) -> Point:
    """A point whose prompts are all the same, so that its figures are certain."""
    constant = np.ones(num_prompts)
    return Point(run, f"at {kl:g}", kl * constant, gold * constant, None if score is None else score * constant)


def noisy(run: str, kl: float, gold: np.ndarray, score: np.ndarray | None = None) -> Point:
    """A point whose KL is certain and whose gold is as given, (prompts,)."""
    return Point(run, f"at {kl:g}", np.full(len(gold), kl), gold, score)
