"""What goes wrong in PPO is said in one line: settings, data, rewards that fail, steps that blow up."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.ppo import PPOConfig
from tests import ppo_cases as cases


def test_a_failing_reward_is_named_and_leaves_a_checkpoint(policy_folder: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def fragile(completions: list[Any], **_: Any) -> list[float]:
        calls.append(1)
        return [math.nan if len(calls) > 2 else 0.0] * len(completions)

    trainer = cases.trainer(policy_folder, tmp_path, fragile, save_strategy="steps", save_steps=100)
    with pytest.raises(UserError, match="reward `fragile`: returned nan for 8 of 8"):
        trainer.train()
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2


def test_a_hanging_reward_is_named(policy_folder: Path, tmp_path: Path) -> None:
    def stuck(**_: Any) -> list[float]:
        threading.Event().wait()
        return []

    with pytest.raises(UserError, match="stuck"):
        cases.trainer(policy_folder, tmp_path, stuck, reward_timeout=0.2).train()


def test_a_nan_skips_the_step_and_three_in_a_row_end_the_run(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=2)
    before = cases.weights(trainer)
    inner, calls = trainer._loss, list[int]()

    def poisoned(*args: Any) -> Any:
        loss, sums, moved = inner(*args)
        calls.append(1)
        return (loss * math.nan, sums * math.nan, moved) if len(calls) == 1 else (loss, sums, moved)

    trainer._loss = poisoned  # type: ignore[method-assign]
    trainer.train()
    assert [row["updates_skipped"] for row in cases.log(trainer)] == [1.0, 0.0]
    assert all(torch.isfinite(weight).all() for weight in cases.weights(trainer).values())
    assert not torch.equal(before["policy.model.norm.weight"], cases.weights(trainer)["policy.model.norm.weight"])

    trainer = cases.trainer(policy_folder, tmp_path, max_steps=2)
    inner = trainer._loss
    trainer._loss = lambda *args: tuple(x * math.nan for x in inner(*args))  # type: ignore[method-assign,misc]
    before = cases.weights(trainer)
    with pytest.raises(
        UserError, match=r"step 1: 3 updates in a row held a NaN and were skipped; lower --learning_rate"
    ):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in cases.weights(trainer).items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": cases.prompts(4)}, "train_dataset: has 4 prompts and a round takes 8"),
        ({"rows": [{"question": "a"}] * 8}, "train_dataset: has no column `prompt`; there are: question"),
        ({"max_new_tokens": 256}, "max_new_tokens: 256 leaves no room for a prompt in a context of 256"),
        ({"value_model_kind": "adapter"}, "value_model_kind: adapter needs LoRA"),
        ({"reference": "adapter_off"}, "reference: adapter_off needs LoRA"),
        ({"ptx_coef": 1.0}, "ptx_coef: needs demonstrations to mix in"),
        ({"guard_steps": 1}, "guard_steps: needs a gold to ask"),
        ({"guard_steps": 1, "gold_func": cases.count_e}, "guard_steps: needs held-out prompts"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights"),
        ({"peft_config": cases.lora(), "reference": "copy"}, "reference: copy of a LoRA policy needs ref_model"),
        ({"peft_config": cases.lora(), "ref_ema_decay": 0.5}, "ref_ema_decay: needs a reference with weights"),
        (
            {"peft_config": cases.lora(), "ref_ema_decay": 0.5, "ref_model": "x", "reference": "copy"},
            "a LoRA policy has not",
        ),
        ({"engine": "vllm_colocate"}, r"engine: vllm_colocate needs vllm \(pip install"),
        ({"value_model_kind": "shared", "value_model": "x"}, "value_model: shared has none of its own"),
    ],
)
def test_what_does_not_fit_is_said(policy_folder: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cases.trainer(policy_folder, tmp_path, **values)


def test_an_empty_prompt_is_said(policy_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt_ids": [5]}] * 7 + [{"prompt_ids": []}]
    with pytest.raises(UserError, match="train_dataset: a prompt is empty"):
        cases.trainer(policy_folder, tmp_path, rows=rows).train()


def test_an_architecture_that_means_something_else_is_said(policy_folder: Path, tmp_path: Path) -> None:
    """Logits scaled behind our back, and an engine that decodes something else."""
    trainer = cases.trainer(policy_folder, tmp_path)
    inner = trainer.model.policy.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        output.logits = output.logits * 5
        return output

    trainer.model.policy.forward = scaled
    with pytest.raises(UserError, match="LlamaForCausalLM makes its logits in a way that PPO does not know"):
        trainer.train()
    trainer = cases.trainer(policy_folder, tmp_path)
    generate = trainer.engine.generate
    trainer.engine.generate = lambda policy, prompts, uniforms: generate(policy, prompts, 1 - uniforms)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="does not decode prompts of unlike length together as it does each alone"):
        trainer.train()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kl_estimator", "k2", "kl_estimator: `k2` is not one of k1, k3"),
        ("value_model_kind", "both", "value_model_kind: `both` is not one of separate, shared, adapter"),
        ("temperature", 0, "temperature: 0 is not above 0"),
        ("kl_target", 0.0, "kl_target: 0.0 is not above 0"),
        ("lam", 1.5, "lam: 1.5 is not between 0 and 1"),
        ("kl_coef", -1.0, "kl_coef: -1.0 is below 0"),
        ("ema_decay", 1.0, "ema_decay: 1.0 is not between 0 and 1"),
        ("old_logps", "engine", "old_logps: `engine` is not one of forward, rollout"),
        ("dual_clip", 1.0, "dual_clip: 1.0 is not above 1"),
        ("gradient_accumulation_steps", 2, "gradient_accumulation_steps: is 1 in PPO"),
        ("num_mini_batches", 9, "num_mini_batches: 9 of 8 episodes leaves some empty"),
    ],
)
def test_settings_out_of_range_are_said(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PPOConfig(output_dir=str(tmp_path), **{**cases.SETTINGS, key: value})


def test_what_another_engine_drew_by_is_not_taken_as_it_is(tmp_path: Path) -> None:
    settings = {**cases.SETTINGS, "old_logps": "rollout", "engine": "vllm_server"}
    with pytest.raises(UserError, match="old_logps: rollout takes engine hf; what vllm_server drew by is corrected"):
        PPOConfig(output_dir=str(tmp_path), **settings)
