"""PPO on transformers' Trainer: `from rlhf.ppo import PPOConfig, PPOTrainer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.ppo.config import PPOConfig
    from rlhf.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    # On first use: `import rlhf.ppo` costs nothing.
    if name == "PPOConfig":
        from rlhf.ppo.config import PPOConfig

        return PPOConfig
    if name == "PPOTrainer":
        from rlhf.ppo.trainer import PPOTrainer

        return PPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
