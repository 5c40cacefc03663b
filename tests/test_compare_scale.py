"""The Bradley-Terry scale: published strengths, evalica, statsmodels, Davidson's ties, and what must always hold."""

import math
import time

import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from rlhf.compare.scale import PRIOR, Scale, bradley_terry, cluster_numbers, policy_scale
from rlhf.compare.statistics import Bootstrap, win_matrix
from rlhf.errors import UserError
from rlhf.intervals import Interval, mean_interval

# American League, eastern division, 1987: who beat whom how often (Agresti 2002, "Categorical Data
# Analysis", table 10.10), and the strengths in table 10.11, column 3.
TEAMS = ["Baltimore", "Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland"]
BASEBALL = np.array(
    [
        [0, 2, 4, 1, 3, 1, 7],
        [11, 0, 7, 9, 7, 7, 9],
        [9, 6, 0, 7, 5, 11, 9],
        [12, 4, 6, 0, 7, 7, 8],
        [10, 6, 8, 6, 0, 6, 7],
        [12, 6, 2, 6, 7, 0, 7],
        [6, 4, 4, 5, 6, 6, 0],
    ]
)
STRENGTHS = [0, 1.58, 1.44, 1.29, 1.25, 1.11, 0.68]


def _names(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def _outcomes(strengths: np.ndarray, num_prompts: int, seed: int, nu: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Wins and ties of every pair on every prompt, each drawn by itself, by Davidson's model."""
    generator = np.random.default_rng(seed)
    count = len(strengths)
    wins, ties = np.full((2, count, count, num_prompts), 0.5)
    for a in range(count):
        for b in range(a):
            half = (strengths[a] - strengths[b]) / 2
            odds = np.array([math.exp(half), nu, math.exp(-half)])
            drawn = generator.choice([1.0, 0.5, 0.0], size=num_prompts, p=odds / odds.sum())
            wins[a, b], wins[b, a] = drawn, 1 - drawn
            ties[a, b] = ties[b, a] = drawn == 0.5
    return wins, ties


def _counts(wins: np.ndarray) -> np.ndarray:
    counts = np.nansum(wins, 2)
    np.fill_diagonal(counts, 0)
    return counts


def _means(scale: Scale) -> list[float]:
    return [interval.mean for interval in scale.logits.values()]


def _holds(interval: Interval, value: float) -> bool:
    low, high = interval.low, interval.high
    return (low is None or low <= value) and (high is None or value <= high)


def test_two_policies_by_hand() -> None:
    # 30 wins of 40. Plain: log(30 / 10). By default half a prompt is added to each side: log(30.5 / 10.5).
    counts = np.array([[0, 10], [30, 0]])
    assert bradley_terry(["a", "b"], counts, prior=0) == pytest.approx([0, math.log(3)])
    assert bradley_terry(["a", "b"], counts) == pytest.approx([0, math.log(30.5 / 10.5)])


def test_pairs_that_were_not_compared_get_no_prior() -> None:
    # A chain: each step is a pair by itself, with a third of a win on either side.
    step = math.log((3 + 1 / 3) / (1 + 1 / 3))
    assert bradley_terry(_names(3), np.array([[0, 1, 0], [3, 0, 1], [0, 3, 0]])) == pytest.approx([0, step, 2 * step])


def test_published_strengths() -> None:
    assert (BASEBALL + BASEBALL.T)[~np.eye(7, dtype=bool)].tolist() == [13] * 42  # the table was typed in well
    assert bradley_terry(TEAMS, BASEBALL, prior=0) == pytest.approx(STRENGTHS, abs=0.005)


def test_as_evalica_with_ties() -> None:
    wins, ties = _outcomes(np.array([0, 0.3, -0.8, 1.5]), 400, seed=1, nu=0.5)
    xs, ys, winners = [], [], []
    for a in range(4):
        for b in range(a):
            for won in wins[a, b]:
                xs.append(f"p{a}")
                ys.append(f"p{b}")
                winners.append({1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}[won])
    theirs = evalica.bradley_terry(xs, ys, winners, tie_weight=0.5, tolerance=1e-12, limit=10_000).scores
    logs = np.log([theirs[name] for name in _names(4)])
    assert ties[1, 0].mean() > 0.1
    assert bradley_terry(_names(4), _counts(wins), prior=0) == pytest.approx(logs - logs[0], abs=1e-5)


def test_the_prior_does_not_show_where_prompts_are_many() -> None:
    wins, _ = _outcomes(np.array([0, 0.3, -0.8, 1.5]), 10_000, seed=1, nu=0.5)
    plain = bradley_terry(_names(4), _counts(wins), prior=0)
    assert bradley_terry(_names(4), _counts(wins)) == pytest.approx(plain, abs=1e-3)


def test_as_statsmodels_where_few_pairs_were_compared() -> None:
    """A ring of five policies, each compared with the next one, on prompts of its own."""
    wins, _ = _outcomes(np.array([0, 1, 0.5, -0.5, 0.2]), 300, seed=2)
    for a in range(5):
        for b in range(5):
            seen = (np.arange(300) % 5 == min(a, b)) if abs(a - b) in (1, 4) else np.zeros(300, bool)
            wins[a, b, ~seen] = np.nan
    pairs = [(a, b) for a in range(5) for b in range(a) if abs(a - b) in (1, 4)]
    design = np.array([(np.eye(5)[a] - np.eye(5)[b])[1:] for a, b in pairs])
    won = np.array([[np.nansum(wins[a, b]), np.nansum(wins[b, a])] for a, b in pairs])
    theirs = sm.GLM(won, design, family=sm.families.Binomial()).fit(tol=1e-12)
    assert bradley_terry(_names(5), _counts(wins), prior=0) == pytest.approx([0, *theirs.params], abs=1e-6)
    scale = policy_scale(_names(5), wins, Bootstrap(num_bootstrap=1000), prior=1e-6)
    assert _means(scale) == pytest.approx([0, *theirs.params], abs=1e-5)
    # Pairs and prompts are independent here, so the textbook's standard errors are right.
    widths = [interval.high - interval.low for interval in list(scale.logits.values())[1:]]  # type: ignore[operator]
    assert widths == pytest.approx(2 * 1.96 * theirs.bse, rel=0.12)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10_000), st.floats(0.3, 3))
