"""From scores to advantages: KL and its price, the scale of scores, rewards, GAE, whitening; by hand and by loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.ppo.losses import KLController, RunningScale, gae, kl_per_token, token_rewards, whiten
from tests.strategies import NUMBER, drawn, floats

SHARE = st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0])
EPISODES = st.lists(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=7), min_size=1, max_size=5)
GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -7.0])


def pad(rows: list[list[float]], fill: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Rows as `(batch, time)` with `fill` behind each, `extra` columns wider than needed, and the mask."""
    width = max(map(len, rows)) + extra
    values = torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)
    return values, torch.tensor([[at < len(row) for at in range(width)] for row in rows])


def unpad(values: Tensor, mask: Tensor) -> list[list[float]]:
    """What lies in the mask, row by row; outside it there must be nothing."""
    assert (values[~mask] == 0).all()
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]


def split(episodes: list[list[tuple[float, float]]]) -> tuple[list[list[float]], list[list[float]]]:
    return [[a for a, _ in row] for row in episodes], [[b for _, b in row] for row in episodes]


def same(found: list[list[float]], wanted: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-9, abs=1e-9) for a, b in zip(found, wanted, strict=True))


# KL


def test_kl_by_hand() -> None:
    # pi = 1/2, ref = 1/4: k1 = log 2, k3 = 1/2 - 1 + log 2. The other way: -log 2, and 2 - 1 - log 2.
    logps, ref_logps = torch.tensor([[0.5, 0.25, 0.3], [0.25, 0.5, 0.3]]).log()
    assert kl_per_token(logps, ref_logps).tolist() == pytest.approx([math.log(2), -math.log(2), 0])
    assert kl_per_token(logps, ref_logps, "k3").tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0])


def test_k3_of_a_small_difference_is_not_lost_in_rounding() -> None:
    # x = log r: exp(x) - 1 - x = x^2/2 + x^3/6 + ..., here 3.0e-8, and float32 holds exp(x) to 1.2e-7 only.
    x = 2.0**-12
    k3 = kl_per_token(torch.tensor([-1.0]), torch.tensor([-1.0 + x]), "k3")
    assert k3.item() == pytest.approx(x**2 / 2 + x**3 / 6, rel=1e-3)


@drawn
@given(st.lists(st.tuples(floats(-3, 3), floats(-3, 3)), min_size=2, max_size=6))
def test_both_estimators_are_unbiased_and_k3_is_never_negative(logits: list[tuple[float, float]]) -> None:
    policy, reference = (np.exp(column) / np.exp(column).sum() for column in np.array(logits).T)
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    for estimator in ("k1", "k3"):
        kl = kl_per_token(torch.tensor(policy).log(), torch.tensor(reference).log(), estimator).numpy()
        assert (policy * kl).sum() == pytest.approx(exact, abs=1e-9)
    assert (kl >= -1e-12).all()


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(ValueError, match="kl_estimator: `k2` is not k1 or k3"):
        kl_per_token(torch.zeros(1), torch.zeros(1), "k2")


# Rewards, advantages, returns


