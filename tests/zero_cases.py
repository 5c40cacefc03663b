"""The jobs of test_zero.py and benchmarks/zero.py: the four trainers on one process, and on two with ZeRO."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import stages

ROOT = Path(__file__).parents[1]
VERBS = ["sft", "reward", "dpo", "ppo"]
STAGES = [1, 2, 3]
PARTS = ["parameters", "gradients", "optimizer"]


def config(place: Path, verb: str, policy: Path, steps: int, num_ranks: int, batch: int) -> Path:
    """The verb's config file, for a global batch of `batch`."""
    data = {
        "sft": ("demonstrations", stages.demonstrations),
        "reward": ("preferences", stages.preferences),
        "dpo": ("preferences", stages.preferences),
        "ppo": ("prompts", stages.prompts),
    }
    name, make = data[verb]
    own: dict[str, Any] = {"dpo": {"num_kl_prompts": 0}, "ppo": _PPO}.get(verb, {})
    values = {
        **stages.TRAINING,
        "use_cpu": True,
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        name: str(make(place / f"{name}.jsonl", 4 * batch)),
        "model_name_or_path": str(policy),
        **own,
        "per_device_train_batch_size": batch // num_ranks,
    }
    if verb == "ppo":
        values.pop("max_length")
        values.pop("num_train_epochs")
    path = place / f"{verb}-{num_ranks}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


_PPO = {
    "reward": ["tests.ppo_cases:count_e_in_texts"],
    "max_new_tokens": 8,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "kl_coef": 0.01,
}


def job(place: Path, verb: str, settings: Path, zero: int | None = None) -> dict[str, Any]:
    """One run into PLACE/VERB, or PLACE/VERB-zeroN with its memory beside it."""
    out = place / (f"{verb}-zero{zero}" if zero else verb)
    argv = [verb, "--config", str(settings), "--output_dir", str(out)]
    argv += ["--deepspeed", str(ROOT / "launch" / f"zero{zero}.json")] if zero else []
    return {"argv": argv, "memory": str(place / f"{verb}-zero{zero}.memory") if zero else None}


def run(place: Path, jobs: list[dict[str, Any]], num_ranks: int, patience: int = 280) -> None:
    """Do the jobs in one process, or one group of `num_ranks` (gloo). Raises RuntimeError with the last words."""
    file = place / f"jobs-{num_ranks}.json"
    file.write_text(json.dumps(jobs))
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks), "--standalone"]
    command = [sys.executable, *(start if num_ranks > 1 else []), "tests/zero_child.py", str(file)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patience, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-4000:])


def losses(run_folder: Path) -> list[float]:
    """The loss of each step."""
    rows = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def memory(place: Path, verb: str, zero: int) -> list[dict[str, int]]:
    """What each rank held, and was to hold."""
    return [json.loads(path.read_text()) for path in sorted((place / f"{verb}-zero{zero}.memory").glob("rank-*.json"))]