def test_expected_wins_are_the_wins(count: int, seed: int, spread: float) -> None:
    """The likelihood equations: each policy's wins are those that its strength expects."""
    generator = np.random.default_rng(seed)
    wins, _ = _outcomes(generator.normal(0, spread, count), 8, seed)
    counts = _counts(wins) + PRIOR / count * (1 - np.eye(count))
    strengths = bradley_terry(_names(count), _counts(wins))
    expected = expit(strengths[:, None] - strengths) * (counts + counts.T)
    assert counts.sum(1) == pytest.approx(expected.sum(1), abs=1e-5)
    order = generator.permutation(count)
    again = bradley_terry(_names(count), _counts(wins)[np.ix_(order, order)])
    assert again == pytest.approx(strengths[order] - strengths[order[0]], abs=1e-6)


def test_who_wins_always_is_strong_but_not_for_certain() -> None:
    wins = np.full((3, 3, 20), 0.5)
    wins[2, :2], wins[:2, 2] = 1, 0
    scale = policy_scale(["a", "b", "c"], wins, Bootstrap())
    equal, best = scale.logits["b"], scale.logits["c"]
    assert equal.mean == pytest.approx(0) and best.n == 20
    assert best.low is not None and 1 < best.low < 2.8 and 3 < best.mean < 5
    assert best.high is None  # 20 of 20 may be 999 of 1,000
    more = policy_scale(["a", "b", "c"], np.repeat(wins, 4, axis=2), Bootstrap()).logits["c"]
    assert more.mean > best.mean and more.low > best.low  # type: ignore[operator]


def test_policies_that_always_tie_have_intervals_of_one_width() -> None:
    """All that is drawn of them are the two more prompts, on which no policy may have a fixed place."""
    logits = policy_scale(_names(4), np.full((4, 4, 12), 0.5), Bootstrap(num_bootstrap=10_000)).logits
    widths = [logits[name].high - logits[name].low for name in _names(4)[1:]]  # type: ignore[operator]
    assert widths == pytest.approx([np.mean(widths)] * 3, rel=0.08)


def test_who_loses_always_has_no_lower_end_and_who_beats_the_winner_has_an_upper_one() -> None:
    wins = np.full((4, 4, 40), 0.5)
    for better, worse in [(1, 0), (0, 2), (1, 2), (3, 2)]:  # 1 beats 0 beats 2; 3 ties with 1 only
        wins[better, worse], wins[worse, better] = 1, 0
    wins[0, 3] = wins[3, 0] = np.nan
    logits = policy_scale(_names(4), wins, Bootstrap()).logits
    ends = [(logits[name].low is None, logits[name].high is None) for name in _names(4)]
    assert ends == [(False, False), (False, True), (True, False), (False, True)]