def test_rewards_by_hand() -> None:
    # Half a point a nat. Row 1: -0.5, -1, -2 + 10. Row 2 ends at its first token: -1.5 - 1.
    kl = torch.tensor([[1.0, 2.0, 4.0], [3.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = token_rewards(torch.tensor([10.0, -1.0]), kl, mask, 0.5)
    assert rewards.tolist() == [[-0.5, -1, 8], [-2.5, 0, 0]]


def test_advantages_by_hand() -> None:
    # gamma = lam = 1/2. Deltas from the end: 4 - 2 = 2;  2 + 2/2 - 4 = -1;  1 + 4/2 - 2 = 1.
    # Advantages, each the delta and a quarter of the next: 2;  -1 + 2/4 = -0.5;  1 - 0.5/4 = 0.875.
    # Row 2 has one token: 3 - 1 = 2. The value 8 behind its end is not its next state's.
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, math.nan]])
    values = torch.tensor([[2.0, 4.0, 2.0], [1.0, 8.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.875, -0.5, 2], [2, 0, 0]]
    assert returns.tolist() == [[2.875, 3.5, 4], [3, 0, 0]]


@drawn
@given(EPISODES, NUMBER, GARBAGE, st.integers(0, 3), floats(0, 1))
def test_rewards_agree_with_a_loop(episodes, score: float, fill: float, extra: int, kl_coef: float) -> None:
    rows, _ = split(episodes)
    kl, mask = pad(rows, fill, extra)
    scores = torch.tensor([score + at for at in range(len(rows))], dtype=torch.float64)
    wanted = [[-kl_coef * nats for nats in row] for row in rows]
    for at, row in enumerate(wanted):
        row[-1] += score + at
    assert same(unpad(token_rewards(scores, kl, mask, kl_coef), mask), wanted)


def mean_of_k_step_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """GAE as its paper defines it: A = (1 - lam)(A1 + lam A2 + ...), where Ak looks k rewards ahead.

    From the end of the episode on all Ak are one, and share what weight is left. No delta is summed.
    """
    advantages = []
    for t in range(len(rewards)):
        left, total = len(rewards) - t, 0.0
        for k in range(1, left + 1):
            paid = sum(gamma**i * rewards[t + i] for i in range(k))
            rest = gamma**k * values[t + k] if k < left else 0.0
            weight = (1 - lam) * lam ** (k - 1) if k < left else lam ** (left - 1)
            total += weight * (paid + rest - values[t])
        advantages.append(total)
    return advantages


@drawn
@given(EPISODES, GARBAGE, st.integers(0, 3), SHARE, SHARE)
def test_advantages_agree_with_the_mean_of_k_steps(episodes, fill: float, extra: int, gamma: float, lam: float) -> None:
    rewards, values = split(episodes)
    wanted = [mean_of_k_step_advantages(*row, gamma, lam) for row in zip(rewards, values, strict=True)]
    (padded, mask), (padded_values, _) = pad(rewards, fill, extra), pad(values, fill, extra)
    advantages, returns = gae(padded, padded_values, mask, gamma, lam)
    assert same(unpad(advantages, mask), wanted)
    summed = [[a + v for a, v in zip(*row, strict=True)] for row in zip(wanted, values, strict=True)]
    assert same(unpad(returns, mask), summed)


@drawn
@given(EPISODES, SHARE)
def test_lambda_one_is_reward_to_go_and_lambda_zero_one_step(episodes, gamma: float) -> None:
    rewards, values = split(episodes)
    (padded, mask), (padded_values, _) = pad(rewards), pad(values)
    _, returns = gae(padded, padded_values, mask, gamma=1.0, lam=1.0)
    assert same(unpad(returns, mask), [[sum(row[t:]) for t in range(len(row))] for row in rewards])
    advantages, _ = gae(padded, padded_values, mask, gamma, lam=0.0)
    one_step = []
    for paid, row in zip(rewards, values, strict=True):
        one_step.append([r + gamma * after - v for r, after, v in zip(paid, [*row[1:], 0.0], row, strict=True)])
    assert same(unpad(advantages, mask), one_step)


# Whitening


def test_whitening_by_hand() -> None:
    # 1, 3 and 2 over both rows: mean 2, variance (1 + 1 + 0)/(3 - 1) = 1.
    values = torch.tensor([[1.0, 3.0, 50.0], [2.0, math.nan, 50.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert whiten(values, mask).flatten().tolist() == pytest.approx([-1, 1, 0, 0, 0, 0], abs=1e-6)


def test_whitening_of_one_value_or_of_equal_ones_is_zero() -> None:
    assert whiten(torch.tensor([[3.0, math.nan]]), torch.tensor([[True, False]])).tolist() == [[0, 0]]
    assert whiten(torch.tensor([[3.0, 3.0]]), torch.tensor([[True, True]])).tolist() == [[0, 0]]


@drawn
@given(EPISODES, GARBAGE, st.integers(0, 3))
def test_whitening_agrees_with_a_loop(episodes, fill: float, extra: int) -> None:
    rows, _ = split(episodes)
    kept = [value for row in rows for value in row]
    assume(len(kept) > 1 and np.std(kept, ddof=1) > 0.1)
    mean = sum(kept) / len(kept)
    spread = math.sqrt(sum((value - mean) ** 2 for value in kept) / (len(kept) - 1))
    found = unpad(whiten(*pad(rows, fill, extra)), pad(rows, fill, extra)[1])
    wanted = [(value - mean) / spread for value in kept]
    # 1e-8 is added to a variance of at least 0.01.
    assert [value for row in found for value in row] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@drawn
@given(EPISODES, GARBAGE, st.integers(0, 4))
def test_nothing_outside_the_mask_matters(episodes, fill: float, extra: int) -> None:
    """From KL to whitened advantages, with garbage put back outside the mask before every step."""

    def advantages_of(fill: float, extra: int) -> list[list[list[float]]]:
        (kl, mask), (values, _) = (pad(rows, fill, extra) for rows in split(episodes))
        scores = torch.arange(len(episodes), dtype=torch.float64)
        rewards = token_rewards(scores, kl, mask, 0.1)
        advantages, returns = gae(rewards.masked_fill(~mask, fill), values, mask, 0.99, 0.95)
        white = whiten(advantages.masked_fill(~mask, fill), mask)
        return [unpad(output, mask) for output in (rewards, advantages, returns, white)]

    assert advantages_of(fill, extra) == advantages_of(0.0, 0)  # to the last bit


# The price of a nat, the scale of scores


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.6, 0.101),  # a tenth above: 0.1 * (1 + 0.1 * 100/1000)
        (5.4, 0.099),
        (6.0, 0.1),
        (60.0, 0.102),  # nine times above counts as a fifth
        (0.0, 0.098),
        (-3.0, 0.098),  # k1's mean can fall below 0
    ],
)
def test_the_price_moves_towards_the_target_by_hand(kl: float, coef: float) -> None:
    controller = KLController(0.1, target=6.0, horizon=1000)
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(coef, rel=1e-12)
    controller.update(6.0, 100)
    assert controller.coef == pytest.approx(coef, rel=1e-12)


def test_a_price_without_a_target_is_fixed() -> None:
    controller = KLController(0.1)
    controller.update(1e6, 512)
    assert controller.coef == 0.1


@drawn
@given(floats(-10, 100), st.integers(1, 5000), st.sampled_from([1, 100, 10_000]))
@example(kl=0.0, num_episodes=512, horizon=100)  # 1 - 0.2 * 512/100 is below 0
def test_the_price_never_turns_into_a_reward(kl: float, num_episodes: int, horizon: int) -> None:
    controller = KLController(0.1, target=6.0, horizon=horizon)
    controller.update(kl, num_episodes)
    assert controller.coef > 0


def test_the_running_scale_by_hand() -> None:
    scale = RunningScale()
    assert scale.std == 1
    scale.update([2.0])
    assert (scale.count, scale.mean, scale.std) == (1, 2, 1)  # one score has no spread
    scale.update([4.0])  # mean 3, squares 1 + 1, over 2 - 1
    assert (scale.mean, scale.std) == (3, pytest.approx(math.sqrt(2)))
    scale.update([])
    scale.update([9.0])  # mean 5, squares 9 + 1 + 16, over 3 - 1
    assert (scale.count, scale.mean, scale.std) == (3, 5, pytest.approx(math.sqrt(13)))


@drawn
@given(st.lists(st.lists(floats(-1000, 1000), max_size=6), max_size=6), st.sampled_from([0.0, 1e6]))
def test_the_running_scale_in_chunks_is_that_of_all_at_once(chunks: list[list[float]], offset: float) -> None:
    scores = [score + offset for chunk in chunks for score in chunk]
    assume(len(scores) > 1 and np.std(scores) > 0.1)
    scale = RunningScale()
    for chunk in chunks:
        scale.update([score + offset for score in chunk])
    assert scale.count == len(scores)
    assert scale.mean == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-9)
    assert scale.std == pytest.approx(np.std(scores, ddof=1), rel=1e-6)


@pytest.mark.parametrize("score", [0.0, 0.1, 0.7, -17.7])
def test_scores_that_are_all_the_same_have_scale_one(score: float) -> None:
    scale = RunningScale()
    for num_scores in (3, 7, 64):
        scale.update([score] * num_scores)
        assert scale.std == 1
