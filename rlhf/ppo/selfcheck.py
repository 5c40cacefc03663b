"""A look at the first replies: does this architecture mean what the rollout and the losses take it to mean?"""

from typing import Any

import torch
from torch import Tensor

from rlhf.decoding import check_decoding
from rlhf.errors import UserError
from rlhf.ppo.rollout import Episode

# Rounding in 16 bits moves a log-probability by hundredths.
_MAX_LOGP_ERROR = 0.1


@torch.no_grad()
def check_architecture(policy: Any, episodes: list[Episode], uniforms: Tensor, temperature: float) -> None:
    """Hold the shortest and the longest prompt's replies against the model's own whole forward pass.

    Raises UserError where log-probabilities differ, or the replies are not those that the same uniform
    numbers draw from the forward pass: such a model would train on numbers that mean nothing.
    """
    order = sorted(range(len(episodes)), key=lambda at: len(episodes[at].prompt_ids))
    for at in {order[0], order[-1]}:
        episode = episodes[at]
        ids = torch.tensor([episode.prompt_ids + episode.ids], device=policy.get_input_embeddings().weight.device)
        logits = policy(input_ids=ids, use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1].float()
        logps = (logits / temperature).log_softmax(-1)
        taken = logps.gather(-1, ids[0, len(episode.prompt_ids) :, None]).squeeze(-1)
        error = (taken.cpu() - torch.tensor(episode.logps)).abs().max().item()
        if error > _MAX_LOGP_ERROR:
            raise UserError(
                f"model: {type(policy).__name__} makes its logits in a way that PPO does not know (its "
                f"log-probabilities differ by {error:.2g}); choose another model, and report this one"
            )
    prompts, replies = [episode.prompt_ids for episode in episodes], [episode.ids for episode in episodes]
    check_decoding(policy, prompts, replies, uniforms, temperature)
