"""Tiny models of every architecture that PPO knows, with weights that show where something is left out."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rlhf.ppo.networks import VALUE_ADAPTER

VOCABULARY = 64
_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA |= _SIZES | {"max_position_embeddings": 64}
_GQA = _LLAMA | {"num_key_value_heads": 1, "head_dim": 16}
_GPT2 = _SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
_BLOOM = _SIZES | {"hidden_size": 32, "n_layer": 2, "n_head": 2}
_GPT_NEO = _SIZES | {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
_GPT_NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 4}
_OPT = _SIZES | {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_QWEN3_5 = _GQA | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
_QWEN3_5 |= {"linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
# What the last layer's logits go through is set so that it shows.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA | {"num_key_value_heads": 2},
    "qwen3": _GQA,
    "mistral": _GQA | {"sliding_window": 4},
    "gemma2": _GQA | _WINDOWS | {"final_logit_softcapping": 2.0},
    "gemma3_text": _GQA | _WINDOWS | {"final_logit_softcapping": 2.0},
    "cohere": _LLAMA | {"logit_scale": 0.3},
    "granite": _LLAMA | {"logits_scaling": 3.0},
    "phi": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _LLAMA,
    "opt": _OPT | {"word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "bloom": _BLOOM,
    "mpt": _SIZES | {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "falcon": _LLAMA,
    "qwen3_5_text": _QWEN3_5,
    "hyperclovax": _LLAMA | {"logits_scaling": 3.0},
}


def tiny(architecture: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    """A model of two layers with weights so large that its distributions are far from uniform; in eval mode."""
    config = CONFIG_MAPPING[architecture](**SETTINGS[architecture] | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.15)
    return model


def lora(policy: Any, with_value: bool = False, targets: tuple[str, ...] = ("q_proj", "v_proj"), dropout: float = 0.0):
    """The policy with a LoRA that is not 0, and a second one for the value."""
    shape = LoraConfig(r=2, target_modules=list(targets), lora_dropout=dropout)
    policy = get_peft_model(policy, shape).eval()
    if with_value:
        policy.add_adapter(VALUE_ADAPTER, shape)
        policy.set_adapter("default")
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3).requires_grad_(True)
    return policy


def close(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol)
