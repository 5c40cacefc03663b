"""The engine that the settings name. How it decodes: test_decoding.py; vLLM's: test_ppo_vllm_engine.py."""

from dataclasses import replace
from typing import Any

import torch

from rlhf.decoding import decode
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.engines import make_engine
from rlhf.ppo.networks import PolicyAndValue
from tests.architectures import tiny


def test_the_settings_reach_the_engine(tmp_path: Any) -> None:
    args = PPOConfig(output_dir=str(tmp_path), temperature=0.5, generation_batch_size=2, use_cpu=True, bf16=False)
    policy, prompts, uniforms, stops = tiny("llama"), [[5, 3, 9], [40, 7], [6]], torch.rand(3, 4), {1, 7}
    networks = PolicyAndValue(policy, "shared")
    made = make_engine(args, stops, networks, None, None, 64)
    assert made.logps is None
    found = made.generate(policy, prompts, uniforms)
    assert found == decode(policy, prompts, uniforms, stops, 0.5, 2) != decode(policy, prompts, uniforms, stops, 1.0, 2)
    assert made.notes is None
    noting = make_engine(replace(args, old_logps="rollout"), stops, networks, None, None, 64)
    assert noting.generate(policy, prompts, uniforms) == found and noting.notes is not None
    assert [tuple(noted.shape) for noted in noting.notes] == [(len(ids), 3) for ids in found]
