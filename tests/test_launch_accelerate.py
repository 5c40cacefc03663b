"""The files of `launch/` under plain `accelerate launch`, and each trainer under `rlhf launch`, on two real ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from rlhf.ports import choose_port
from tests import launch_cases as cases
from tests import stages

LAUNCH = cases.ROOT / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_accelerate_knows_every_key(path: Path) -> None:
    config: Any = load_config_from_file(str(path))  # raises for keys it does not know
    assert config.num_processes >= 1


def _accelerate(place: Path, verb: list[str], *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--mixed_precision", "no", "-m", "rlhf"]
    return subprocess.Popen(
        [*command, *verb, "--output_dir", str(place / "run")],
        cwd=cases.ROOT,
        env=cases.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in cases.rows(run) if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_accelerate_launch_trains_as_rlhf_launch_does(policy_folder: Path, tmp_path: Path) -> None:
    """ZeRO-3 on one machine, and on two that meet over a port, as one process trains with twice the batch."""
    verb = cases.sft(tmp_path, policy_folder)
    stages.run("sft", **{**json.loads(Path(verb[2]).read_text()), "per_device_train_batch_size": 4})
    expected = _losses(tmp_path / "run")

    port = str(choose_port("127.0.0.1", 0))
    meet = ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2"]
    one = ["--config_file", str(LAUNCH / "zero3.yaml"), "--num_processes", "2", "--main_process_port", port]
    two = ["--config_file", str(LAUNCH / "multi-node.yaml"), *meet]
    for name, commands in {"one": [one], "two": [[*two, "--machine_rank", str(rank)] for rank in (0, 1)]}.items():
        place = tmp_path / name
        place.mkdir()
        processes = [_accelerate(place, verb, *flags) for flags in commands]
        told = [process.communicate(timeout=cases.PATIENCE) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), told
        assert json.loads((place / "run" / "run.json").read_text())["usage"]["num_processes"] == 2
        assert _losses(place / "run") == pytest.approx(expected, abs=1e-3)


def _values(verb: str, place: Path, policy: Path) -> dict[str, Any]:
    common = {**cases.SETTINGS, "output_dir": str(place / "run"), "max_steps": 2}
    if verb == "pretrain":
        (place / "text.jsonl").write_text('{"text": "Thank you, that is very kind."}\n' * 64)
        shape = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "context": 128}
        return {**common, "text": str(place / "text.jsonl"), **shape}
    if verb == "reward":
        data = {"preferences": str(stages.preferences(place / "p.jsonl", 16))}
        return {**common, **data, "model_name_or_path": str(policy)}
    common.pop("max_length")
    prompts = {"prompts": str(stages.prompts(place / "p.jsonl", 16)), "reward": ["tests.ppo_cases:count_e_in_texts"]}
    return {**common, **prompts, "model_name_or_path": str(policy), "max_new_tokens": 8}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["pretrain", "reward", "ppo"])
def test_the_other_trainers(verb: str, policy_folder: Path, tmp_path: Path) -> None:
    """sft and dpo are in test_launch_faults.py."""
    (tmp_path / "c.yaml").write_text(json.dumps(_values(verb, tmp_path, policy_folder)))
    done = cases.launch(["--gpus", "2", "--zero", "1"], [verb, "--config", str(tmp_path / "c.yaml")])
    assert done.returncode == 0, done.stderr + done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"] and record["usage"]["num_processes"] == 2
