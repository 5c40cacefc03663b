"""Three replies to score, and the scores that reward functions give them."""

from typing import Any

from rlhf.ppo.rewards import load_rewards
from rlhf.ppo.scores import score

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "What time does the shop close?", "Thank you")]
COMPLETIONS = [[{"role": "assistant", "content": text}] for text in ("Thank you", "What what what what", "a")]
TEXTS = ["Thank you", "What what what what", "a"]


def ask(*functions: Any, columns: dict[str, Any] | None = None, timeout: float = 60.0) -> list[list[float]]:
    """The scores that these functions give to the three replies."""
    return score(load_rewards(list(functions)), PROMPTS, COMPLETIONS, columns or {}, timeout)
