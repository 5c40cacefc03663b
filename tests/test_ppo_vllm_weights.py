"""The weights that vLLM gets: the policy's under its own names, adapters merged, whenever they changed."""

from typing import Any

import pytest
import torch

from rlhf.ppo.networks import PolicyAndValue
from rlhf.ppo.vllm_engine import fingerprint, unmoved
from tests.architectures import lora, tiny
from tests.vllm_stubs import PROMPTS, UNIFORMS, behind, both, engine, install, named


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.fixture
def policy() -> Any:
    return named(tiny("llama"))


@both
def test_vllm_gets_the_policys_weights_under_its_own_names(mode: str, policy: Any) -> None:
    networks = PolicyAndValue(policy, "shared")
    rollout = engine(mode, networks.policy)
    rollout.generate(networks.policy, PROMPTS, UNIFORMS)
    weights = behind(rollout).weights
    assert list(weights) == [name for name, _ in tiny("llama").named_parameters()]  # no `policy.`, no value head
    assert all(torch.equal(weights[name], weight) for name, weight in policy.named_parameters())


@both
@pytest.mark.parametrize("with_value", [False, True])
def test_of_a_lora_policy_vllm_gets_the_weights_with_its_adapter_merged(mode: str, with_value: bool) -> None:
    plain = named(tiny("llama"))
    names = [name for name, _ in plain.named_parameters()]
    model = lora(plain, with_value)
    rollout = engine(mode, model)
    rollout.generate(model, PROMPTS, UNIFORMS)
    weights = behind(rollout).weights
    assert list(weights) == names
    layer = model.get_base_model().model.layers[1].self_attn.v_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight + layer.scaling["default"] * up @ down  # the value's adapter is not in it
    torch.testing.assert_close(weights["model.layers.1.self_attn.v_proj.weight"], wanted)
    assert not layer.merged and model.active_adapter == "default"


def test_merging_moves_the_weights_under_a_lora_and_they_are_given_back() -> None:
    model = lora(tiny("llama")).to(torch.bfloat16)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    before = layer.weight.detach().clone()

    def merge() -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    with unmoved(model):
        merge()
        assert not torch.equal(layer.weight, before)  # else there were nothing to give back
    assert torch.equal(layer.weight, before)
    with pytest.raises(RuntimeError), unmoved(model):
        merge()
        raise RuntimeError
    assert torch.equal(layer.weight, before)


@both
def test_training_a_lora_leaves_the_weights_under_it_as_they_were(mode: str) -> None:
    model = named(lora(named(tiny("llama"))).to(torch.bfloat16))
    before = {name: weight.clone() for name, weight in model.named_parameters() if "lora_" not in name}
    rollout = engine(mode, model)
    for _ in range(3):
        rollout.generate(model, PROMPTS, UNIFORMS)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.add_(0.1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)
    assert behind(rollout).events.count("synced") == 3


@both
def test_weights_are_sent_where_they_changed_and_only_there(mode: str, policy: Any) -> None:
    rollout = engine(mode, policy)

    def num_sent() -> int:
        rollout.generate(policy, PROMPTS, UNIFORMS)
        return behind(rollout).events.count("synced")

    assert num_sent() == 1  # the first time, whatever vLLM was started with
    assert num_sent() == 1
    with torch.no_grad():
        policy.model.norm.weight[3] += 2**-20
    assert num_sent() == 2
    policy.load_state_dict(tiny("llama").state_dict())  # as a resumed run or an average does, at no step
    assert num_sent() == 3
    assert num_sent() == 3
    assert torch.equal(behind(rollout).weights["model.norm.weight"], policy.model.norm.weight)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (torch.float32, torch.int32),
        (torch.bfloat16, torch.int16),
        (torch.float16, torch.int16),
        (torch.float64, torch.int64),
    ],
)
def test_the_smallest_change_changes_the_fingerprint(dtype: torch.dtype, bits: torch.dtype) -> None:
    model = torch.nn.Linear(8, 4).to(dtype)
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.weight.detach().view(bits)[1, 5] += 1  # the last bit
    assert fingerprint(model) != before


def test_frozen_weights_are_not_looked_at_and_one_sign_counts() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    before = fingerprint(model)
    with torch.no_grad():
        model.bias.add_(1.0)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.weight[0, 1] *= -1
    assert fingerprint(model) != before


def test_sharded_weights_are_sent_each_time() -> None:
    """ZeRO-3 may hold a weight's shard elsewhere: there is nothing to compare."""
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 0  # type: ignore[assignment]
    assert fingerprint(model) is None


def test_an_engine_that_sleeps_gets_its_weights_again_before_it_speaks(policy: Any) -> None:
    rollout = engine("vllm_colocate", policy, enable_sleep_mode=True)
    rollout.generate(policy, PROMPTS, UNIFORMS)
    rollout.generate(policy, PROMPTS, UNIFORMS)
    round_ = ["awake weights", "synced", "awake kv_cache", "asleep"]
    assert behind(rollout).events == ["asleep", *round_, *round_]


def test_no_gradients_are_kept(policy: Any) -> None:
    rollout = engine("vllm_colocate", policy)
    rollout.generate(policy, PROMPTS, UNIFORMS)
    assert all(weight.grad is None for weight in policy.parameters())
    assert not any(weight.requires_grad for weight in behind(rollout).weights.values())
