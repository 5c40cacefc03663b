"""Human votes on few prompts and a judge's verdicts on all of them, combined into one win rate with a valid interval.

Prediction-powered inference: the judge says how the prompts without votes differ from those with votes,
and the votes say how far the judge can be trusted. Whatever the judge is worth, biased or useless, the
combined rate is people's, not the judge's (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023,
"Prediction-powered inference", Science 382:669; with the weight that makes the interval shortest:
Angelopoulos, Duchi and Zrnic 2023, "PPI++", arXiv:2311.01453).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

Floats = NDArray[np.float64]

# Below this many voted prompts the judge's weight is a guess, and the interval does not hold what it promises.
MIN_VOTED = 10
# So many prompts are added at each bound: without any, a judge that erred on none of the few voted prompts
# would be certain; with one, as for the votes alone, the intervals of graded votes are too long.
_ADDED = 0.5
_NO_SPREAD = 1e-12  # a variance below this is rounding


@dataclass(frozen=True)
class FewVotes:
    """People's win rate on all prompts, from votes on some of them and a judge's verdicts on all.

    Args:
        combined: the win rate from both; `n` is the number of voted prompts (clusters). Where the judge
            is of no use it is `votes`.
        votes: from the votes alone.
        judge: the judge's own win rate on all prompts, which is not people's where it is biased.
        weight: PPI++'s lambda, how far the judge is trusted; 0 where it is of no use.
        effective: how many voted prompts would say as much without the judge; at least `votes.n`, at most
            all prompts.
        num_votes: votes, several of which can be on one prompt.
        reason: why the weight is 0, None where it is not.
    """

    combined: Interval
    votes: Interval
    judge: float
    weight: float
    effective: float
    num_votes: int
    reason: str | None

    @property
    def worth(self) -> float:
        """How many more voted prompts the judge is worth."""
        return self.effective - self.votes.n

    @property
    def bias(self) -> float:
        """By how much the judge's win rate is above people's."""
        return self.judge - self.combined.mean

    @property
    def sentence(self) -> str:
        """What a reader needs to know of it."""
        voted = f"{self.votes.n:,} prompt{'s' if self.votes.n != 1 else ''} with {self.num_votes:,} human votes"
        if self.reason is not None:
            return f"From {voted} alone: {self.reason}."
        return f"The judge makes {voted} worth {self.effective:,.0f}: {self.worth:,.0f} voted prompts more."


def combine_votes(
    judge: ArrayLike, voted: Sequence[int], values: ArrayLike, bootstrap: Bootstrap | None = None
) -> FewVotes:
    """People's win rate from few votes and a judge, with an interval that is valid and mostly shorter.

    Args:
        judge: the judge's verdict on every prompt, (prompts,), in [0, 1]: how often the first policy wins.
        voted: the prompt of each human vote, (votes,), an index into `judge`.
        values: each vote, (votes,), in [0, 1]: 1 where the first policy wins, one half a tie. Votes on the
            same prompt are averaged, so a mean of several does as well.
        bootstrap: its clusters are those of all prompts; its confidence is that of the intervals.

    The voted prompts must be a random sample of the prompts: votes on those where judges disagree, or
    that are short to read, say nothing of the others, and no method mends that. Votes of the same person
    on several prompts count as independent.

    With y the votes of n prompts, f the judge's verdicts and N prompts without votes (PPI++, section 6):

        rate = mean_n(y) + lambda (mean_N(f) - mean_n(f)),  lambda = cov_n(y, f) / ((1 + n / N) var(f))

    The standard error is the jackknife's, leaving out one cluster at a time and finding lambda anew, so
    that it holds for prompts that hang together and for a lambda that is itself uncertain; the interval is
    Student's t with two degrees of freedom less than clusters with votes. Half a prompt is added at each
    bound (in the manner of Agresti and Coull 1998), for a judge that foresaw the few votes is not sure to
    foresee the next.

    Where votes and verdicts correlate by no more than 1 / sqrt(n - 2), PPI++ is worse than the votes alone
    (Mani, Xu, Lipton and Oberst 2025, "No Free Lunch", arXiv:2505.20178), so there the result is the votes'
    own, as it is with fewer than `MIN_VOTED` voted prompts. Which interval is shorter must not decide: the
    combined one is long where the judge finds the voted prompts unlike the others, and right to be.

    tests/test_compare_few_votes.py measures how often the interval holds the truth.

    Raises ValueError for no votes, values out of [0, 1], unlike lengths or an index that is no prompt.
    """
    bootstrap = bootstrap or Bootstrap()
    f, index, y = _checked(judge, voted, values, bootstrap)
    prompts, place = np.unique(index, return_inverse=True)
    means = np.bincount(place, y) / np.bincount(place)
    clusters = list(range(len(f))) if bootstrap.clusters is None else list(bootstrap.clusters)
    of_votes = replace(bootstrap, clusters=[clusters[prompt] for prompt in prompts])
    alone = of_votes.interval(means, (0.0, 1.0))
    judged = float(f.mean())

    def votes_alone(reason: str) -> FewVotes:
        return FewVotes(alone, alone, judged, 0.0, float(alone.n), y.size, reason)

    if alone.n < MIN_VOTED:
        return votes_alone(f"fewer than {MIN_VOTED} voted prompts cannot tell what the judge is worth")
    rows = _by_cluster(f, prompts, means, clusters)
    total = rows.sum(0)
    others = total - rows  # what is left without each cluster
    if others[:, _UNVOTED].min() < 1:
        return votes_alone("people voted on all prompts, or on all but one")
    if np.ptp(f) == 0:
        return votes_alone("the judge says the same of every prompt")
    if _correlation(means, f[prompts]) <= 1 / np.sqrt(alone.n - 2):
        return votes_alone("the judge's verdicts say nothing of how people vote")
    rate, weight = (float(value) for value in _estimate(total))
    variance = _jackknife(_estimate(others)[0])
    variance_alone = _jackknife(others[:, _VOTES] / others[:, _VOTED])
    ends, gain = _interval(rate, variance, variance_alone, alone, bootstrap.confidence)
    # No number of votes says more than a vote on every prompt.
    effective = min(alone.n * max(gain, 1.0), float(len(rows)))
    return FewVotes(ends, alone, judged, weight, effective, y.size, None)


def _checked(
    judge: ArrayLike, voted: Sequence[int], values: ArrayLike, bootstrap: Bootstrap
) -> tuple[Floats, NDArray[np.int64], Floats]:
    f, y = np.asarray(judge, dtype=float), np.asarray(values, dtype=float)
    index = np.asarray(voted, dtype=np.int64)
    if not index.size:
        raise ValueError("no human votes to combine with the judge")
    if index.shape != y.shape:
        raise ValueError(f"{y.size} votes for {index.size} indices of prompts")
    if index.min() < 0 or index.max() >= len(f):
        raise ValueError(f"votes on prompts {index.min()} to {index.max()}, of {len(f)} that the judge saw")
    for name, found in (("the judge's verdicts", f), ("votes", y)):
        if not ((found >= 0) & (found <= 1)).all():  # false for NaN too
            raise ValueError(f"{name} must be from 0 to 1")
    if bootstrap.clusters is not None and len(bootstrap.clusters) != len(f):
        raise ValueError(f"{len(bootstrap.clusters)} clusters for {len(f)} prompts")
    return f, index, y


# The sums that the estimate is made of: voted prompts with their votes and the judge's verdicts on them,
# the prompts without votes and the judge's verdicts on those, and the verdicts' squares.
_VOTED, _VOTES, _VERDICTS, _PRODUCTS, _UNVOTED, _OTHER_VERDICTS, _SQUARES = range(7)


def _by_cluster(
    f: Floats, prompts: NDArray[np.int64], means: Floats, clusters: Sequence[Hashable]
) -> NDArray[np.float64]:
    """The sums of each cluster, (clusters, 7)."""
    has_votes, y = np.zeros(len(f)), np.zeros(len(f))
    has_votes[prompts], y[prompts] = 1.0, means
    columns = [has_votes, y, has_votes * f, y * f, 1 - has_votes, (1 - has_votes) * f, f**2]
    numbers: dict[Hashable, int] = {}
    cluster = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    return np.stack([np.bincount(cluster, column) for column in columns], 1).astype(float)


def _estimate(sums: Floats) -> tuple[Floats, Floats]:
    """The combined rate and lambda, each (...), from sums (..., 7)."""
    n, num_others = sums[..., _VOTED], sums[..., _UNVOTED]
    y, f = sums[..., _VOTES] / n, sums[..., _VERDICTS] / n
    covariance = sums[..., _PRODUCTS] / n - f * y
    num = n + num_others
    mean = (sums[..., _VERDICTS] + sums[..., _OTHER_VERDICTS]) / num
    variance = (sums[..., _SQUARES] / num - mean**2) * num / (num - 1)
    spread = variance > _NO_SPREAD  # without one cluster the judge may say the same of all
    weight = np.where(spread, covariance / np.where(spread, (1 + n / num_others) * variance, 1), 0)
    return y + weight * (sums[..., _OTHER_VERDICTS] / num_others - f), weight


def _correlation(y: Floats, f: Floats) -> float:
    return float(np.corrcoef(y, f)[0, 1]) if np.ptp(y) > 0 and np.ptp(f) > 0 else 0.0


def _jackknife(without_one: Floats) -> float:
    """The squared standard error of an estimate, from its values without each cluster, (clusters,)."""
    n = len(without_one)
    return float(((without_one - without_one.mean()) ** 2).sum() * (n - 1) / n)


def _interval(
    rate: float, variance: float, variance_alone: float, alone: Interval, confidence: float
) -> tuple[Interval, float]:
    """The combined interval, and how many times as many votes alone would say as much."""
    n = alone.n
    # Leaving one out overstates the variance of a mean by 1 / n, and with a fitted lambda by 2 / n: each voted
    # cluster pulls the fit that it is left out of (leverage, as in HC3 beside HC2 of MacKinnon and White 1985).
    variance, variance_alone = variance * (n - 2) / n, variance_alone * (n - 1) / n
    num = n + 2 * _ADDED
    added = _ADDED * (alone.mean**2 + (1 - alone.mean) ** 2)  # that far off the mean are their votes
    with_added, alone_with_added = ((n**2 * v + added) / num**2 for v in (variance, variance_alone))
    middle = (n * rate + _ADDED) / num
    half = -stdtrit(n - 2, (1 - confidence) / 2) * np.sqrt(with_added)
    mean = min(max(rate, 0.0), 1.0)
    low, high = max(0.0, min(middle - half, mean)), min(1.0, max(middle + half, mean))
    return Interval(mean, float(low), float(high), n), alone_with_added / with_added
