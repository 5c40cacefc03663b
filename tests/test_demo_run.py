"""The demo's loop end to end, at a size that shows the wiring and not the result, twice the same."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.demo import run as demo
from rlhf.loop import STAGES, run_recipe

SMALL: dict[str, dict[str, Any]] = {
    "demo-write": {
        "num_texts": 60,
        "num_demonstrations": 40,
        "num_test_demonstrations": 8,
        "num_train_prompts": 8,
        "num_reward_prompts": 24,
        "num_validation_prompts": 8,
        "num_test_prompts": 8,
    },
    "pretrain": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_steps": 3, "warmup_steps": 1},
    "sft": {"max_steps": 3},
    "sample": {"num_prompts": 12, "max_new_tokens": 8},
    "reward": {"max_steps": 2},
    "dpo": {"max_steps": 2, "num_kl_prompts": 4, "max_new_tokens": 8},
    "ppo": {"max_steps": 1, "per_device_train_batch_size": 8, "max_new_tokens": 8},
    "compare": {"num_prompts": 8, "max_new_tokens": 8, "num_bootstrap": 200},
}


@pytest.mark.slow
def test_two_runs_of_one_seed_give_the_same_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for name in ("one", "two"):
        stages = STAGES | demo.DEMO_STAGES
        runs = run_recipe(demo.RECIPE, str(tmp_path / name), SMALL, stages)
        reports.append((tmp_path / name / "compare" / "report.json").read_bytes())
    assert reports[0] == reports[1]
    demo.show(runs, tmp_path / "two")
    out = capsys.readouterr().out
    assert "reward model: accuracy on held-out prompts" in out
    assert "compare/report.html" in out
    assert f"rlhf chat {tmp_path}/two/dpo {tmp_path}/two/ppo" in out
    # No stage that trains is a child of the gold: only compare's settings name it.
    assert [name for name, run in runs.items() if "rubric" in str(run.config)] == ["compare"]