def test_two_policies_have_the_win_rate_s_interval() -> None:
    wins, _ = _outcomes(np.array([0, 0.6]), 150, seed=3, nu=0.4)
    mine = policy_scale(["a", "b"], wins, Bootstrap(num_bootstrap=20_000), prior=1e-6).logits["b"]
    rate = mean_interval(wins[1, 0], bounds=(0, 1), num_bootstrap=20_000)
    assert rate.low is not None and rate.high is not None
    assert mine.mean == pytest.approx(logit(rate.mean), abs=1e-5)
    assert (mine.low, mine.high) == pytest.approx((logit(rate.low), logit(rate.high)), abs=0.02)


def test_one_judge_s_scores_make_the_pairs_depend_on_each_other() -> None:
    """Policies of the same score on each prompt: as if all pairs were apart would be far too sure."""
    generator = np.random.default_rng(4)

    def study() -> np.ndarray:
        return win_matrix(generator.normal([[[0.0]], [[0.2]], [[0.4]], [[0.6]]], 1, (4, 200, 1)))

    scale = policy_scale(_names(4), study(), Bootstrap())
    again = [bradley_terry(_names(4), _counts(study())) for _ in range(400)]
    spread = np.std(again, axis=0)[1:]
    widths = [interval.high - interval.low for interval in list(scale.logits.values())[1:]]  # type: ignore[operator]
    assert widths == pytest.approx(2 * 1.96 * spread, rel=0.15)


@pytest.mark.parametrize("num_prompts", [30, 150])
def test_intervals_hold_the_truth(num_prompts: int) -> None:
    truth = np.array([0, 0.5, -0.5, 1.2])
    held = np.zeros(3)
    for study in range(300):
        wins, _ = _outcomes(truth, num_prompts, seed=study)
        scale = policy_scale(_names(4), wins, Bootstrap(num_bootstrap=300, seed=study))
        intervals = list(scale.logits.values())[1:]
        held += [_holds(one, true) for one, true in zip(intervals, truth[1:], strict=True)]
    assert (held / 300 > 0.92).all() and held.mean() / 300 < 0.985


def test_copies_within_a_prompt_are_no_evidence() -> None:
    wins, _ = _outcomes(np.array([0, 0.5, 1.0]), 40, seed=5)
    once = policy_scale(_names(3), wins, Bootstrap(num_bootstrap=300))
    clusters = np.repeat(np.arange(40), 3).tolist()
    copied = policy_scale(_names(3), np.repeat(wins, 3, axis=2), Bootstrap(clusters, num_bootstrap=300))
    for name in _names(3):
        assert (copied.logits[name].low, copied.logits[name].high, copied.logits[name].n) == pytest.approx(
            (once.logits[name].low, once.logits[name].high, 40)
        )


def test_prompts_without_a_comparison_do_not_count() -> None:
    wins, _ = _outcomes(np.array([0, 0.5, 1.0]), 40, seed=6)
    empty = np.concatenate([wins, np.full((3, 3, 10), np.nan)], axis=2)
    bootstrap = Bootstrap(num_bootstrap=100)
    assert policy_scale(_names(3), empty, bootstrap) == policy_scale(_names(3), wins, bootstrap)


def test_one_prompt_says_nothing() -> None:
    scale = policy_scale(["a", "b"], np.array([[[0.5], [0.0]], [[1.0], [0.5]]]), Bootstrap())
    assert scale.logits["b"].mean == pytest.approx(math.log(1.5 / 0.5))
    assert (scale.logits["b"].low, scale.logits["b"].high, scale.logits["b"].n) == (None, None, 1)


def test_elo_points() -> None:
    scale = Scale({"a": Interval(0, 0, 0, 9), "b": Interval(math.log(10), 0, None, 9)})
    assert scale.elo["a"] == Interval(0, 0, 0, 9)
    assert scale.elo["b"].mean == pytest.approx(400) and scale.elo["b"].low == 0 and scale.elo["b"].high is None


def test_davidson_by_hand() -> None:
    # 50 wins, 30 ties, 20 losses: pi_a / pi_b = 50 / 20, and nu = ties / sqrt(wins * losses).
    won = np.array([1.0] * 50 + [0.5] * 30 + [0.0] * 20)
    wins = np.array([[0 * won + 0.5, 1 - won], [won, 0 * won + 0.5]])
    scale = policy_scale(["a", "b"], wins, Bootstrap(num_bootstrap=100), ties=1.0 * (wins == 0.5), prior=1e-9)
    assert scale.logits["b"].mean == pytest.approx(math.log(50 / 20), abs=1e-6)
    assert scale.tie is not None and scale.tie.mean == pytest.approx(30 / math.sqrt(50 * 20), abs=1e-6)


