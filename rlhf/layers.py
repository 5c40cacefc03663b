"""The parts of a causal language model, whatever its architecture calls them; inside a PEFT wrapper too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def causal(policy: Any) -> Any:
    """The causal language model itself, inside a PEFT wrapper too; adapters stay on."""
    return policy.get_base_model() if hasattr(policy, "peft_config") else policy


def trunk(model: Any) -> Any:
    """What turns ids into hidden states, without its head."""
    return causal(model).base_model


def logits_of(policy: Any) -> Callable[[Tensor], Tensor]:
    """From hidden states to logits as the model itself makes them: its last layer, and its scaling or cap."""
    model = causal(policy)
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    times = getattr(config, "logit_scale", None)  # Cohere
    over = getattr(config, "logits_scaling", None)  # Granite
    if config.model_type == "hyperclovax":
        times, over = over, None

    def logits(hidden: Tensor) -> Tensor:
        out = head(hidden)
        out = out * times if times else out
        out = out / over if over else out
        return torch.tanh(out / cap) * cap if cap else out

    return logits
