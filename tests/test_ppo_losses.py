"""PPO's losses and what they are judged by: small arrays by hand, then the same by their cases, token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.ppo.losses import explained_variance, mismatch_weights, policy_loss, value_loss
from tests.strategies import NUMBER, drawn, floats

LOGP = floats(-6, 0)
TOKENS = st.lists(st.tuples(LOGP, LOGP, NUMBER, floats(0, 2)), min_size=1, max_size=8)
DUAL_CLIP, CLAMP, CLIP = st.none() | floats(1.5, 4), st.none() | floats(0.125, 3), floats(0.0625, 0.5)


def log(*numbers: float) -> Tensor:
    return torch.tensor(numbers).log()


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