def test_davidson_as_a_log_linear_model_in_statsmodels() -> None:
    """Counts of wins, losses and ties as Poisson, with a term a pair (Fienberg and Larntz 1976)."""
    truth, nu = np.array([0, 0.7, -0.4, 1.1]), 0.8
    wins, ties = _outcomes(truth, 400, seed=7, nu=nu)
    rows, counts = [], []
    pairs = [(a, b) for a in range(4) for b in range(a)]
    for at, (a, b) in enumerate(pairs):
        tied = ties[a, b].sum()
        for half, tie, count in [(0.5, 0, (wins[a, b] == 1).sum()), (-0.5, 0, (wins[b, a] == 1).sum()), (0, 1, tied)]:
            rows.append([*(half * (np.eye(4)[a] - np.eye(4)[b])[1:]), tie, *np.eye(len(pairs))[at]])
            counts.append(count)
    theirs = sm.GLM(np.array(counts), np.array(rows), family=sm.families.Poisson()).fit(tol=1e-12)
    scale = policy_scale(_names(4), wins, Bootstrap(num_bootstrap=1000), ties=ties, prior=1e-6)
    assert _means(scale) == pytest.approx([0, *theirs.params[:3]], abs=1e-4)
    assert scale.tie is not None and scale.tie.mean == pytest.approx(math.exp(theirs.params[3]), abs=1e-4)
    widths = [interval.high - interval.low for interval in list(scale.logits.values())[1:]]  # type: ignore[operator]
    assert widths == pytest.approx(2 * 1.96 * theirs.bse[:3], rel=0.12)
    assert scale.tie.low is not None and scale.tie.high is not None and scale.tie.low < nu < scale.tie.high


def test_davidson_without_a_tie() -> None:
    wins, ties = _outcomes(np.array([0, 0.5, -0.5]), 200, seed=8)
    scale = policy_scale(_names(3), wins, Bootstrap(num_bootstrap=300), ties=ties)
    assert scale.tie is not None and 0 < scale.tie.mean < 0.01
    assert _means(scale) == pytest.approx(_means(policy_scale(_names(3), wins, Bootstrap())), abs=0.01)


def test_policies_that_were_never_compared() -> None:
    wins = np.full((4, 4, 10), np.nan)
    for a, b in [(0, 2), (1, 3)]:
        wins[a, b], wins[b, a] = 0.5, 0.5
    with pytest.raises(UserError, match=r"policies: `sft`, `ppo` / `dpo`, `kto` were never compared with each other"):
        policy_scale(["sft", "dpo", "ppo", "kto"], wins, Bootstrap())
    with pytest.raises(UserError, match=r"`a`, `b` / `c` were never .* or leave a group out"):
        bradley_terry(["a", "b", "c"], np.array([[0, 1, 0], [3, 0, 0], [0, 0, 0]]))


def test_no_maximum_without_a_prior() -> None:
    never = np.array([[0, 0, 0], [5, 0, 2], [5, 3, 0]])
    with pytest.raises(ValueError, match="only win, or only lose, against the others: give a prior above 0"):
        bradley_terry(_names(3), never, prior=0)
    assert bradley_terry(_names(3), never)[0] == 0


@pytest.mark.parametrize(
    ("names", "wins", "prior", "words"),
    [
        (["a"], np.full((1, 1, 3), 0.5), 1.0, "1 policies and a prior of 1.0"),
        (["a", "b"], np.full((2, 2, 3), 0.5), 0.0, "2 policies and a prior of 0.0"),
        (["a", "b"], np.full((2, 2), 0.5), 1.0, r"wins of the shape \(2, 2\) for 2 policies"),
        (["a", "b"], np.full((3, 3, 1), 0.5), 1.0, r"wins of the shape \(3, 3, 1\) for 2 policies"),
        (["a", "b"], np.full((2, 2, 0), 0.5), 1.0, r"wins of the shape \(2, 2, 0\)"),
        (["a", "b"], np.full((2, 2, 3), 0.6), 1.0, "must be 1"),
        (["a", "b"], np.array([[[0.5], [np.nan]], [[1.0], [0.5]]]), 1.0, "must be 1"),
        (["a", "b"], np.array([[[0.5], [-1.0]], [[2.0], [0.5]]]), 1.0, "must be 1"),
    ],
)
def test_what_cannot_be_scaled(names: list[str], wins: np.ndarray, prior: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy_scale(names, wins, Bootstrap(), prior=prior)


def test_clusters_are_numbered_in_order() -> None:
    assert cluster_numbers(["q", "p", "q"], 3).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="2 clusters for 3 prompts"):
        cluster_numbers(["q", "p"], 3)


def test_ten_policies_on_ten_thousand_prompts_take_seconds() -> None:
    wins, _ = _outcomes(np.linspace(0, 1, 10), 10_000, seed=9)
    start = time.process_time()
    policy_scale(_names(10), wins, Bootstrap())
    assert time.process_time() - start < 10
