"""A small job on two real ranks (CPU, gloo) that `rlhf launch` starts, and what it leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests import stages

ROOT = Path(__file__).parents[1]
SETTINGS = {**stages.TRAINING, "use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "no"}
PATIENCE = 280  # seconds; a loaded machine takes ten times what a free one does


def sft(place: Path, policy: Path, **values: Any) -> list[str]:
    """`sft --config FILE` of six steps on two ranks; the file is made in `place`."""
    data = stages.demonstrations(place / "demonstrations.jsonl", 24)
    return _command("sft", place, {"model_name_or_path": str(policy), "demonstrations": str(data), **values})


def dpo(place: Path, policy: Path, **values: Any) -> list[str]:
    """As `sft`."""
    data = stages.preferences(place / "preferences.jsonl", 24)
    own = {"model_name_or_path": str(policy), "preferences": str(data), "num_kl_prompts": 0}
    return _command("dpo", place, {**own, **values})


def ppo(place: Path, policy: Path, **values: Any) -> list[str]:
    """As `sft`; the reward counts a letter."""
    data = stages.prompts(place / "prompts.jsonl", 32)
    own = {"model_name_or_path": str(policy), "prompts": str(data), "reward": ["tests.ppo_cases:count_e_in_texts"]}
    return _command("ppo", place, {**own, "max_new_tokens": 8, "learning_rate": 3e-3, **values}, without=["max_length"])


def _command(verb: str, place: Path, values: dict[str, Any], without: Sequence[str] = ()) -> list[str]:
    config = place / f"{verb}.yaml"
    common = {key: value for key, value in SETTINGS.items() if key not in without}
    config.write_text(json.dumps({**common, "output_dir": str(place / "run"), **values}))  # JSON is YAML
    return [verb, "--config", str(config)]


def environment() -> dict[str, str]:
    """One thread a rank, no network, this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def start(own: list[str], verb: list[str]) -> subprocess.Popen[str]:
    """`rlhf launch OWN -- VERB`, its output to be read."""
    command = [sys.executable, "-m", "rlhf", "launch", *own, "--", *verb]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def launch(own: list[str], verb: list[str]) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    process = start(own, verb)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The finished model's."""
    import safetensors.torch

    return safetensors.torch.load_file(run / "model.safetensors")


def same_weights(left: Path, right: Path) -> None:
    """Two finished runs have the same weights, to the bit."""
    mine, other = weights(left), weights(right)
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=0, msg=name)


def alive(place: Path) -> list[int]:
    """Processes whose command line names `place`: orphans, where a job there has ended."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(place) in word for word in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
