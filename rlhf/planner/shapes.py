"""Models from their config alone: their weights counted by the library that makes them, none of them loaded."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf.errors import UserError
from rlhf.models import check_model_folder, new_llama


@dataclass(frozen=True)
class Count:
    """Numbers of weights.

    Args:
        total: all of them.
        trained: those that learn.
        quantized: those that bitsandbytes holds in 4 or 8 bits.
    """

    total: int
    trained: int = 0
    quantized: int = 0

    def frozen(self) -> "Count":
        """The same weights where none learns."""
        return replace(self, trained=0)


@dataclass
class _Vocabulary:
    """What `new_llama` asks of a tokenizer that is not there yet."""

    size: int
    eos_token_id: int = 2
    pad_token_id: int = 0

    def __len__(self) -> int:
        return self.size


def read_config(path: str, trust_remote_code: bool = False) -> Any:
    """The transformers config of a model folder, an adapter's base or a Hub id.

    Raises UserError where there is none.
    """
    from transformers import AutoConfig

    check_model_folder(path)
    if path.startswith("runs/") and not Path(path).exists():  # a run yet to come, and no owner on the Hub
        raise UserError(
            f"{path}: is not there; a plan needs a config.json alone, so name the model that this run will start from"
        )
    adapter = Path(path) / "adapter_config.json"
    source = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else path
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path}: its config cannot be loaded ({reason}); give the folder of a causal language model"
        ) from error


def pretrain_config(data: Any) -> Any:
    """The config of the Llama that `rlhf pretrain` would make."""
    if data.hidden_size % data.num_heads:
        raise UserError(f"num_heads: {data.num_heads} does not divide hidden_size {data.hidden_size}; choose another")
    with torch.device("meta"):
        model = new_llama(_Vocabulary(data.vocab_size), data.hidden_size, data.num_layers, data.num_heads, data.context)
    return model.config


def with_layers(config: Any, num_layers: int) -> Any:
    """A copy of a config with fewer layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = num_layers
    if kinds:
        text.layer_types = kinds[:num_layers]
    return config


def causal_model(config: Any, dtype: Any, attention: str | None) -> Any:
    """A causal language model of this shape, on the device and mode that are set."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_runnable(attention))
    model.tie_weights()  # which transformers leaves out with the initialization
    return model


def classifier_model(config: Any, dtype: Any, attention: str | None) -> Any:
    """A sequence classifier of one label on the same trunk."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = 0
    return AutoModelForSequenceClassification.from_config(config, dtype=dtype, attn_implementation=_runnable(attention))


def count(model: Any, quantized: bool = False) -> Count:
    """How many weights a model has, tied ones once."""
    parameters = list(model.parameters())
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and not name.endswith(("lm_head", "score"))
    }
    return Count(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters if id(p) in linear and not p.requires_grad) if quantized else 0,
    )


def _runnable(attention: str | None) -> str | None:
    """Flash attention keeps what `sdpa` keeps, and needs not be installed to say so."""
    return "sdpa" if attention and "flash" in attention else attention
