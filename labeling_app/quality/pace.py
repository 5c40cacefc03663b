"""How much, how fast, and whether too fast to have read it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy.special import bdtr

from labeling_app.quality.figure import TAIL, Figure, missing, wilson
from labeling_app.quality.votes import SERIOUS
from rlhf.records import Ranking, Task

# Faster than this nobody reads: 600 standard words (of six characters) a minute is scanning for a word,
# twice as fast as reading to understand (Carver 1992, "Reading Rate", Journal of Reading 36:84). Characters
# and not words, because not every script puts spaces between words.
FASTEST = 600 * 6 / 60  # characters a second
QUANTILES = (0.1, 0.25, 0.75, 0.9)
_NO_TIMES = "no answer has its seconds recorded"


def days(rankings: Sequence[Ranking]) -> dict[str, dict[str, int]]:
    """Answers by day (UTC, as 2026-11-21) and annotator, both sorted; practice and answers without a time left out."""
    counts = Counter(
        (_day(ranking.at), ranking.annotator) for ranking in rankings if ranking.kind in SERIOUS and ranking.at
    )
    found: dict[str, dict[str, int]] = {}
    for (day, annotator), count in sorted(counts.items()):
        found.setdefault(day, {})[annotator] = count
    return found


def _day(at: str) -> str:
    time = datetime.fromisoformat(at)
    return (time if time.tzinfo is None else time.astimezone(UTC)).date().isoformat()


def seconds_per_task(rankings: Sequence[Ranking]) -> tuple[Figure, dict[str, float]]:
    """The median time of an answer in seconds, with its interval, and other quantiles by their percent.

    The interval is between order statistics, exact for any distribution (Conover 1999, "Practical
    Nonparametric Statistics", section 3.2); six answers are the fewest that have one.
    """
    times = np.sort([row.seconds for row in rankings if row.kind in SERIOUS and row.seconds is not None])
    n = len(times)
    if not n:
        return missing(_NO_TIMES), {}
    others = {f"{round(100 * q)}": round(float(np.quantile(times, q)), 2) for q in QUANTILES}
    # The largest r for which fewer than r of n lie below the median with a probability of at most TAIL.
    below = np.flatnonzero(bdtr(np.arange(n // 2 + 1), n, 0.5) <= TAIL)
    if not below.size:
        return Figure(float(np.median(times)), n=n, reason="no interval: fewer than six answers"), others
    r = int(below[-1])
    return Figure(float(np.median(times)), float(times[r]), float(times[n - 1 - r]), n), others


def shortest_seconds(tasks: Sequence[Task]) -> dict[str, float]:
    """The time in which nobody has read a task's responses, by task id; the prompt is not counted."""
    return {task.id: sum(len(response.text.strip()) for response in task.responses) / FASTEST for task in tasks}


def too_fast(rankings: Sequence[Ranking], shortest: Mapping[str, float]) -> Figure:
    """The share of answers that came faster than `shortest_seconds`; answers to other tasks do not count."""
    fast = [
        row.seconds < shortest[row.task_id]
        for row in rankings
        if row.kind in SERIOUS and row.seconds is not None and row.task_id in shortest
    ]
    return wilson(sum(fast), len(fast), _NO_TIMES)


def num_by_kind(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """How many answers of each kind."""
    return dict(sorted(Counter(ranking.kind for ranking in rankings).items()))
