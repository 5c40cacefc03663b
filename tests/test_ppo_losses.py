"""PPO's mathematics: small arrays worked out by hand, then the same by plain loops over unpadded episodes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.ppo.losses import (
    KLController,
    RunningScale,
    explained_variance,
    gae,
    kl_per_token,
    mismatch_weights,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

drawn = settings(max_examples=50, deadline=None)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


NUMBER, LOGP, SHARE = floats(-4, 4), floats(-6, 0), st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0])
EPISODES = st.lists(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=7), min_size=1, max_size=5)
GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -7.0])


def log(*numbers: float) -> Tensor:
    return torch.tensor(numbers).log()


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
    logps, ref_logps = log(0.5, 0.25, 0.3), log(0.25, 0.5, 0.3)
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


# The policy's loss


def test_the_clipped_loss_by_hand() -> None:
    # c = 0.2. A = 2: rho 0.5 gives -1, rho 1.5 and 4 are held at -2 * 1.2. A = -2: rho 0.5 is held at
    # 2 * 0.8, rho 1.5 and 4 are not held: 3 and 8, and with a dual clip of 3 the last is 2 * 3.
    logps, old_logps = log(0.1, 0.3, 0.8, 0.1, 0.3, 0.8), log(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    advantages = torch.tensor([2.0, 2, 2, -2, -2, -2])
    losses, binds = policy_loss(logps, old_logps, advantages, 0.2)
    assert losses.tolist() == pytest.approx([-1, -2.4, -2.4, 1.6, 3, 8])
    assert binds.tolist() == [False, True, True, True, False, False]
    losses, _ = policy_loss(logps, old_logps, advantages, 0.2, dual_clip=3.0)
    assert losses.tolist() == pytest.approx([-1, -2.4, -2.4, 1.6, 3, 6])


def test_the_clamp_of_the_log_ratio_and_the_weights_by_hand() -> None:
    # rho = 8 and 1/8 are clamped to 2 and 1/2; c = 0.9 leaves both free. A = -2: 4 for 16. A = 2: -1 for -0.25.
    logps, old_logps, advantages = log(0.8, 0.1), log(0.1, 0.8), torch.tensor([-2.0, 2.0])
    losses, _ = policy_loss(logps, old_logps, advantages, 0.9, log_ratio_clamp=math.log(2))
    assert losses.tolist() == pytest.approx([4, -1])
    weights = torch.tensor([0.5, 3.0])
    losses, _ = policy_loss(logps, old_logps, advantages, 0.9, log_ratio_clamp=math.log(2), weights=weights)
    assert losses.tolist() == pytest.approx([2, -3])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_one_odd_token_does_not_overflow(advantage: float) -> None:
    logps = torch.tensor([0.0], requires_grad=True)  # rho = exp(200) is infinite in float32
    losses, _ = policy_loss(logps, torch.tensor([-200.0]), torch.tensor([advantage]), 0.2, log_ratio_clamp=10.0)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.isfinite().all()
    assert gradient.tolist() == [0]


TOKENS = st.lists(st.tuples(LOGP, LOGP, NUMBER, floats(0, 2)), min_size=1, max_size=8)
DUAL_CLIP, CLAMP, CLIP = st.none() | floats(1.5, 4), st.none() | floats(0.125, 3), floats(0.0625, 0.5)


@drawn
@given(TOKENS, CLIP, DUAL_CLIP, CLAMP)
def test_the_clipped_loss_agrees_with_its_cases(tokens, c: float, dual: float | None, clamp: float | None) -> None:
    logps, old_logps, advantages, weights = torch.tensor(tokens, dtype=torch.float64).T
    losses, binds = policy_loss(logps, old_logps, advantages, c, dual, clamp, weights)
    for (logp, old_logp, advantage, weight), loss, bound in zip(tokens, losses, binds, strict=True):
        rho = math.exp(logp) / math.exp(old_logp)
        if clamp is not None:
            rho = max(math.exp(-clamp), min(rho, math.exp(clamp)))
        if advantage >= 0:  # what is good is praised up to 1 + c
            used, held = min(rho, 1 + c), rho > 1 + c and advantage > 0
        else:  # what is bad is blamed down to 1 - c, and at most `dual` times
            used, held = min(max(rho, 1 - c), dual or math.inf), rho < 1 - c
        assert loss.item() == pytest.approx(-advantage * used * weight, rel=1e-9, abs=1e-9)
        if min(abs(rho - 1 - c), abs(rho - 1 + c)) > 1e-9:
            assert bool(bound) is held


@drawn
@given(TOKENS, CLIP, st.sampled_from([None, 3.0]))
def test_the_gradient_is_zero_where_the_clip_binds(tokens, c: float, dual: float | None) -> None:
    logps, old_logps, advantages, weights = torch.tensor(tokens, dtype=torch.float64).T
    logps = logps.clone().requires_grad_()
    ratios = (logps - old_logps).exp()
    losses, binds = policy_loss(logps, old_logps, advantages, c, dual, weights=weights)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert (gradient[binds] == 0).all()
    blamed_enough = (advantages < 0) & (ratios > (dual or math.inf))
    assert (gradient[blamed_enough] == 0).all()
    free = ~binds & ~blamed_enough
    assert torch.allclose(gradient[free], (-weights * advantages * ratios)[free].detach())


@drawn
@given(st.lists(st.tuples(*[NUMBER] * 4), min_size=1, max_size=6), CLIP, DUAL_CLIP, CLAMP)
def test_the_first_step_is_the_policy_gradient(rows, c: float, dual: float | None, clamp: float | None) -> None:
    """At ratio 1 the gradient is that of -A log pi, down to the logits."""
    table = torch.tensor(rows, dtype=torch.float64)  # three logits and an advantage each
    logits, advantages = table[:, :3].clone().requires_grad_(), table[:, 3]
    logps = logits.log_softmax(1)[:, 0]
    losses, binds = policy_loss(logps, logps.detach(), advantages, c, dual, clamp)
    (found,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad((-advantages * logps).sum(), logits)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(losses, -advantages) and not binds.any()


# The value's loss


def test_the_value_loss_by_hand() -> None:
    # c = 0.5. (V, old, R): (1, 0.8, 2) within: 1/2 * 1. (2, 1, 3) clips to 1.5: max(1, 2.25)/2, it binds.
    # (2, 1, 0): max(4, 2.25)/2, the value moved the wrong way and pays in full. (0, 1, -1) clips to 0.5, binds.
    values, old_values = torch.tensor([1.0, 2, 2, 0]), torch.tensor([0.8, 1, 1, 1])
    losses, binds = value_loss(values, old_values, torch.tensor([2.0, 3, 0, -1]), 0.5)
    assert losses.tolist() == pytest.approx([0.5, 1.125, 2, 1.125])
    assert binds.tolist() == [False, True, False, True]


@drawn
@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=8), CLIP)
def test_the_value_loss_agrees_with_its_cases_and_has_no_gradient_where_it_binds(tokens, c: float) -> None:
    values, old_values, returns = torch.tensor(tokens, dtype=torch.float64).T
    values = values.clone().requires_grad_()
    losses, binds = value_loss(values, old_values, returns, c)
    (gradients,) = torch.autograd.grad(losses.sum(), values)
    for (value, old, target), loss, bound, gradient in zip(tokens, losses, binds, gradients, strict=True):
        moved = value - old
        kept = value if abs(moved) <= c else old + math.copysign(c, moved)
        miss, kept_miss = abs(value - target), abs(kept - target)
        assert loss.item() == pytest.approx(max(miss, kept_miss) ** 2 / 2, rel=1e-9, abs=1e-9)
        if kept != value and abs(miss - kept_miss) < 1e-9:
            continue  # on the edge itself either side will do
        assert bool(bound) is (kept_miss > miss)
        assert gradient.item() == (0 if bound else pytest.approx(value - target, rel=1e-9, abs=1e-9))


# Weights of an engine, explained variance


def test_mismatch_weights_by_hand() -> None:
    # 0.5/0.25 = 2, 0.25/0.5 = 1/2, 0.9/0.1 = 9 is cut to 3; an engine that gave 0 is cut too.
    weights = mismatch_weights(log(0.5, 0.25, 0.9, 0.4), log(0.25, 0.5, 0.1, 0.0), cap=3.0)
    assert weights.tolist() == pytest.approx([2, 0.5, 3, 3])


@drawn
@given(st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=8), floats(0.5, 4))
def test_mismatch_weights_agree_with_a_loop(tokens: list[tuple[float, float]], cap: float) -> None:
    old_logps, engine_logps = torch.tensor(tokens, dtype=torch.float64).T
    wanted = [min(math.exp(old) / math.exp(engine), cap) for old, engine in tokens]
    assert mismatch_weights(old_logps, engine_logps, cap).tolist() == pytest.approx(wanted, rel=1e-9)
    assert mismatch_weights(old_logps, old_logps, 2.0).tolist() == [1.0] * len(tokens)


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        ([1, 2, 3], 1),
        ([2, 3, 4], 1),  # a constant error has no variance
        ([5, 5, 5], 0),
        ([3, 2, 1], -3),  # errors -2, 0, 2: variance 4 of 1
        ([1, 2, 2], 2 / 3),  # errors 0, 0, 1: mean 1/3, variance (1/9 + 1/9 + 4/9)/2 = 1/3
    ],
)
def test_explained_variance_by_hand(values: list[float], explained: float) -> None:
    assert explained_variance(torch.tensor(values) * 1.0, torch.tensor([1.0, 2, 3])) == pytest.approx(explained)


@drawn
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=9))
def test_explained_variance_agrees_with_numpy(tokens: list[tuple[float, float]]) -> None:
    values, returns = np.array(tokens).T
    assume(returns.std() > 0.1)
    wanted = 1 - np.var(returns - values) / np.var(returns)  # with or without Bessel's: a ratio
    assert explained_variance(torch.tensor(values), torch.tensor(returns)) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 10, 100])
def test_explained_variance_of_returns_that_do_not_vary_is_not_a_number(num_tokens: int) -> None:
    values = torch.linspace(-1, 1, num_tokens)
    for constant in (0.0, 0.1, 0.7, -17.7):
        returns = torch.full((num_tokens,), constant)
        assert math.isnan(explained_variance(values, returns))
        returns[::2] *= 1 + 2**-23  # A + V rounds: the last bit of a return is no variance to explain
        assert math.isnan(explained_variance(values, returns))


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
