"""A look at the first replies: does this architecture mean what the rollout and the losses take it to mean?"""

from typing import Any

import torch
from torch import Tensor

from rlhf.errors import UserError
from rlhf.ppo.engines import draw
from rlhf.ppo.rollout import Episode

# Rounding in 16 bits moves a log-probability by hundredths, and a draw close to a boundary to its neighbour.
_MAX_LOGP_ERROR = 0.1
_MIN_SHARE_REDRAWN = 0.75


@torch.no_grad()
def check_architecture(policy: Any, episodes: list[Episode], uniforms: Tensor, temperature: float) -> None:
    """Hold the shortest and the longest prompt's replies against the model's own whole forward pass.

    Models are many: some scale their logits in a way of their own, some cannot decode prompts of
    unlike length together. Both would train on numbers that mean nothing, without an error.

    Raises UserError where log-probabilities differ, or the replies are not those that the same uniform
    numbers draw from the forward pass.
    """
    order = sorted(range(len(episodes)), key=lambda at: len(episodes[at].prompt_ids))
    num_tokens = num_redrawn = 0
    for at in {order[0], order[-1]}:
        episode = episodes[at]
        ids = torch.tensor([episode.prompt_ids + episode.ids], device=policy.get_input_embeddings().weight.device)
        logits = policy(input_ids=ids, use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1].float()
        logits = logits / temperature
        logps = logits.log_softmax(-1).gather(-1, ids[0, len(episode.prompt_ids) :, None]).squeeze(-1)
        error = (logps.cpu() - torch.tensor(episode.logps)).abs().max().item()
        if error > _MAX_LOGP_ERROR:
            raise UserError(
                f"model: {type(policy).__name__} makes its logits in a way that PPO does not know (its "
                f"log-probabilities differ by {error:.2g}); choose another model, and report this one"
            )
        redrawn = draw(logits, uniforms[at, : len(episode.ids)].to(logits.device)).tolist()
        num_tokens += len(redrawn)
        num_redrawn += sum(a == b for a, b in zip(redrawn, episode.ids, strict=True))
    if num_redrawn < _MIN_SHARE_REDRAWN * num_tokens:
        raise UserError(
            f"model: {type(policy).__name__} does not decode prompts of unlike length together as it does each alone "
            f"({num_tokens - num_redrawn} of {num_tokens} tokens differ); choose another model, and report this one"
        )
