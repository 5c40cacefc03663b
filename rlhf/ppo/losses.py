"""PPO's mathematics: pure functions of tensors, each with its equation and source. docs/ppo.md numbers the steps.

Shapes: `(batch, time)` holds one row an episode, padded on the right, with a mask that is true on the
reply's tokens; `(tokens,)` holds the tokens of a micro-batch end to end, with nothing to mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def kl_per_token(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """An estimate of KL(policy || reference) at each sampled token, in nats, of the inputs' shape.

    With r = ref(y)/pi(y): `k1` = -log r is unbiased, `k3` = r - 1 - log r also never negative, of lower
    variance near 0 and with heavy tails far from it (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = ref_logps - logps
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kl_estimator: `{estimator}` is not k1 or k3")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """What the policy is paid at each token: r_t = -kl_coef * kl_t, and the score at the last token.

    Args:
        scores: one scalar an episode, `(batch,)`.
        kl: the KL at each token, `(batch, time)`.
        mask: true on the reply's tokens, the end of turn included; at least one a row.
        kl_coef: the price of a nat.

    Returns:
        `(batch, time)`, 0 outside the mask. (Ziegler et al. 2019, equation 2, paid token by token.)
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns by generalized advantage estimation.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t,
    with V = A = 0 after the last token (Schulman et al. 2016, equations 11 and 16).

    Args:
        rewards: `(batch, time)`.
        values: the value of the state before each token, `(batch, time)`.
        mask: true on the reply's tokens.

    Returns:
        Advantages and returns, `(batch, time)`, 0 outside the mask.
    """
    values = torch.where(mask, values, 0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = torch.where(mask, rewards + gamma * following - values, 0.0)
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 (Bessel's) over the mask; 0 outside it.

    One value alone becomes 0. The caller gives the global batch, not one rank's share of it.
    """
    kept = values[mask]
    if kept.numel() < 2:
        return torch.zeros_like(values)
    return torch.where(mask, (values - kept.mean()) * torch.rsqrt(kept.var() + 1e-8), 0.0)


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    cliprange: float,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss of each token, and whether the clip (not the dual one) binds there; both `(tokens,)`.

    With rho = pi(y)/pi_old(y): L = max(-A rho, -A clip(rho, 1 - c, 1 + c)) (Schulman et al. 2017,
    equation 7). `dual_clip` d > 1 also bounds it by -A d where A < 0 (Ye et al. 2020, equation 4).
    `log_ratio_clamp` bounds log rho, so that one odd token cannot overflow. `weights` multiply the
    loss: the truncated importance weights of a rollout engine that is not the trained model itself.
    """
    log_ratio = logps - old_logps
    if log_ratio_clamp is not None:
        log_ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    ratio = log_ratio.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.maximum(free, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    if weights is not None:
        losses = losses * weights
    return losses, clipped > free


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of each token's value, clipped, and whether the clip binds; both `(tokens,)`.

    L = 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2): a value that has moved further than c
    from the old one gains nothing by it. (baselines' ppo2; Huang et al. 2022, detail 9.)
    """
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    free_error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    return 0.5 * torch.maximum(free_error, clipped_error), clipped_error > free_error


def mismatch_weights(old_logps: Tensor, engine_logps: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(pi_old(y)/pi_engine(y), cap) of each token.

    They correct for an engine whose arithmetic differs from the trainer's (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training").
    """
    return (old_logps - engine_logps).exp().clamp(max=cap)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V)/Var(R) over `(tokens,)`: 1 is a perfect value model, 0 no better than a constant."""
    if returns.numel() < 2 or returns.std() <= 1e-6 * returns.abs().max():  # equal but for rounding
        return float("nan")
    return 1 - ((returns - values).var() / returns.var()).item()


@dataclass
class KLController:
    """The price of a nat. With a target it moves so that the KL of a reply comes to lie there.

    coef <- coef * (1 + clip(kl/target - 1, -0.2, 0.2) * episodes/horizon) (Ziegler et al. 2019, 2.2).
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, num_episodes: int) -> None:
        """Take in the mean KL of `num_episodes` replies, in nats a reply."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(num_episodes / self.horizon, 1)  # never below 0


@dataclass
class RunningScale:
    """Mean and variance of all scores so far (Chan et al. 1979), to bring scores to a known scale."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: list[float]) -> None:
        """Take in more scores."""
        if not scores:
            return
        count, mean = len(scores), sum(scores) / len(scores)
        squares = sum((score - mean) ** 2 for score in scores)
        total, delta = self.count + count, mean - self.mean
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation (Bessel's); 1 where fewer than two scores, or no spread, have been seen."""
        spread = (self.squares / max(self.count - 1, 1)) ** 0.5
        return spread if spread > 1e-9 * abs(self.mean) else 1.0  # equal scores differ by rounding alone
