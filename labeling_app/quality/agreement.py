"""How far annotators agree, beyond what chance would give: alpha, kappa, W and the plain share.

Verdicts on a pair are A, tie or B, and which response is called A means nothing: order on screen is
random. So alpha and kappa count every pair in both orders, which makes chance even between A and B.
Without that, a policy that wins nine times of ten would make agreement on it look like habit.

Own formulas, because intervals must resample tasks (the pairs of a task hang together) and neither
evalica's alpha nor statsmodels' kappa does, and because importing them would cost the app a second and
80 MB; tests/test_label_quality_agreement.py and _real.py hold the values equal to theirs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from labeling_app.quality.figure import TAIL, Figure, mean_figure, missing, percentile_ends, resampled_sums
from labeling_app.quality.votes import LABELS, TIE, Ints, Votes, opposite
from rlhf.records import Ranking, Task

Floats = NDArray[np.float64]

NOBODY_SHARES = "fewer than two annotators share a task"
_NO_VARIATION = "no variation: every verdict is the same, so agreement by chance is certain"
_ONE_TASK = "no interval: one task only"
_NO_DISAGREEMENT = "no interval: no disagreement yet"


def verdict_alpha(votes: Votes, distance: str = "nominal", seed: int = 0) -> Figure:
    """Krippendorff's alpha of the verdicts, each pair in both orders; `n` is the number of tasks shared."""
    pairs = len(votes.pairs)
    units = np.concatenate([votes.pair, votes.pair + pairs])
    values = np.concatenate([votes.verdict, opposite(votes.verdict)])
    return krippendorff_alpha(units, values, np.tile(votes.pair_task, 2), distance, seed)


def krippendorff_alpha(
    units: Ints, values: Ints, unit_cluster: Ints, distance: str = "nominal", seed: int = 0
) -> Figure:
    """Krippendorff's alpha with a bootstrap interval that resamples clusters.

    alpha = 1 - D_o / D_e, from the coincidences of the values within units (Krippendorff 2018, "Content
    Analysis", chapter 12). Units with one value do not count; missing values are simply not there.

    Args:
        units: the unit of each value, (values,), from 0.
        values: codes from 0, (values,); for `ordinal` in their order.
        unit_cluster: what is resampled as a whole, (units,), from 0.
        distance: `nominal` or `ordinal`.
        seed: of the resampling.

    Returns the figure with the number of clusters that hold two values of a unit as its `n`.
    """
    if not values.size:
        return missing(NOBODY_SHARES)
    num_units, num_values = len(unit_cluster), int(values.max()) + 1
    counts = np.zeros((num_units, num_values))
    np.add.at(counts, (units, values), 1)
    counts = counts * (counts.sum(1, keepdims=True) > 1)
    num_rated = np.maximum(counts.sum(1), 2)
    own = counts[:, :, None] * np.eye(num_values)  # a value makes no pair with itself
    coincidences = (counts[:, :, None] * counts[:, None, :] - own) / (num_rated - 1)[:, None, None]
    table = np.zeros((int(unit_cluster.max()) + 1, num_values, num_values))
    np.add.at(table, unit_cluster, coincidences)
    table = table[table.sum((1, 2)) > 0]
    n = len(table)
    if not n:
        return missing(NOBODY_SHARES)
    value = float(_alpha(table.sum(0), distance))
    if np.isnan(value):
        return missing(_NO_VARIATION, n)
    sums = resampled_sums(table.reshape(n, -1), seed).reshape(-1, num_values, num_values)
    resamples = _alpha(sums, distance)
    resamples = resamples[~np.isnan(resamples)]
    if n == 1 or np.ptp(resamples) < 1e-12:
        return Figure(value, n=n, reason=_ONE_TASK if n == 1 else _NO_DISAGREEMENT)
    low, high = percentile_ends(resamples, n)
    return Figure(value, min(low, value), max(high, value), n)


