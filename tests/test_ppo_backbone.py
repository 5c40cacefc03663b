"""A reward model that is a LoRA on the policy's base: the same scores, no second copy of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf.models import load_causal, load_classifier, load_tokenizer
from rlhf.ppo.backbone import BackboneClassifier, on_backbone
from rlhf.scoring import RewardModel, load_reward_model
from tests import ppo_cases as cases
from tests.reward_cases import PROMPTS, TEXTS


def _save_adapter(base: Path, folder: Path, own_pad: bool = False, **settings: Any) -> Path:
    """A LoRA classifier on the base with weights that are not 0, saved as a reward run saves it."""
    tokenizer = load_tokenizer(str(base))
    if own_pad:
        tokenizer.pad_token = tokenizer.eos_token  # so that the classifier gets one more row
    model = load_classifier(str(base), tokenizer)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", lora_dropout=0.5, **settings)
    model = get_peft_model(model, config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _policy(base: Path) -> Any:
    return get_peft_model(load_causal(str(base)), cases.lora())


@pytest.mark.parametrize("own_pad", [False, True])
def test_scores_as_with_weights_of_its_own(policy_folder: Path, tmp_path: Path, own_pad: bool) -> None:
    folder = _save_adapter(policy_folder, tmp_path / "reward", own_pad)
    shared = on_backbone(_policy(policy_folder), str(folder), None, 2)
    assert isinstance(shared, RewardModel) and isinstance(shared.model, BackboneClassifier)
    apart = load_reward_model(str(folder))
    assert len(set(apart(PROMPTS, TEXTS))) == 3
    assert shared(PROMPTS, TEXTS) == pytest.approx(apart(PROMPTS, TEXTS), abs=1e-5)


def test_the_policy_trains_and_saves_as_without_it(policy_folder: Path, tmp_path: Path) -> None:
    folder = _save_adapter(policy_folder, tmp_path / "reward")
    ends = []
    for name, reward in (("shared", str(folder)), ("apart", (_merged(folder), load_tokenizer(str(folder))))):
        trainer = cases.trainer(
            policy_folder, tmp_path / name, reward, peft_config=cases.lora(), value_model_kind="adapter"
        )
        trainer.train()
        trainer.save_model(str(tmp_path / name))
        trained = {key for key, weight in trainer.model.named_parameters() if weight.requires_grad}
        assert trained and not any(".reward" in key for key in trained)
        ends.append({key: weight for key, weight in cases.weights(trainer).items() if ".reward" not in key})
        assert sorted(path.name for path in (tmp_path / name).iterdir() if path.is_dir()) == ["value"]
    assert ends[0].keys() == ends[1].keys()
    for key, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][key], msg=key)


def _merged(folder: Path) -> Any:
    return load_classifier(str(folder), load_tokenizer(str(folder)))


def test_what_cannot_be_shared_is_loaded_apart(policy_folder: Path, tmp_path: Path) -> None:
    folder = _save_adapter(policy_folder, tmp_path / "reward")
    assert on_backbone(load_causal(str(policy_folder)), str(folder), None, 2) is None  # a policy without LoRA
    elsewhere = _policy(policy_folder)
    elsewhere.peft_config["default"].base_model_name_or_path = "another/base"
    assert on_backbone(elsewhere, str(folder), None, 2) is None
    other_layers = _save_adapter(policy_folder, tmp_path / "norms", modules_to_save=["norm"])
    policy = _policy(policy_folder)
    assert on_backbone(policy, str(other_layers), None, 2) is None
    assert list(policy.peft_config) == ["default"]  # nothing of it is left in the policy


def test_two_of_them_keep_apart(policy_folder: Path, tmp_path: Path) -> None:
    first = _save_adapter(policy_folder, tmp_path / "first")
    second = _save_adapter(policy_folder, tmp_path / "second", lora_alpha=32)
    trainer = cases.trainer(policy_folder, tmp_path / "run", [str(first), str(second)], peft_config=cases.lora())
    for reward, folder in zip(trainer.rewards, (first, second), strict=True):
        expected = load_reward_model(str(folder))(PROMPTS, TEXTS)
        assert reward.function(prompts=PROMPTS, completions=TEXTS) == pytest.approx(expected, abs=1e-5)
