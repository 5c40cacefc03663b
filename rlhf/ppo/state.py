"""What PPO must remember between rounds beside weights and optimizer: small, JSON, exact."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.losses import KLController, RunningScale
from rlhf.ppo.rollout import Episode


@dataclass
class PPOState:
    """The KL's price, the scores' bias and scale, counts, and the figures of rounds not yet logged."""

    kl: KLController
    bias: float | None
    scale: RunningScale = field(default_factory=RunningScale)
    num_episodes: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0  # prompts included, each epoch's
    skipped: int = 0
    skipped_in_a_row: int = 0
    figures: list[dict[str, float]] = field(default_factory=list)
    guard: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, args: PPOConfig) -> "PPOState":
        """The state before the first round."""
        return cls(KLController(args.kl_coef, args.kl_target, args.kl_horizon), args.score_bias)

    def pay(self, episodes: list[Episode], args: PPOConfig) -> list[float]:
        """What each episode's score is worth: less the bias, scaled, clipped, less the penalty for no end.

        The first round's mean becomes the bias where none is set: the policy there is the start, whose
        mean score is so made 0.
        """
        scores = [episode.score for episode in episodes]
        if self.bias is None:
            self.bias = sum(scores) / len(scores)
        self.scale.update(scores)
        paid = []
        for episode in episodes:
            value = episode.score - self.bias
            value = value / self.scale.std if args.scale_scores else value
            if args.score_clip is not None:
                value = min(max(value, -args.score_clip), args.score_clip)
            paid.append(value if episode.finished else value - args.missing_eos_penalty)
        return paid

    def finish_round(self, figures: dict[str, float], episodes: list[Episode], num_epochs: int) -> None:
        """Count a round's episodes and tokens, and keep its figures until they are logged."""
        self.figures.append(figures)
        self.num_episodes += len(episodes)
        self.tokens_generated += sum(len(episode.ids) for episode in episodes)
        self.tokens_trained += num_epochs * sum(episode.length for episode in episodes)

    def take_figures(self) -> dict[str, float]:
        """The mean of each figure over the rounds since the last log row, which are then forgotten."""
        rows, self.figures = self.figures, []
        keys = dict.fromkeys(key for row in rows for key in row)
        return {key: _mean([row[key] for row in rows if key in row]) for key in keys}

    def save(self, path: Path) -> None:
        """Write it as JSON; floats come back bit for bit."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "PPOState":
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        kl, scale = KLController(**values.pop("kl")), RunningScale(**values.pop("scale"))
        return cls(kl=kl, scale=scale, **values)


class MovingAverage:
    """An exponential moving average of a model's trainable weights."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """average <- decay average + (1 - decay) weights."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Put the average in place of the weights."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over a saved average."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else sum(values) / len(values)
