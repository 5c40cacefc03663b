"""Rollout engines: prompts as ids in, replies as ids out, the same for the same uniform numbers."""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.networks import logits_of, trunk


class Engine(Protocol):
    """What a rollout engine is."""

    logps: list[list[float]] | None  # of the last replies' tokens, where the engine is not the trained model itself
    own_weights: bool  # it has a copy, and is asked before ZeRO-3's policy is gathered

    def generate(self, policy: Any, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        """One reply a prompt: ids up to the end-of-turn token, that included where there is one.

        Args:
            policy: the causal language model.
            prompts: token ids, not padded.
            uniforms: `(prompts, max_new_tokens)`, each in [0, 1): the randomness of each token.
        """
        ...


class HFEngine:
    """Decodes with the policy as it stands in the trainer.

    Prompts of like length share a batch. A reply that is finished leaves it once a quarter of the
    rows are, so that a few long replies do not keep the short ones computing. Each token is drawn
    from its own uniform number by inverting the distribution, so a reply depends on neither its
    batch nor the number of ranks.
    """

    logps: list[list[float]] | None = None
    own_weights = False

    def __init__(self, stop_ids: set[int], max_new_tokens: int, temperature: float, batch_size: int) -> None:
        self.stop_ids = sorted(stop_ids)
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(self, policy: Any, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        """See Engine."""
        replies: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for row, ids in zip(
                rows, self._decode(policy, [prompts[row] for row in rows], uniforms[rows]), strict=True
            ):
                replies[row] = ids
        return replies

    def _decode(self, policy: Any, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        device = policy.get_input_embeddings().weight.device
        body, logits = trunk(policy), logits_of(policy)
        stops = torch.tensor(self.stop_ids, device=device)
        uniforms = uniforms.to(device)
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.ones(len(prompts), width + self.max_new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):  # padded on the left: all replies begin in one column
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, : width - len(prompt)] = 0
        input_ids, mask = input_ids.to(device), mask.to(device)
        positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
        takes_positions = "position_ids" in inspect.signature(body.forward).parameters
        cache = rollout_cache(policy.config.get_text_config(), width + self.max_new_tokens)

        tokens = torch.zeros(len(prompts), self.max_new_tokens, dtype=torch.long, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        alive = torch.arange(len(prompts), device=device)  # the rows that are still in the batch
        for t in range(self.max_new_tokens):
            places = {"position_ids": positions} if takes_positions else {}
            hidden = body(
                input_ids=input_ids,
                attention_mask=mask[alive, : width + t],
                past_key_values=cache,
                use_cache=True,
                **places,
            ).last_hidden_state[:, -1]
            drawn = draw(logits(hidden).float() / self.temperature, uniforms[alive, t])
            tokens[alive, t] = drawn
            ended[alive] |= torch.isin(drawn, stops)
            running = ~ended[alive]
            num_running = int(running.sum())
            if num_running == 0:
                break
            positions = positions[:, -1:] + 1
            if num_running <= 0.75 * len(alive):
                keep = running.nonzero().squeeze(1)
                cache.reorder_cache(keep)  # type: ignore[arg-type]
                alive, drawn, positions = alive[keep], drawn[keep], positions[keep]
            input_ids = drawn[:, None]
        return [self._cut(ids) for ids in tokens.tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        """Up to the first end of turn: found by position, since pad and eos are one token in many checkpoints."""
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), None)
        return ids if end is None else ids[: end + 1]


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability passes its uniform number; `(batch, vocabulary)` -> `(batch,)`."""
    cumulative = torch.softmax(logits, dim=-1).cumsum(-1)
    points = uniforms.clamp(max=1 - 2**-20)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


class _Buffered(DynamicLayer):
    """Keys and values in one buffer of the final length: nothing is copied as the reply grows."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.all_keys, self.all_values = (
            states.new_empty(*states.shape[:2], self.capacity, states.shape[3]) for states in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.all_keys[:, :, :end], self.all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        self.batch_select_indices(beam_idx)  # under the name that every kind of layer has


def rollout_cache(config: Any, capacity: int) -> DynamicCache:
    """transformers' cache for this model, its plain layers replaced by ones that do not copy as they grow."""
    cache = DynamicCache(config=config)
    cache.layers = [_Buffered(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def make_engine(
    args: PPOConfig, stop_ids: set[int], policy: Any, accelerator: Any, tokenizer: Any, max_length: int
) -> Engine:
    """The engine that the settings name."""
    if args.engine == "hf":
        return HFEngine(stop_ids, args.max_new_tokens, args.temperature, args.generation_batch_size)
    from rlhf.ppo.vllm_engine import VLLMEngine

    if args.engine == "vllm_server":
        settings: dict[str, Any] = {
            "server_base_url": args.vllm_server_base_url,
            "server_timeout": args.vllm_server_timeout,
            "group_port": args.vllm_group_port,
        }
    else:
        settings = {
            "tensor_parallel_size": args.vllm_tensor_parallel_size,
            "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
            "max_model_length": max_length,
            "max_num_seqs": args.generation_batch_size * args.vllm_tensor_parallel_size,
            "enable_sleep_mode": args.vllm_enable_sleep_mode,
            "trust_remote_code": args.trust_remote_code,
        }
    return VLLMEngine(
        args.engine, policy, accelerator, tokenizer, stop_ids, args.max_new_tokens, args.temperature, **settings
    )
