"""The ppo stage: a run folder like any other, and a kill at any moment changes nothing in the end."""

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rlhf.cli import main
from rlhf.errors import UserError
from rlhf.loop import run_stage
from tests import ppo_cases as cases
from tests import stages

REWARD = "tests.ppo_cases:count_e_in_texts"
# What a clock or the machine decides.
MEASURED = ("seconds/", "memory/", "episodes_per_second", "tokens_per_second", "memory_gb", "train_")


def _settings(place: Path, policy: Path, name: str = "run", **values: Any) -> dict[str, Any]:
    return {
        **{key: value for key, value in cases.SETTINGS.items() if key not in ("use_cpu", "logging_nan_inf_filter")},
        "prompts": stages.prompts(place / "prompts.jsonl", 32),
        "reward": [REWARD],
        "model_name_or_path": policy,
        "output_dir": place / name,
        **values,
    }


def _ppo(place: Path, policy: Path, name: str = "run", **values: Any) -> Any:
    return run_stage("ppo", stages.config("ppo", **_settings(place, policy, name, **values)))


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in rows]


def test_the_run_folder_tells_what_happened(tmp_path: Path, policy_folder: Path) -> None:
    evaluation = stages.prompts(tmp_path / "eval.jsonl", 40)
    lines = evaluation.read_text().splitlines(keepends=True)
    evaluation.write_text("".join(lines[32:]))
    run = _ppo(tmp_path, policy_folder, eval_prompts=evaluation)
    assert run.finished
    assert run.metrics["steps"] == 3
    assert run.metrics["episodes"] == 24
    assert {"score", "kl", "length", "eos_rate", "eval_score", "eval_kl"} <= set(run.metrics)
    rows = [row for row in _rows(tmp_path / "run") if "score" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    timed = next(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open())
    assert {"seconds/rollout", "seconds/reward", "seconds/reference", "seconds/update"} <= set(timed)


def test_the_doctor_reads_it(tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _ppo(tmp_path, policy_folder)
    main(["doctor", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "good" in out
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    assert "doctor: give one run folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["separate", "separate, at once", "shared", "adapter"])
def test_a_resumed_run_ends_as_an_undisturbed_one(
    tmp_path: Path, policy_folder: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Stopped after round 3 by a reward that fails once; every figure and weight as if it had not."""
    if kind.endswith("at once"):
        request.getfixturevalue("two_threads")
    adapter = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]} if kind == "adapter" else {}
    values = {
        "value_model_kind": kind.split(",")[0],
        "max_steps": 6,
        "kl_target": 0.1,
        "scale_scores": True,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 3,
        **adapter,
    }
    whole = _ppo(tmp_path, policy_folder, "whole", **values)
    cases.FAIL_AT[:] = [4]
    try:
        with pytest.raises(UserError, match="fails_once"):
            _ppo(tmp_path, policy_folder, "cut", **{**values, "reward": ["tests.ppo_cases:fails_once"]})
    finally:
        cases.FAIL_AT.clear()
    resumed = _ppo(tmp_path, policy_folder, "cut", resume=True, **{**values, "reward": ["tests.ppo_cases:fails_once"]})
    assert resumed.metrics == whole.metrics
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")
    _same_weights(tmp_path / "cut", tmp_path / "whole")


def test_ten_kills_change_nothing(tmp_path: Path, policy_folder: Path) -> None:
    """SIGKILL at ten random moments; the weights and the metrics are those of the undisturbed run, bit for bit."""
    values = {"max_steps": 60, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "ema_decay": 0.9}
    whole = _ppo(tmp_path, policy_folder, "whole", **values)
    moments, killed = random.Random(0), tmp_path / "killed"
    reached = 0  # a start takes away a checkpoint that a kill left half-written: the newest can go back
    for kill in range(10):
        worker = _start(tmp_path, policy_folder, values)
        if kill % 3:  # two of three kills fall into the rounds, the third into the start
            while worker.is_alive() and _newest(killed) <= reached:
                worker.join(0.01)
            reached = _newest(killed)
        worker.join(moments.uniform(0.0, 0.3))
        assert worker.is_alive(), f"ended by itself before kill {kill + 1}: exit {worker.exitcode}"
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    assert 6 <= reached < 60
    resumed = _ppo(tmp_path, policy_folder, "killed", resume=True, **values)
    assert resumed.metrics == whole.metrics
    assert _rows(tmp_path / "killed") == _rows(tmp_path / "whole")
    _same_weights(tmp_path / "killed", tmp_path / "whole")


def _newest(folder: Path) -> int:
    """The step of the newest checkpoint that is on disk, whole or not."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def _start(place: Path, policy: Path, values: dict[str, Any]) -> Any:
    """The run in a process of its own: forked, so that its ten starts do not import torch ten times."""
    worker = multiprocessing.get_context("fork").Process(
        target=_ppo, args=(place, policy, "killed"), kwargs={**values, "resume": True}
    )
    worker.start()
    return worker


def _same_weights(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors") if "checkpoint-" not in str(path))
    assert names
    for name in names:
        left, right = (safetensors.torch.load_file(folder / name) for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(tensor, right[key]) for key, tensor in left.items()), name


def test_a_guarded_run_s_model_is_the_best_by_gold(tmp_path: Path, policy_folder: Path) -> None:
    evaluation = stages.prompts(tmp_path / "eval.jsonl", 64)
    evaluation.write_text("".join(evaluation.read_text().splitlines(keepends=True)[32:]))
    run = _ppo(
        tmp_path,
        policy_folder,
        eval_prompts=evaluation,
        gold="tests.ppo_cases:hates_e",
        guard_steps=2,
        learning_rate=1e-2,
        max_steps=20,
        per_device_train_batch_size=32,
        kl_coef=0.0,
    )
    assert "learned the reward's faults" in run.metrics["stopped"]
    assert run.metrics["best_step"] < run.metrics["steps"]
    top, kept = (safetensors.torch.load_file(tmp_path / "run" / p / "model.safetensors") for p in ("", "best"))
    assert all(torch.equal(tensor, kept[key]) for key, tensor in top.items())


def test_a_reward_run_scores_and_starts_the_value_model(tmp_path: Path, policy_folder: Path) -> None:
    stages.run(
        "reward",
        **{**stages.TRAINING, "num_train_epochs": 1},
        preferences=stages.preferences(tmp_path / "preferences.jsonl"),
        model_name_or_path=policy_folder,
        output_dir=tmp_path / "reward",
        save_strategy="no",
    )
    run = _ppo(tmp_path, policy_folder, reward=[str(tmp_path / "reward")], max_steps=1, learning_rate=0.0)
    assert len(run.parents) == 1
    start, value = (safetensors.torch.load_file(tmp_path / p / "model.safetensors") for p in ("reward", "run/value"))
    assert all(torch.equal(tensor, value[key]) for key, tensor in start.items())


def test_demonstrations_are_mixed_in(tmp_path: Path, policy_folder: Path) -> None:
    _ppo(tmp_path, policy_folder, demonstrations=stages.demonstrations(tmp_path / "sft.jsonl"), ptx_coef=0.5)
    assert all(row["loss/ptx"] > 0 for row in _rows(tmp_path / "run") if "score" in row)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": ["nowhere/at/all"]}, "nowhere/at/all: no such model folder"),
        ({"reward": ["tests.ppo_cases:missing"]}, "reward: `tests.ppo_cases:missing` cannot be loaded"),
        ({"guard_steps": 2}, "guard_steps: needs a gold to ask"),
        ({"model_name_or_path": None}, "model_name_or_path: is not set"),
        ({"num_prompts": 3}, "train_dataset: has 3 prompts and a round takes 8"),
        ({"reward": ["http://localhost:9/score"], "reward_timeout": 5.0}, "localhost"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, policy_folder: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _ppo(tmp_path, policy_folder, **values)
    assert not (tmp_path / "run").exists()
