"""What we rely on in TRL beyond its documented interface; a new minor version must keep it."""

import inspect
from pathlib import Path

from trl import DPOTrainer, RewardTrainer, SFTTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.reward_trainer import suppress_seqcls_warning


def _takes(function: object, *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_dpo_prepares_its_data_in_one_method_that_we_override() -> None:
    assert _takes(DPOTrainer._prepare_dataset, "dataset", "processing_class", "args", "dataset_name")
    source = inspect.getsource(DPOTrainer.__init__)
    assert "_prepare_dataset(" in source
    for key in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert key in inspect.getsource(inspect.getmodule(DPOTrainer))  # type: ignore[arg-type]


def test_reward_and_sft_take_tokens_that_are_ready() -> None:
    assert '"chosen_ids" in column_names' in inspect.getsource(RewardTrainer._prepare_dataset)
    assert '"input_ids" in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)
    assert "assistant_masks" in inspect.getsource(SFTTrainer._prepare_dataset)


def test_the_two_helpers_we_borrow_are_there() -> None:
    assert _takes(unwrap_model_for_generation, "model", "accelerator")
    with suppress_seqcls_warning():
        pass


def test_the_reward_loss_is_bradley_terry(tmp_path: Path, policy_folder: Path) -> None:
    """-log sigmoid(chosen - rejected), by hand, on the scores of an untrained model."""
    import json
    import math

    from rlhf.records import Preference, read_jsonl
    from rlhf.scoring import load_reward_model
    from tests import stages

    data = stages.preferences(tmp_path / "p.jsonl", 4)
    settings = {**stages.TRAINING, "learning_rate": 0.0, "max_steps": 1, "save_strategy": "no"}
    stages.run("reward", preferences=data, model_name_or_path=policy_folder, output_dir=tmp_path / "run", **settings)
    rows = read_jsonl(data, Preference)
    model = load_reward_model(str(tmp_path / "run"))
    prompts = [row.prompt for row in rows]
    chosen = model(prompts, [row.chosen[0]["content"] for row in rows])
    rejected = model(prompts, [row.rejected[0]["content"] for row in rows])
    expected = sum(math.log(1 + math.exp(r - c)) for c, r in zip(chosen, rejected, strict=True)) / 4
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert abs(next(row["loss"] for row in logged if "loss" in row) - expected) < 1e-4
