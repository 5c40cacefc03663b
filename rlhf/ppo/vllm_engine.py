"""Rollouts with vLLM, through TRL's VLLMGeneration: on a server of its own, or on the training GPUs (colocate).

Run without vLLM, so far: tests/test_ppo_vllm_engine.py holds TRL's side of it by signature and source.
"""

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rlhf.errors import UserError

MODES = {"vllm_server": "server", "vllm_colocate": "colocate"}
SERVE = (
    """VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' """
    "--logprobs-mode processed_logprobs"
)
# As many as TRL's client keeps connections open for.
_MAX_REQUESTS = 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class VLLMEngine:
    """Decodes with vLLM, which holds weights of its own: they are sent anew wherever the policy's have changed.

    vLLM's arithmetic is not the trainer's, so `logps` has the log-probabilities that it sampled with,
    divided by the temperature as the trainer's are, and the losses weigh by the ratio of the two. Each
    reply has a seed of its own, from its own uniform numbers: one seed for a whole round would draw
    every reply with the same noise. How vLLM batches still moves the last bits, so a round is
    repeatable in principle, not bit by bit.

    `generate` is called on every rank at once, with as many prompts on each. It must not be called
    where the policy is gathered already (ZeRO-3 gathers once): VLLMGeneration gathers by itself.

    Args:
        engine: `vllm_server` or `vllm_colocate`.
        policy: the causal language model to train, a PEFT one included, not what it is wrapped in: its
            own parameter names are what vLLM knows.
        accelerator: the trainer's.
        tokenizer: the policy's.
        stop_ids: the tokens that end a reply; vLLM's own are off.
        max_new_tokens: longest reply.
        temperature: of sampling.
        settings: VLLMGeneration's own: `server_base_url`, `server_timeout`, `group_port`,
            `tensor_parallel_size`, `gpu_memory_utilization`, `max_model_length`, `max_num_seqs`,
            `enable_sleep_mode`, `trust_remote_code`.

    Raises UserError where vLLM is not installed, does not start or answer, or cannot have these weights.
    """

    notes: list[Tensor] | None = None
    own_weights = True  # generate before the policy is gathered for the trainer's forward passes

    def __init__(
        self,
        engine: str,
        policy: Any,
        accelerator: Any,
        tokenizer: Any,
        stop_ids: set[int],
        max_new_tokens: int,
        temperature: float,
        **settings: Any,
    ) -> None:
        require_vllm(engine)
        self.engine = engine
        self.policy = policy
        self.accelerator = accelerator
        self.logps: list[list[float]] | None = None
        self.tensor_parallel = settings.get("tensor_parallel_size", 1)
        self._check(settings)
        self._sent: list[int] | None = None  # fingerprint of the weights that vLLM has
        self._seeds: list[int] = []  # of the prompts that this process hands to vLLM
        self.vllm = self._start(
            processing_class=tokenizer,
            max_completion_length=max_new_tokens,
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            logprobs=0,  # the sampled token's alone
            # Ours alone: an end that the trainer does not know would count as an unfinished reply.
            generation_kwargs={"stop_token_ids": sorted(stop_ids), "ignore_eos": True},
            **settings,
        )
        if engine == "vllm_colocate":
            self._seed_model(self.vllm.llm)
        elif accelerator.is_main_process:
            _check_logprobs(self.vllm.vllm_client, temperature)
            self._seed_client(self.vllm.vllm_client)

    @torch.no_grad()
    def generate(self, policy: Any, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        """See Engine; vLLM takes no uniform numbers, only a seed made of each row's first two."""
        if policy is not self.policy:
            raise ValueError("VLLMEngine decodes with the policy it was made for")
        self._send_weights()
        self._seeds = self._gathered_seeds(uniforms)
        _, replies, logps, tokens = self.vllm.generate(prompts=prompts, images=None, num_generations=1)
        if logps is None or tokens is None:
            raise UserError(f"engine: {self.engine} gave no log-probabilities; start vLLM as `{SERVE}`")
        self.logps = [_sampled(*row) for row in zip(replies, logps, tokens, strict=True)]
        return [list(reply) for reply in replies]

    def _check(self, settings: dict[str, Any]) -> None:
        """Raise UserError for what VLLMGeneration would fail at late, or get wrong without a word."""
        if getattr(self.accelerator.state, "fsdp_plugin", None) is not None:
            # The weights that FSDP's outermost wrapper holds are not the policy's: they would not be sent.
            raise UserError(f"engine: {self.engine} cannot read FSDP's weights; use DeepSpeed, or set --engine hf")
        if self.engine != "vllm_colocate":
            return
        if not self.policy.name_or_path:
            raise UserError(
                "engine: vllm_colocate starts from the policy's folder or Hub id, and this one has none; give `model` "
                "as a path, or set --engine hf"
            )
        if self.accelerator.num_processes % self.tensor_parallel:
            raise UserError(
                f"vllm_tensor_parallel_size: {self.tensor_parallel} does not divide the "
                f"{self.accelerator.num_processes} processes; set --vllm_tensor_parallel_size 1"
            )

    def _start(self, **settings: Any) -> Any:
        from trl.generation.vllm_generation import VLLMGeneration

        try:
            return VLLMGeneration(model=self.policy, accelerator=self.accelerator, mode=MODES[self.engine], **settings)
        except (OSError, RuntimeError) as error:  # not reached, no CUDA, no weight transfer, no development mode
            if self.engine != "vllm_server":
                raise
            raise UserError(
                f"engine: vllm_server: {error}; start it as `{SERVE}`, and set --vllm_server_base_url"
            ) from error
        except ValueError as error:  # mostly: no room beside the trainer
            if self.engine != "vllm_colocate":
                raise
            raise UserError(
                f"engine: vllm_colocate does not start: {error}; set --vllm_gpu_memory_utilization to what the "
                "trainer leaves free"
            ) from error

    # ---- Weights

    def _send_weights(self) -> None:
        """Give vLLM the policy's weights where they are not those it has."""
        now = fingerprint(self.policy)
        if now is not None and now == self._sent:
            return
        with unmoved(self.policy):
            self.vllm.sync_weights()
        self._sent = now

    # ---- Seeds

    def _gathered_seeds(self, uniforms: Tensor) -> list[int]:
        """Those of the prompts that vLLM gets from this process: its own, its group's, or (server) all."""
        mine = seeds(uniforms)
        everyones: list[int] = gather_object(mine)
        if self.engine == "vllm_server":
            return everyones
        group = self.accelerator.process_index // self.tensor_parallel
        size = len(mine) * self.tensor_parallel
        return everyones[group * size : (group + 1) * size]

    def _seed_model(self, llm: Any) -> None:
        """VLLMGeneration has one setting for all prompts; vLLM takes one a prompt."""
        generate = llm.generate

        def seeded(prompts: list[Any], sampling_params: Any, **kwargs: Any) -> Any:
            each = [copy.deepcopy(sampling_params) for _ in prompts]
            for params, seed in zip(each, self._seeds, strict=True):
                params.seed = seed
            return generate(prompts, sampling_params=each, **kwargs)

        llm.generate = seeded

    def _seed_client(self, client: Any) -> None:
        """A request to the server has one seed for all its prompts: so each prompt becomes a request."""
        generate = client.generate

        def seeded(prompts: list[Any], generation_kwargs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            def ask(prompt: Any, seed: int) -> dict[str, Any]:
                return generate(prompts=[prompt], generation_kwargs={**generation_kwargs, "seed": seed}, **kwargs)

            with ThreadPoolExecutor(min(_MAX_REQUESTS, len(prompts))) as pool:
                answers = list(pool.map(ask, prompts, self._seeds))
            return {key: _joined([answer[key] for answer in answers]) for key in answers[0]}

        client.generate = seeded


def require_vllm(engine: str) -> None:
    """Raise UserError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(f"engine: {engine} needs vllm (pip install 'rlhf[vllm]'); set --engine hf")


def seeds(uniforms: Tensor) -> list[int]:
    """A seed a row, of its first two numbers' 24 bits each; `(prompts, max_new_tokens)` -> below 2**48."""
    numbers = (uniforms[:, :2].double() * 2**24).long()
    return [sum(number << (24 * at) for at, number in enumerate(row)) for row in numbers.tolist()]


def fingerprint(policy: Any) -> list[int] | None:
    """A number for each weight that is trained: the sum of its bits. None where they are cut up by ZeRO-3.

    Weights change by more than optimizer steps (a checkpoint, an average), so steps are not counted.
    One changed matrix may keep its sum by chance; that all of a model's do is out of the question.
    """
    parameters = list(policy.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return None
    trained = [p.detach().contiguous() for p in parameters if p.requires_grad]
    sums = [weight.view(_BITS[weight.element_size()]).sum(dtype=torch.int64) for weight in trained]
    return torch.stack(sums).tolist() if sums else []


@contextmanager
def unmoved(policy: Any) -> Iterator[None]:
    """Give the weights under a LoRA back as they were.

    VLLMGeneration merges the adapter into them and takes it out again, and each time they are
    rounded: over a run they would wander off, and the reference, which is the same weights, with them.
    ZeRO-3 throws the merged weights away by itself. The copy lies in host memory, for vLLM leaves the
    device little.
    """
    saved = []
    if hasattr(policy, "peft_config"):
        for name, parameter in policy.named_parameters():
            if ".base_layer." in name and parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
                saved.append((parameter, parameter.detach().to("cpu", copy=True)))
    try:
        yield
    finally:
        for parameter, before in saved:
            parameter.data.copy_(before)


def _check_logprobs(client: Any, temperature: float) -> None:
    """The server must report what it samples with; before the temperature they are the same at 1 alone."""
    mode = client.get_server_info()["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs" and not (mode == "raw_logprobs" and temperature == 1):
        raise UserError(
            f"engine: the vLLM server reports {mode}, not what it samples with at temperature {temperature:g}; "
            "start it with --logprobs-mode processed_logprobs"
        )


def _joined(parts: list[list[Any] | None]) -> list[Any] | None:
    """The answers to single prompts as one; None where the server left a part out."""
    return None if any(part is None for part in parts) else [row for part in parts for row in part or []]


def _sampled(reply: list[int], logps: list[list[float | None]], tokens: list[list[int]]) -> list[float]:
    """The sampled tokens' own log-probabilities, one a token.

    TRL's None, for vLLM's NaN, becomes NaN again: the update sees it, skips and counts it.
    """
    if not len(reply):
        raise UserError("engine: vLLM gave a reply without a token; is its --max-model-len above the longest prompt?")
    found = []
    for token, values, ids in zip(reply, logps, tokens, strict=True):
        value = values[ids.index(token)]
        found.append(math.nan if value is None else value)
    return found
