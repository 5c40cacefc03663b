"""dpo: prefers what people prefer, starts at KL 0, logs it, with and without an adapter."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from tests import stages


def _dpo(tmp_path: Path, policy: Path, **values: Any) -> Any:
    settings = {
        **stages.TRAINING,
        "preferences": stages.preferences(tmp_path / "train.jsonl", 16),
        "eval_preferences": stages.preferences(tmp_path / "eval.jsonl", 4, first=16),
        "model_name_or_path": policy,
        "output_dir": tmp_path / "run",
        "max_new_tokens": 8,
        "num_kl_prompts": 4,
        "save_strategy": "no",
        **values,
    }
    return stages.run("dpo", **settings)


@pytest.mark.parametrize("use_peft", [False, True])
def test_it_learns_the_preference_and_logs_kl(tmp_path: Path, policy_folder: Path, use_peft: bool) -> None:
    adapter = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["q_proj", "v_proj", "down_proj"]}
    learning_rate = 1e-2 if use_peft else 3e-3
    run = _dpo(
        tmp_path, policy_folder, num_train_epochs=4, learning_rate=learning_rate, **(adapter if use_peft else {})
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    kls = [row["kl"] for row in rows if "kl" in row]
    assert kls[0] == 0.0  # the policy is its reference at the start, to the bit
    assert kls[-1] == run.metrics["kl"] > 0.001
    assert run.metrics["eval_rewards/accuracies"] == 1.0
    logged = {key for row in rows for key in row}
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= logged


def test_the_first_loss_is_log_two(tmp_path: Path, policy_folder: Path) -> None:
    """-log sigmoid(0): policy and reference agree on every pair before the first step."""
    _dpo(tmp_path, policy_folder, max_steps=1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert next(row["loss"] for row in rows if "loss" in row) == pytest.approx(math.log(2), abs=1e-4)


def test_other_losses_are_trl_s(tmp_path: Path, policy_folder: Path) -> None:
    assert _dpo(tmp_path, policy_folder, loss_type=["ipo"], max_steps=1, num_kl_prompts=0).finished


def test_both_sides_share_one_prompt_and_end_with_eos(policy_folder: Path, tmp_path: Path) -> None:
    from rlhf.data.encode import Encoder
    from rlhf.dpo import tokenize
    from rlhf.models import load_tokenizer
    from rlhf.records import Preference, read_jsonl

    tokenizer = load_tokenizer(str(policy_folder))
    rows = read_jsonl(stages.preferences(tmp_path / "p.jsonl"), Preference)
    dataset, cut = tokenize(rows, Encoder(tokenizer), 128, "p.jsonl")
    assert cut.num_examples == len(dataset) == 8
    for row, tokens in zip(rows, dataset, strict=True):
        assert tokenizer.decode(tokens["prompt_ids"]).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(tokens["chosen_ids"]) == row.chosen[0]["content"] + "<|im_end|>"
        assert tokenizer.decode(tokens["rejected_ids"]) == row.rejected[0]["content"] + "<|im_end|>"


def test_a_prompt_in_both_files_is_an_error(tmp_path: Path, policy_folder: Path) -> None:
    same = stages.preferences(tmp_path / "same.jsonl", 4)
    with pytest.raises(UserError, match=r"a prompt in two splits: .*same\.jsonl"):
        _dpo(tmp_path, policy_folder, eval_preferences=same)
    assert not (tmp_path / "run").exists()


def test_a_context_too_short_for_anything_is_an_error(tmp_path: Path, policy_folder: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl: no example fits max_length 1"):
        _dpo(tmp_path, policy_folder, max_length=1)
    assert not (tmp_path / "run").exists()
