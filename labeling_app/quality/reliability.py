"""How reliable each annotator is, learned from where they agree; and labels that weigh them by it.

The model of Dawid and Skene (1979, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM
Algorithm") on verdicts A, tie, B: each pair has a true verdict, each annotator a chance to give each
verdict for each true one. Which response is called A means nothing, so what holds for A holds for B.
Under it the likeliest side of a pair is that with the larger sum of weights, and an annotator's weight is
the log-odds of preferring the better one: log P(prefers the better) / P(prefers the worse).

Bradley-Terry models with an annotator's reliability (Crowd-BT) were tried on the demo's annotators and are
worse: a response belongs to one prompt and few people see it, so utilities that are free to fit every task
learn next to nothing about people; with two votes a task the careless one came out as the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labeling_app.quality.figure import Figure, mean_figure, missing
from labeling_app.quality.votes import FIRST, FIRST_LOOKS, SECOND, TIE, Ints, Votes, collect
from rlhf.records import Ranking, Task

# An annotator's rates start from so many verdicts at the rates of all: who has said little is taken for an
# average one.
PRIOR_VERDICTS = 10.0
# Nobody is taken to be right more often than this where they prefer one: a few hundred verdicts without a
# visible error are no proof, and one voice must not silence all others for good.
MOST_RIGHT = 0.99
# The lead that settles a pair, in votes of the pair's average voter; half a vote is majority where all weigh the same.
LEAD = 0.5
_MAX_STEPS = 60  # by then the weights have settled to 0.01; how many pairs are ties in truth may still creep
_TOLERANCE = 1e-4  # in any rate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """What the model found.

    `weights` are vote weights by annotator, 0 or more, their mean 1. `posterior` is the probability of
    each true verdict (A, tie, B) of each pair of `votes`, (pairs, 3); NaN for a pair without votes.
    `num_shared` counts each annotator's verdicts on pairs that somebody else judged too.
    """

    votes: Votes
    weights: dict[str, float]
    posterior: Floats
    num_shared: dict[str, int]


def annotator_weights(
    tasks: Sequence[Task], rankings: Sequence[Ranking], golds: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, float]:
    """A vote weight for everyone who ranked anything: 0 or more, the mean over annotators 1.

    Equal annotators have 1, and so has everyone where no two of them judged the same pair. One who
    shares nothing with others counts as an average one. `golds` are known ranks by task and response id;
    rankings of tasks that are not given are ignored.
    """
    found = fit(collect(tasks, rankings, FIRST_LOOKS), golds)
    return {name: found.weights.get(name, 1.0) for name in sorted({ranking.annotator for ranking in rankings})}


def weighted_side(sides: Sequence[int], weights: Sequence[float]) -> int:
    """The side that leads by at least half a vote of the pair's average voter; 0, a tie, where none does.

    Args:
        sides: each voter's, 1 for the first response, -1 for the second, 0 for a tie.
        weights: each voter's weight.

    With equal weights this is the majority; a single voter decides alone.
    """
    lead = sum(side * weight for side, weight in zip(sides, weights, strict=True))
    needed = LEAD * sum(weights) / len(weights)
    if abs(lead) <= needed:
        return 0
    return 1 if lead > 0 else -1


def fit(votes: Votes, golds: Mapping[str, Mapping[str, int]] | None = None) -> Reliability:
    """Fit the model by expectation maximisation, from the shares of the votes; deterministic."""
    known = _known(votes, golds or {})
    num_voters = np.bincount(votes.pair, minlength=len(votes.pairs))
    informs = (num_voters[votes.pair] > 1) | (known[votes.pair] >= 0)  # a vote alone says nothing about its voter
    num_shared = np.bincount(votes.annotator[informs], minlength=len(votes.annotators))
    judged, pair = np.unique(votes.pair[informs], return_inverse=True)
    seen = _Seen(pair, votes.annotator[informs], votes.verdict[informs], len(judged), len(votes.annotators))
    rates, prior = _maximise(seen, known[judged])
    every = _Seen(votes.pair, votes.annotator, votes.verdict, len(votes.pairs), len(votes.annotators))
    posterior = _posterior(every, rates, prior)
    posterior[known >= 0] = np.eye(3)[known[known >= 0]]
    posterior[num_voters == 0] = np.nan
    names = votes.annotators
    weights = dict(zip(names, _weights(rates, num_shared).tolist(), strict=True))
    return Reliability(votes, weights, posterior, dict(zip(names, num_shared.tolist(), strict=True)))


class _Seen(NamedTuple):
    """Verdicts by pair and annotator, (votes,) each, and how many pairs and annotators there are."""

    pair: Ints
    annotator: Ints
    verdict: Ints
    num_pairs: int
    num_annotators: int


def _maximise(seen: _Seen, known: Ints) -> tuple[Floats, Floats]:
    """The rates, (annotators, verdict, true verdict), and the share of each true verdict, (3,)."""
    counts = np.bincount(seen.pair * 3 + seen.verdict, minlength=seen.num_pairs * 3).reshape(-1, 3)
    posterior = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rates = np.zeros((seen.num_annotators, 3, 3))
    for _ in range(_MAX_STEPS):
        posterior[known >= 0] = np.eye(3)[known[known >= 0]]
        before, rates = rates, _rates(seen, posterior)
        prior = posterior.sum(0) + 1
        prior = (prior + prior[::-1]) / (2 * prior.sum())
        if np.abs(rates - before).max(initial=0) < _TOLERANCE:
            break
        posterior = _posterior(seen, rates, prior)
    return rates, prior


def _rates(seen: _Seen, posterior: Floats) -> Floats:
    """P(verdict | true verdict) of each annotator, (annotators, verdict, true verdict), alike for A and B."""
    cell = seen.annotator * 3 + seen.verdict
    of_pair = posterior[seen.pair]
    by_truth = [np.bincount(cell, of_pair[:, true], seen.num_annotators * 3) for true in (FIRST, TIE, SECOND)]
    counts = np.stack(by_truth, 1).reshape(-1, 3, 3)
    counts = (counts + counts[:, ::-1, ::-1]) / 2
    pool = counts.sum(0) + 1 / 3
    counts += PRIOR_VERDICTS * pool / pool.sum(0)
    return counts / counts.sum(1, keepdims=True)


def _posterior(seen: _Seen, rates: Floats, prior: Floats) -> Floats:
    """P(true verdict | votes) of each pair, (pairs, 3)."""
    evidence = np.log(rates).reshape(-1, 3)[seen.annotator * 3 + seen.verdict]  # (votes, true verdict)
    by_truth = [np.bincount(seen.pair, evidence[:, true], seen.num_pairs) for true in (FIRST, TIE, SECOND)]
    logits = np.log(prior) + np.stack(by_truth, 1)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def _weights(rates: Floats, num_shared: Ints) -> Floats:
    """Log-odds of preferring the better one, 0 or more; the average for who shares nothing; their mean 1."""
    right, wrong = rates[:, FIRST, FIRST], rates[:, SECOND, FIRST]
    share = np.clip(right / (right + wrong), 0.5, MOST_RIGHT)
    weights = np.log(share / (1 - share))
    if not weights[num_shared > 0].any():  # nobody shares anything, or all answer at random
        return np.ones(len(weights))
    weights[num_shared == 0] = weights[num_shared > 0].mean()
    return weights / weights.mean()


def _known(votes: Votes, golds: Mapping[str, Mapping[str, int]]) -> Ints:
    """The known verdict of each pair, -1 where it is not known."""
    known = np.full(len(votes.pairs), -1)
    for at, (a, b) in enumerate(votes.pairs):
        if ranks := golds.get(votes.task_ids[votes.pair_task[at]]):
            known[at] = TIE - np.sign(ranks[b] - ranks[a])
    return known


def estimated_accuracy(found: Reliability, annotator: str, seed: int = 0) -> Figure:
    """How often the annotator's verdicts are right, as the model sees it, half where one of the two is a tie.

    Over verdicts on pairs that somebody else judged too. The interval resamples tasks and takes the
    model's posteriors as they are.
    """
    votes = found.votes
    number = votes.annotators.index(annotator) if annotator in votes.annotators else -1
    voters = np.bincount(votes.pair, minlength=len(votes.pairs))
    theirs = (votes.annotator == number) & (voters[votes.pair] > 1)
    if not theirs.any():
        return missing("shares no task with anyone")
    closeness = 1 - np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2  # (verdict, true verdict)
    values = (found.posterior[votes.pair[theirs]] * closeness[votes.verdict[theirs]]).sum(1)
    return mean_figure(np.clip(values, 0, 1), votes.task[theirs].tolist(), "", seed)
