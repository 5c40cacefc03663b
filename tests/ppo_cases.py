"""A tiny PPO run that many tests share: a random model, a reward that counts a letter."""

from pathlib import Path
from typing import Any

import torch

from rlhf.models import load_causal, load_tokenizer
from rlhf.ppo import PPOConfig, PPOTrainer

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "max_new_tokens": 8,
    "max_steps": 3,
    "learning_rate": 3e-3,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "kl_coef": 0.01,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
}


def count_e(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """How many times the letter e is in each reply."""
    return [float(completion[0]["content"].count("e")) for completion in completions]


def count_e_in_texts(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """The same, as this project's stages name reward functions."""
    return [float(response.count("e")) for response in responses]


def prompts(count: int = 32) -> list[dict[str, Any]]:
    """Conversations of one turn and different lengths, with a column beside them."""
    return [{"prompt": [{"role": "user", "content": f"Hello {n}" + " please" * (n % 5)}], "n": n} for n in range(count)]


def denormals_are_zero() -> bool:
    """Whether every thread that computes for this one takes numbers under 1e-38 for 0; a mix fails."""
    halves = torch.full((2**21,), 1e-38) * 0.01  # enough for all threads
    assert halves.any() == halves.all()
    return not bool(halves.any())


def lora(rank: int = 4) -> Any:
    """An adapter on every linear layer."""
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer(policy: Path, output_dir: Path, reward: Any = count_e, **values: Any) -> PPOTrainer:
    """A PPOTrainer on the tiny policy; `values` are PPOConfig's keys or PPOTrainer's arguments."""
    ours = {"eval_dataset", "ref_model", "value_model", "peft_config", "callbacks", "gold_func", "sft_dataset"}
    given = {key: values.pop(key) for key in list(values) if key in ours}
    rows = values.pop("rows", prompts())
    model = values.pop("model", None) or load_causal(str(policy))
    args = PPOConfig(output_dir=str(output_dir), **{**SETTINGS, **values})
    return PPOTrainer(model, reward, args, rows, processing_class=load_tokenizer(str(policy)), **given)


def log(trainer: PPOTrainer) -> list[dict[str, Any]]:
    """The rows of training rounds."""
    return [row for row in trainer.state.log_history if "ratio/first_deviation" in row]


def weights(trainer: PPOTrainer) -> dict[str, Any]:
    """Every weight of policy and value model."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


FAIL_AT: list[int] = []  # [n]: `fails_once` raises at its n-th call


def fails_once(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """Counts the letter e, but fails at the call that FAIL_AT names."""
    if FAIL_AT:
        FAIL_AT[0] -= 1
    if FAIL_AT == [0]:
        raise RuntimeError("the scorer fell over")
    return count_e_in_texts(prompts, responses)


def hates_e(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """The opposite of the reward."""
    return [-score for score in count_e_in_texts(prompts, responses)]
