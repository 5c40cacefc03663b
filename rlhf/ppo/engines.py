"""Rollout engines: prompts as ids in, replies as ids out, the same for the same uniform numbers."""

from typing import Any, Protocol

from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rlhf.decoding import Note, decode_noted
from rlhf.ppo.config import PPOConfig


class Engine(Protocol):
    """What a rollout engine is."""

    logps: list[list[float]] | None  # of the last replies' tokens, where the engine is not the trained model itself
    notes: list[Tensor] | None  # of the last replies' tokens, what the trained model itself gave: PolicyAndValue.note
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
    """Decodes with the policy as it stands in the trainer, and keeps what `note` makes of it; see rlhf/decoding.py."""

    logps: list[list[float]] | None = None
    notes: list[Tensor] | None = None
    own_weights = False

    def __init__(
        self, stop_ids: set[int], temperature: float, batch_size: int, graphs: bool = True, note: Note | None = None
    ) -> None:
        self.stop_ids = stop_ids
        self.temperature = temperature
        self.batch_size = batch_size
        self.graphs = graphs
        self.note = note

    def generate(self, policy: Any, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        """See Engine."""
        replies, notes = decode_noted(
            policy, prompts, uniforms, self.stop_ids, self.temperature, self.batch_size, self.graphs, self.note
        )
        self.notes = notes if self.note is not None else None
        return replies


def make_engine(
    args: PPOConfig, stop_ids: set[int], networks: Any, accelerator: Any, tokenizer: Any, max_length: int
) -> Engine:
    """The engine that the settings name, for a PolicyAndValue."""
    if args.engine == "hf":
        note = networks.note(args.temperature) if args.old_logps == "rollout" else None
        return HFEngine(stop_ids, args.temperature, args.generation_batch_size, _can_record(args), note)
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
        args.engine,
        networks.policy,
        accelerator,
        tokenizer,
        stop_ids,
        args.max_new_tokens,
        args.temperature,
        **settings,
    )


def _can_record(args: PPOConfig) -> bool:
    """Not under ZeRO-3: its weights are moved about by hooks, and a graph remembers where they were."""
    return args.decode_graphs and not is_deepspeed_zero3_enabled()
