"""Gaps between groups of people: how differently a policy writes of them."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from rlhf.compare.statistics import Bootstrap
from rlhf.errors import UserError
from rlhf.intervals import Interval, cluster_index, resampled_sums
from rlhf.records import Prompt

_DEFAULT = Bootstrap()


@dataclass(frozen=True)
class GroupGap:
    """The mean score of each group, and how far the outermost two lie apart.

    `gap` has an interval that holds although the two groups were chosen by their means. `expected` is the mean
    gap where groups do not matter (the permutations'): with many small groups it is far from 0. `p_value` is the
    share of permutations with a gap at least as large. One test for all groups: no correction for their number is
    due.
    """

    means: dict[str, Interval]
    highest: str
    lowest: str
    gap: Interval
    expected: float
    p_value: float


def group_gap(
    scores: NDArray[np.float64],
    groups: Sequence[str],
    bootstrap: Bootstrap = _DEFAULT,
    bounds: tuple[float | None, float | None] = (None, None),
    num_permutations: int = 2000,
) -> GroupGap:
    """How differently a policy writes of groups of people, in sentiment, regard or toxicity.

    Args:
        scores: (prompts, responses) of any scorer (of sentiment, say), through `judges.score_texts`.
        groups: (prompts,), whom each prompt is about (BOLD: Dhamala et al. 2021; regard: Sheng et al. 2019).
        bootstrap: with the clusters of all prompts.
        bounds: what a score can be at least and at most, as in `mean_interval`.
        num_permutations: shuffles of the groups over the prompts.

    The gap's interval is its own less and plus a half-width that all differences between two groups keep to at once
    (Tukey's range, with the bootstrap in place of its table), so it errs towards wide; its n is the number of clusters.
    The test permutes groups over clusters (prompts), never over single replies; a prompt that is in two
    groups counts in each. p = (1 + shuffles with a gap as large) / (1 + shuffles), which is never 0
    (Phipson and Smyth 2010). Raises UserError for fewer than two groups.
    """
    scores = np.asarray(scores, dtype=float)
    if len(groups) != len(scores):
        raise ValueError(f"{len(groups)} groups for {len(scores)} prompts")
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise UserError(f"group: all prompts are of the group {names}; a gap needs at least two")
    clusters: Sequence[Hashable] = range(len(scores)) if bootstrap.clusters is None else bootstrap.clusters
    means = {}
    for name in names:
        rows = [row for row, group in enumerate(groups) if group == name]
        some = replace(bootstrap, clusters=[clusters[row] for row in rows])
        means[name] = some.interval(scores[rows], bounds)
    highest = max(names, key=lambda name: means[name].mean)
    lowest = min(names, key=lambda name: means[name].mean)
    gap = means[highest].mean - means[lowest].mean
    shuffled = _shuffled_gaps(scores, groups, clusters, num_permutations, bootstrap.seed)
    # A shuffle that gives the same groups back may differ in the last digit.
    as_large = int((shuffled >= gap - 1e-9 * max(1.0, abs(gap))).sum())
    p_value = (1 + as_large) / (1 + num_permutations)
    interval = _gap_interval(gap, scores, groups, clusters, bounds, bootstrap)
    return GroupGap(means, highest, lowest, interval, float(shuffled.mean()), p_value)


def _gap_interval(
    gap: float,
    scores: NDArray[np.float64],
    groups: Sequence[str],
    clusters: Sequence[Hashable],
    bounds: tuple[float | None, float | None],
    bootstrap: Bootstrap,
) -> Interval:
    """The gap with ends that hold for the largest of all differences between groups."""
    low, high = bounds
    index, names = cluster_index(clusters), list(dict.fromkeys(groups))
    n, means = int(index.max()) + 1, scores.mean(1)
    tail = (1 - bootstrap.confidence) / 2
    moves = np.zeros((n + 2 * len(names), len(names)))  # how far each cluster moves each group's mean
    for column, name in enumerate(names):
        rows = np.array([group == name for group in groups])
        sums, sizes = np.bincount(index[rows], means[rows], n), np.bincount(index[rows], minlength=n).astype(float)
        own = np.flatnonzero(sizes)
        if low is not None and high is not None:  # and one more at each bound, as `mean_interval` has it
            size = sizes[own].mean()
            sums, sizes = np.append(sums, [low * size, high * size]), np.append(sizes, [size, size])
            own = np.append(own, [n, n + 1])
        count = len(own)
        if count == 1:
            return Interval(gap, 0.0, None, n)
        # Widened as Student's t widens the normal, for what the group's spread itself may be off.
        wider = stdtrit(count - 1, tail) / ndtri(tail) * np.sqrt(count / (count - 1))
        places = np.where(own < n, own, own + 2 * column)
        moves[places, column] = wider * (sums - sizes * sums.sum() / sizes.sum())[own] / sizes.sum()
    shifts = resampled_sums(moves, bootstrap.num_bootstrap, bootstrap.seed)
    half = float(np.quantile(np.ptp(shifts, 1), bootstrap.confidence))
    most = gap + half if low is None or high is None else min(gap + half, high - low)
    return Interval(gap, max(0.0, gap - half), most, n)


def _shuffled_gaps(
    scores: NDArray[np.float64], groups: Sequence[str], clusters: Sequence[Hashable], num: int, seed: int
) -> NDArray[np.float64]:
    """The largest gap between groups in each of `num` shuffles of whole clusters, (num,)."""
    places: dict[tuple[str, Hashable], int] = {}
    index = np.array([places.setdefault(unit, len(places)) for unit in zip(groups, clusters, strict=True)])
    numbers = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    labels = np.array([numbers[group] for group, _ in places])
    sums = np.bincount(index, scores.sum(1), len(places))
    sizes = np.bincount(index, minlength=len(places)) * float(scores.shape[1])
    generator = np.random.default_rng(seed)
    gaps = np.empty(num)
    for at in range(num):
        drawn = generator.permutation(labels)
        averages = np.bincount(drawn, sums) / np.bincount(drawn, sizes)
        gaps[at] = averages.max() - averages.min()
    return gaps


def group_column(prompts: Sequence[Prompt]) -> list[str]:
    """The column `group` of the prompts' meta. Raises UserError where a prompt has none."""
    for prompt in prompts:
        if not isinstance(prompt.meta.get("group"), str):
            raise UserError(f"prompt `{prompt.id}`: has no `group` in its meta; name the group that it is about")
    return [prompt.meta["group"] for prompt in prompts]


def read_bold(path: str | Path, num_per_group: int | None = None) -> list[Prompt]:
    """The prompts of one file of BOLD, `{group: {person: [start of a text]}}`, with their `group`.

    BOLD's are starts of Wikipedia sentences: a chat policy sees one as the user's message.
    Raises UserError for a missing file or another format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be one of BOLD's *_prompt.json")
    try:
        people: Mapping[str, Mapping[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
        starts = {
            group: [_text(one) for texts in named.values() for one in _list(texts)] for group, named in people.items()
        }
    except (ValueError, AttributeError, TypeError):
        raise UserError(f'{path}: is not in the format of BOLD, {{"group": {{"name": ["start of a text"]}}}}') from None
    return [
        Prompt(f"{group}-{at}", [{"role": "user", "content": text.strip()}], {"group": group})
        for group, texts in starts.items()
        for at, text in enumerate(texts[:num_per_group])
    ]


def _list(value: object) -> list[object]:
    if not isinstance(value, list):  # the letters of a text would be read as its starts
        raise TypeError(value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
