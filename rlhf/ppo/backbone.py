"""A reward model that is an adapter on the policy's own base: scored with the weights that are in memory already."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.layers import trunk
from rlhf.models import context_length, load_tokenizer
from rlhf.ppo.networks import active_adapter, disable_dropout
from rlhf.scoring import RewardModel


class BackboneClassifier:
    """What a sequence classifier is to RewardModel: the policy's trunk under another adapter, and a head.

    Args:
        policy: a PEFT model.
        adapter: the name of the reward model's adapter in it.
        head: `(1, hidden)`, the weights of the score.
    """

    def __init__(self, policy: Any, adapter: str, head: Tensor) -> None:
        self.policy = policy
        self.adapter = adapter
        self.head = head

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.policy.get_input_embeddings().weight.device

    def eval(self) -> "BackboneClassifier":
        """Nothing to do: there is no dropout in it."""
        return self

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`logits`, `(batch, 1)` float32: the score at each row's last token; rows are padded on the right."""
        last = attention_mask.sum(1) - 1
        # The reward model's pad may be a token that the policy has no row for; causal attention does not see it.
        input_ids = input_ids.masked_fill(attention_mask == 0, 0)
        with active_adapter(self.policy, self.adapter):
            hidden = trunk(self.policy)(input_ids=input_ids, use_cache=False).last_hidden_state
        kept = hidden[torch.arange(len(last), device=last.device), last]
        with torch.autocast(kept.device.type, enabled=False):  # the trunk may be under one
            return SimpleNamespace(logits=kept.float() @ self.head.to(kept.device).T)


def on_backbone(policy: Any, path: str, max_length: int | None, batch_size: int) -> RewardModel | None:
    """The reward model of an adapter folder on the policy's weights; None where it needs weights of its own.

    Shared are LoRAs alone, trained from the base that the policy's LoRA is on, by name or path. Not under
    ZeRO-3, where nobody has the policy's weights whole while rewards are asked.
    """
    from peft import LoraConfig, PeftConfig, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(path)
    mine = getattr(policy, "peft_config", {}).get("default")
    if not isinstance(config, LoraConfig) or mine is None or config.bias != "none":
        return None
    if _base(config) != _base(mine) or any(hasattr(p, "ds_id") for p in policy.parameters()):
        return None
    weights = load_peft_weights(path, device="cpu")
    lora = {name: weight for name, weight in weights.items() if "lora_" in name}
    others = {name: weight for name, weight in weights.items() if name not in lora}
    heads = [others.pop(name) for name in list(others) if name.endswith(("score.weight", "classifier.weight"))]
    if len(heads) != 1 or not all(_same_embedding(policy, name, weight) for name, weight in others.items()):
        return None

    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    adapter = f"reward{len(policy.peft_config)}"
    policy.add_adapter(adapter, replace(config, task_type="CAUSAL_LM", modules_to_save=None, inference_mode=True))
    result = set_peft_model_state_dict(policy, lora, adapter_name=adapter)
    loaded = [parameter for name, parameter in policy.named_parameters() if f".{adapter}." in name]
    for parameter in loaded:
        parameter.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    if result.unexpected_keys or len(loaded) != len(lora):
        policy.delete_adapter(adapter)  # its layers are not the policy's
        return None
    disable_dropout(policy)
    tokenizer = load_tokenizer(path)
    tokenizer.padding_side = "right"
    context = context_length(policy)
    classifier = BackboneClassifier(policy, adapter, heads[0].float())
    return RewardModel(classifier, tokenizer, min(max_length or context, context), batch_size)


def _base(config: Any) -> str:
    """A base's name, or its whole path where it is a folder."""
    base = str(config.base_model_name_or_path)
    return str(Path(base).resolve()) if Path(base).exists() else base


def _same_embedding(policy: Any, name: str, weight: Tensor) -> bool:
    """Whether this is the input embedding, saved because a pad token was added, its other rows as they were."""
    layer: nn.Module = policy.get_input_embeddings()
    mine = next(iter(layer.parameters()))
    if not name.endswith(".weight") or weight.ndim != 2 or weight.shape[1] != mine.shape[1]:
        return False
    rows = min(len(weight), len(mine))
    return torch.equal(weight[:rows].to(mine.device, mine.dtype), mine[:rows])
