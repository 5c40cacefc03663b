"""PPO on two real processes (gloo): DDP and DeepSpeed's ZeRO-1, 2 and 3, full and LoRA, as one process does it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rlhf.models import load_policy
from tests import ppo_cases as cases
from tests import stages

ROOT = Path(__file__).parents[1]
CALLABLE = "tests.ppo_cases:count_e_in_texts"
KINDS = {"full": [], "lora": ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]}
FLAGS = {
    **KINDS,
    "noted": ["--value_model_kind", "shared", "--old_logps", "rollout"],
    "compiled": ["--torch_compile", "true", "--torch_compile_backend", "aot_eager"],
}


def _train(
    place: Path, policy: Path, kind: str, num_ranks: int, zero: int | None = None, reward: str = CALLABLE
) -> Path:
    values = {key: value for key, value in cases.SETTINGS.items() if key not in ("use_cpu", "logging_nan_inf_filter")}
    values |= {
        "prompts": str(stages.prompts(place / "prompts.jsonl", 32)),
        "reward": [reward],
        "model_name_or_path": str(policy),
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": 5,
        "micro_batch_tokens": 100,  # several micro-batches a step, and not as many on each rank
        "per_device_train_batch_size": 8 // num_ranks,
    }
    (place / "ppo.yaml").write_text(json.dumps(values))  # JSON is YAML
    flags = ["--config", str(place / "ppo.yaml"), *FLAGS[kind]]
    flags += ["--deepspeed", str(ROOT / "launch" / f"zero{zero}.json")] if zero else []
    _run(["tests/ppo_sharded.py", str(place), *flags], num_ranks)
    return place


def _run(command: list[str], num_ranks: int) -> None:
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks), "--standalone"]
    whole = [sys.executable, *(start if num_ranks > 1 else []), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{key: row[key] for key in ("step", "loss", "score", "kl", "length")} for row in rows if "score" in row]


@pytest.fixture(scope="module", params=list(KINDS))
def alone(request: pytest.FixtureRequest, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind, and ten rounds of it in one process."""
    return request.param, _train(tmp_path_factory.mktemp("alone"), policy_folder, request.param, 1)


@pytest.mark.parametrize("zero", [None, 1, 2, 3], ids=["ddp", "zero1", "zero2", "zero3"])
def test_two_processes_train_as_one(alone: Any, policy_folder: Path, tmp_path: Path, zero: int | None) -> None:
    """The same losses, scores and KL to 1e-3 over 10 rounds; it resumes; its checkpoint is a plain folder."""
    kind, one = alone
    two = _train(tmp_path, policy_folder, kind, 2, zero)
    expected = _curve(one / "whole")
    assert [row["step"] for row in expected] == list(range(1, 11))
    for got in (_curve(two / "whole"), _curve(two / "again")):
        for row, other in zip(got, expected, strict=True):
            assert row == pytest.approx(other, abs=1e-3)
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    left, right = (safetensors.torch.load_file(folder / "whole" / name) for folder in (two, one))
    assert set(right) <= set(left)
    for key, weight in right.items():
        torch.testing.assert_close(left[key], weight, rtol=0, atol=1e-3)
    assert load_policy(str(two / "whole")).max_length == 256


@pytest.mark.parametrize(("kind", "zero"), [("noted", 3), ("compiled", 2)])
def test_options_of_updates_and_rollouts_are_as_in_one_process(
    policy_folder: Path, tmp_path: Path, kind: str, zero: int
) -> None:
    """What is noted while a sharded policy is gathered; layers compiled under DeepSpeed's hooks on their weights."""
    curves = []
    for num_ranks, stage in ((1, None), (2, zero)):
        place = tmp_path / str(num_ranks)
        place.mkdir()
        curves.append(_curve(_train(place, policy_folder, kind, num_ranks, stage) / "whole"))
    assert [row["step"] for row in curves[0]] == list(range(1, 11))
    for row, other in zip(*curves, strict=True):
        assert row == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("reward_kind", ["score", "implicit"])
def test_reward_models_train_under_zero_3_and_are_whole_where_they_score(
    policy_folder: Path, tmp_path: Path, reward_kind: str
) -> None:
    """A scoring model is no part of what is trained: sharded as the policy is, nobody would gather it."""
    reward = tmp_path / "reward"
    values = {
        **stages.TRAINING,
        "use_cpu": True,
        "preferences": str(stages.preferences(tmp_path / "pairs.jsonl", 16)),
        "eval_preferences": str(stages.preferences(tmp_path / "held_out.jsonl", 8, first=16)),
        "model_name_or_path": str(policy_folder),
        "output_dir": str(reward),
        "reward_kind": reward_kind,
        "save_strategy": "no",
    }
    (tmp_path / "reward.yaml").write_text(json.dumps(values))
    zero = str(ROOT / "launch" / "zero3.json")
    _run(["-m", "rlhf", "reward", "--config", str(tmp_path / "reward.yaml"), "--deepspeed", zero], num_ranks=2)
    assert json.loads((reward / "run.json").read_text())["metrics"]["accuracy"]["n"] == 8
    curves = []
    for num_ranks, stage in ((1, None), (2, 3)):
        place = tmp_path / str(num_ranks)
        place.mkdir()
        _train(place, policy_folder, "full", num_ranks, stage, reward=str(reward))
        curves.append(_curve(place / "whole"))
    assert len({row["score"] for row in curves[0]}) > 5  # it tells replies apart
    for row, other in zip(*curves, strict=True):
        assert row == pytest.approx(other, abs=1e-3)