def _alpha(coincidences: Floats, distance: str) -> Floats:
    """(..., values, values) -> (...,); NaN where only one value occurs."""
    totals = coincidences.sum(-1)
    n = totals.sum(-1)
    if distance == "ordinal":
        middle = np.cumsum(totals, -1) - totals / 2  # the mean rank of each value, less one half
        squared = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        assert distance == "nominal"
        squared = 1 - np.eye(totals.shape[-1])
    observed = (coincidences * squared).sum((-2, -1)) / n
    expected = (totals[..., :, None] * totals[..., None, :] * squared).sum((-2, -1)) / (n * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def percent_agreement(votes: Votes, decided: bool = False, annotator: str | None = None, seed: int = 0) -> Figure:
    """The share of the pairs of votes on the same pair of responses that say the same; chance is not taken off.

    Args:
        decided: leave out pairs of votes of which one is a tie.
        annotator: only pairs of votes that this one is part of.

    `n` is the number of pairs of votes. Zheng et al. 2023 ("Judging LLM-as-a-Judge", table 5) report
    the same, as setup S1, and as S2 where `decided`.
    """
    first, second = votes.couples
    if annotator is not None:
        number = votes.annotators.index(annotator) if annotator in votes.annotators else -1
        of_them = (votes.annotator[first] == number) | (votes.annotator[second] == number)
        first, second = first[of_them], second[of_them]
    reason = NOBODY_SHARES if annotator is None else "shares no task with anyone"
    if decided and first.size:
        both = (votes.verdict[first] != TIE) & (votes.verdict[second] != TIE)
        first, second, reason = first[both], second[both], "no two annotators decided for a side on the same pair"
    same = votes.verdict[first] == votes.verdict[second]
    return mean_figure(same, votes.task[first].tolist(), reason, seed)


def pairwise_kappa(votes: Votes) -> dict[tuple[str, str], Figure]:
    """Cohen's kappa of every two annotators that share a task; `n` is the number of verdicts that they share."""
    first, second = votes.couples
    couple = votes.annotator[first] * len(votes.annotators) + votes.annotator[second]
    order = np.argsort(couple, kind="stable")
    first, second = first[order], second[order]
    starts = np.unique(couple[order], return_index=True)[1][1:]
    found = {}
    for a, b in zip(np.split(first, starts), np.split(second, starts), strict=True):
        if a.size:
            names = votes.annotators[votes.annotator[a[0]]], votes.annotators[votes.annotator[b[0]]]
            found[names] = cohens_kappa(votes.verdict[a], votes.verdict[b], votes.task[a])
    return found


def cohens_kappa(one: Ints, other: Ints, cluster: Ints) -> Figure:
    """Cohen's kappa of two annotators' verdicts on the same pairs, each pair in both orders.

    The interval is kappa's first-order (delta method) standard error, clustered, times Student's t;
    with one verdict a cluster the error is that of Fleiss, Cohen and Everitt (1969).

    Args:
        one: verdicts of one annotator, (verdicts,).
        other: the other's, (verdicts,).
        cluster: the task of each, (verdicts,).
    """
    table = np.zeros((3, 3))
    np.add.at(table, (one, other), 0.5)
    np.add.at(table, (opposite(one), opposite(other)), 0.5)
    n = one.size
    rows, columns = table.sum(1) / n, table.sum(0) / n
    same, by_chance = float(np.trace(table)) / n, float(rows @ columns)
    if by_chance > 1 - 1e-12:
        return missing("no variation: both call everything a tie, so agreement by chance is certain", n)
    kappa = (same - by_chance) / (1 - by_chance)
    # What each verdict adds to kappa, to first order.
    moves = ((one == other) - same) / (1 - by_chance)
    moves -= (1 - kappa) / (1 - by_chance) * (columns[one] + rows[other] - 2 * by_chance)
    sums = np.bincount(np.unique(cluster, return_inverse=True)[1], moves)
    num = len(sums)
    spread = float(sums @ sums)
    if num == 1 or spread < 1e-12:
        return Figure(kappa, n=n, reason=_ONE_TASK if num == 1 else _NO_DISAGREEMENT)
    half = -stdtrit(num - 1, TAIL) * np.sqrt(spread * num / (num - 1)) / n
    return Figure(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n)


def kendalls_w(tasks: Sequence[Task], rankings: Sequence[Ranking], seed: int = 0) -> tuple[Figure, float | None]:
    """The mean of Kendall's W over tasks of three or more responses that two or more annotators ranked.

    W is 1 where all rank alike; rankings at random give 1/m for m annotators, so the mean of that
    comes second: W means nothing without it. `n` is the number of tasks.
    """
    sizes = {task.id: len(task.responses) for task in tasks}
    by_task: dict[str, list[list[int]]] = {}
    for ranking in rankings:
        if ranking.kind in LABELS and sizes.get(ranking.task_id, 0) > 2:
            # In the order of response ids: any order will do, if it is the same for all.
            ranks = [rank for _, rank in sorted(ranking.ranks.items())]
            by_task.setdefault(ranking.task_id, []).append(ranks)
    values, chances, undefined = [], [], 0
    for _, ranks in sorted(by_task.items()):
        if len(ranks) < 2:
            continue
        value = concordance(np.array(ranks))
        if value is None:
            undefined += 1
        else:
            values.append(value)
            chances.append(1 / len(ranks))
    if not any(size > 2 for size in sizes.values()):
        reason = "no task has more than two responses"
    elif undefined:
        reason = "no variation: all of them call everything a tie"
    else:
        reason = "fewer than two annotators share a task of more than two responses"
    figure = mean_figure(values, range(len(values)), reason, seed)
    return figure, float(np.mean(chances)) if chances else None


def concordance(ranks: Ints) -> float | None:
    """Kendall's W with the correction for ties, of ranks (annotators, responses); None where all are ties.

    W = 12 S / (m^2 (k^3 - k) - m T), with S the squared deviations of the rank sums and T the sum of
    t^3 - t over groups of t tied responses (Kendall and Gibbons 1990, "Rank Correlation Methods", chapter 6).
    """
    num, k = ranks.shape
    lower = (ranks[:, :, None] > ranks[:, None, :]).sum(2)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(2)  # each response's group, itself included
    sums = (lower + (tied + 1) / 2).sum(0)
    most = num**2 * (k**3 - k) - num * (tied**2 - 1).sum()
    if most == 0:
        return None
    return float(12 * ((sums - num * (k + 1) / 2) ** 2).sum() / most)
