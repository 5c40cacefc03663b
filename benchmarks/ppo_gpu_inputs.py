"""What benchmarks/ppo_gpu.py runs on: Qwen2-shaped models of random weights, made on the device, alike in all arms."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from ppo_inputs import EOS, PAD, Inputs, Shape, make_prompts, qwen2_config, set_ends, word_tokenizer


@dataclass(frozen=True)
class Size:
    """A model's shape and a round's; `shape.heads` are the query heads."""

    name: str
    shape: Shape
    kv_heads: int

    @property
    def weights(self) -> int:
        """Of the policy, embeddings and output layer included (they are not tied)."""
        return self.body + 2 * self.shape.vocabulary * self.shape.hidden

    @property
    def body(self) -> int:
        """Weights that each token is multiplied with, the output layer left out."""
        shape = self.shape
        kv = 2 * shape.hidden * (shape.hidden // shape.heads) * self.kv_heads
        return shape.layers * (2 * shape.hidden**2 + kv + 3 * shape.hidden * shape.intermediate)


_ROUND = {"episodes": 64, "shortest_prompt": 32, "longest_prompt": 128, "shortest_reply": 16, "longest_reply": 128}
_ROUND |= {"epochs": 2, "minibatches": 4, "vocabulary": 151_936}
SIZES = {
    # Qwen2.5's published shapes of these names, but for the tied embeddings: these are not tied.
    "0.5B": Size("0.5B", Shape(hidden=896, intermediate=4864, layers=24, heads=14, **_ROUND), 2),
    "1.5B": Size("1.5B", Shape(hidden=1536, intermediate=8960, layers=28, heads=12, **_ROUND), 2),
    "tiny": Size(
        "tiny",
        Shape(hidden=64, intermediate=128, layers=2, vocabulary=512, episodes=8, longest_prompt=16, longest_reply=16),
        2,
    ),
}


def make_inputs(size: Size, ends: bool, value: bool, device: str, seed: int = 0) -> Inputs:
    """Policy and value model in float32 (the masters of bf16 training), the reward model in bf16; on the device."""
    from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification

    shape, config = size.shape, qwen2_config(size.shape, size.kv_heads)
    torch.manual_seed(seed)
    with torch.device(device):
        policy: Any = Qwen2ForCausalLM(config)
        value_model = Qwen2ForSequenceClassification(config) if value else None
        reward: Any = Qwen2ForSequenceClassification(config)
        reward.to(torch.bfloat16)
    policy.to("cpu")
    set_ends(policy, shape, ends)
    policy.to(device)
    policy.generation_config.update(eos_token_id=EOS, pad_token_id=PAD)
    tokenizer: Any = word_tokenizer(shape.vocabulary)
    return Inputs(shape, make_prompts(shape, ends, seed), ends, tokenizer, policy, value_model, reward)


def smaller(size: Size, episodes: int) -> Size:
    """The same model with fewer episodes a round."""
    return replace(size, shape=replace(size.shape, episodes=episodes))
