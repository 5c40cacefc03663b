"""What episodes come to in numbers: the figures of a round and of a look, as they are logged."""

import resource

import torch

from rlhf.ppo.losses import explained_variance
from rlhf.ppo.rollout import Batch, Episode


def of_round(batch: Batch, rewards: list[str], kl_coef: float) -> dict[str, float]:
    """The figures of a round that do not come from its updates.

    `rewards` are the names of the reward functions; where there are several, each has a figure of its own.
    """
    episodes = batch.episodes
    scores = torch.tensor([episode.score for episode in episodes])
    figures = {
        "score": scores.mean().item(),
        "score/std": scores.std().item() if len(episodes) > 1 else 0.0,
        "reward": batch.rewards.sum(1).mean().item(),
        "kl": (batch.kl * batch.mask).sum(1).mean().item(),
        "kl_coef": kl_coef,
        "length": batch.mask.sum(1).float().mean().item(),
        "eos_rate": sum(episode.finished for episode in episodes) / len(episodes),
        "entropy": sum(episode.entropy for episode in episodes) / len(episodes),
        "explained_variance": explained_variance(batch.old_values[batch.mask], batch.returns[batch.mask]),
    }
    if len(rewards) > 1:
        for at, name in enumerate(rewards):
            figures[f"score/{name}"] = sum(episode.scores[at] for episode in episodes) / len(episodes)
    return figures


def of_look(episodes: list[Episode]) -> dict[str, float]:
    """Means over replies to held-out prompts: score, KL (nats a reply), length, share of finished replies."""
    figures = {
        "score": [episode.score for episode in episodes],
        "kl": [sum(episode.logps) - sum(episode.ref_logps) for episode in episodes],
        "length": [len(episode.ids) for episode in episodes],
        "eos_rate": [float(episode.finished) for episode in episodes],
    }
    return {name: sum(values) / len(values) for name, values in figures.items()}


def of_speed(episodes: list[Episode], seconds: dict[str, float]) -> dict[str, float]:
    """Episodes and tokens, prompts included, a second of the round's parts; peak memory in MB (2**20 bytes)."""
    total = sum(seconds.values())
    return {
        "episodes_per_second": len(episodes) / total,
        "tokens_per_second": sum(episode.length for episode in episodes) / total,
        "memory/peak_mb": _peak_memory(),
    }


def _peak_memory() -> float:
    """The accelerator's peak, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
