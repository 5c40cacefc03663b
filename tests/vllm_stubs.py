"""Stubs for vLLM, which needs a GPU and cannot be installed where the tests run.

What TRL imports from vLLM (`LLM`, `SamplingParams`) and the wire to its server are stubs here, which
take and return what TRL's source hands them and reads: everything between our trainer and vLLM is the
code that users run. What vLLM itself does with it is not tested.
"""

import os
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from rlhf.ppo import vllm_engine
from rlhf.ppo.vllm_engine import VLLMEngine

PROMPTS = [[5, 3, 9], [40, 7], [5, 3, 9], [6]]  # the first is there twice
STOPS = {7, 20}
UNIFORMS = torch.rand(len(PROMPTS), 6, generator=torch.Generator().manual_seed(3))
SERVER = {"server_base_url": "http://localhost:8000", "server_timeout": 1.0, "group_port": 51216}
COLOCATE = {
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.3,
    "max_model_length": 32,
    "max_num_seqs": 8,
    "enable_sleep_mode": False,
    "trust_remote_code": False,
}
MODES = {"vllm_server": SERVER, "vllm_colocate": COLOCATE}
both = pytest.mark.parametrize("mode", MODES)


def reply_of(prompt: list[int], seed: int, stops: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
    """What the stubs sample: tokens that seed and prompt decide, up to a stop; logp of token t is -t/100."""
    generator = torch.Generator().manual_seed(seed + sum(prompt))
    drawn = torch.randint(0, 30, (max_tokens,), generator=generator).tolist()
    end = next((at + 1 for at, token in enumerate(drawn) if token in stops), max_tokens)
    return drawn[:end], [-token / 100 for token in drawn[:end]]


@dataclass
class SamplingParams:
    """Stub of vllm.SamplingParams: the fields that are set; an unknown one is a TypeError."""

    n: int
    repetition_penalty: float
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    logprobs: int | None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    seed: int | None = None


class LLM:
    """Stub of vllm.LLM: keeps the weights it is given and says what `reply_of` says."""

    def __init__(self, **settings: Any) -> None:
        if settings["gpu_memory_utilization"] > 0.95:
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        self.settings, self.weights, self.asked, self.events = settings, {}, [], []
        runner = SimpleNamespace(model=self)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=executor)

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        self.weights |= {name: weight.clone() for name, weight in weights}

    def reset_prefix_cache(self) -> None:
        self.events.append("synced")

    def sleep(self, level: int) -> None:
        self.events.append("asleep")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"awake {tags[0]}")

    def generate(self, prompts: list[Any], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        self.asked += params
        outputs = []
        for prompt, each in zip(prompts, params, strict=True):
            ids = prompt["prompt_token_ids"]
            tokens, logps = reply_of(ids, each.seed, each.stop_token_ids, each.max_tokens)
            figures = [{t: SimpleNamespace(logprob=p, rank=1)} for t, p in zip(tokens, logps, strict=True)]
            outputs.append(
                SimpleNamespace(
                    prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=figures)]
                )
            )
        return outputs


class Client(VLLMClient):
    """TRL's client with a stub for the wire: answers as /v1/completions does. Its `generate` is TRL's own."""

    logprobs_mode = "processed_logprobs"
    refuses: Exception | None = None

    def __init__(self, base_url: str, group_port: int, connection_timeout: float) -> None:
        if self.refuses:
            raise self.refuses
        self.base_url, self.group_port, self.timeout = base_url, group_port, connection_timeout
        self.model, self.weights, self.asked, self.events = "tiny", {}, [], []
        self.lock = threading.Lock()

    def init_communicator(self, device: Any = 0) -> None:
        self.events.append("joined")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": self.logprobs_mode}}

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        found = {name: weight.clone() for name, weight in named_params}
        announced = [(name, str(w.dtype).removeprefix("torch."), list(w.shape)) for name, w in found.items()]
        assert announced == metadata
        self.weights |= found

    def reset_prefix_cache(self) -> None:
        self.events.append("synced")

    def _post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        assert url == f"{self.base_url}/v1/completions"
        request, choices = kwargs["json"], []
        with self.lock:
            self.asked.append(request)
        for prompt in request["prompt"]:
            tokens, logps = reply_of(prompt, request["seed"], request["stop_token_ids"], request["max_tokens"])
            names = [f"token_id:{token}" for token in tokens]
            figures = {"tokens": names, "token_logprobs": logps, "top_logprobs": [None] * len(names)}
            choices.append({"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": figures})
        return {"choices": choices}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stubs where TRL looks for vLLM; the environment is afterwards what it was."""
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", Client)
    monkeypatch.setattr(vllm_generation, "empty_cache", lambda: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())


def named(policy: Any) -> Any:
    """The policy as if it had been loaded from a folder."""
    policy.name_or_path = policy.config.name_or_path = "runs/sft"
    return policy


def engine(mode: str, policy: Any, temperature: float = 0.9, **settings: Any) -> VLLMEngine:
    settings = MODES[mode] | settings
    return VLLMEngine(mode, policy, Accelerator(cpu=True), None, STOPS, 6, temperature, **settings)


def behind(engine: VLLMEngine) -> Any:
    """The stub that this engine talks to."""
    return engine.vllm.llm if engine.engine == "vllm_colocate" else engine.vllm.vllm_client
