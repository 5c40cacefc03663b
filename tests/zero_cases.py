"""The jobs of test_zero.py and benchmarks/zero.py: four trainers, each alone and on two ranks with each ZeRO stage."""

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
NUM_RANKS = 2
MICRO_BATCHES = 2  # of a rank and step, so that gradients accumulate

_DATA = {
    "sft": ("demonstrations", stages.demonstrations),
    "reward": ("preferences", stages.preferences),
    "dpo": ("preferences", stages.preferences),
    "ppo": ("prompts", stages.prompts),
}
_OWN: dict[str, dict[str, Any]] = {
    "dpo": {"num_kl_prompts": 0},
    "ppo": {
        "reward": ["tests.ppo_cases:count_e_in_texts"],
        "max_new_tokens": 8,
        "num_ppo_epochs": 2,
        "num_mini_batches": 1,
        "kl_coef": 0.01,
        "micro_batch_tokens": 50,
    },
}


def train(place: Path, verb: str, policy: Path, steps: int, batch: int, patience: float) -> None:
    """Train into PLACE/alone in one process, and into PLACE/zero1, zero2 and zero3 on two ranks.

    A step has `batch` examples in all. PLACE/zeroN.memory has what each rank held.
    Raises RuntimeError with a job's last words where one fails.
    """
    jobs = [_job(place, verb, policy, steps, batch, None)]
    jobs += [_job(place, verb, policy, steps, batch, zero) for zero in STAGES]
    file = place / "jobs.json"
    file.write_text(json.dumps(jobs))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "tests/zero_child.py", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patience, check=False)
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    for at, (job, code) in enumerate(zip(jobs, codes, strict=False)):
        if any(code):
            raise RuntimeError(f"{job['argv']} ended with {code}: {Path(f'{file}.{at}.log').read_text()[-4000:]}")
    if done.returncode != 0 or len(codes) < len(jobs):
        raise RuntimeError(done.stderr[-4000:])


def _job(place: Path, verb: str, policy: Path, steps: int, batch: int, zero: int | None) -> dict[str, Any]:
    name, make = _DATA[verb]
    own = dict(stages.TRAINING)
    if verb == "ppo":  # accumulates by its micro_batch_tokens
        own = {key: value for key, value in own.items() if key not in ("max_length", "num_train_epochs")}
    ranks, split = (NUM_RANKS, 1 if verb == "ppo" else MICRO_BATCHES) if zero else (1, 1)
    values = {
        **own,
        **_OWN.get(verb, {}),
        "use_cpu": True,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": steps // 2,
        "report_to": "none",
        name: str(make(place / f"{name}.jsonl", batch * steps)),
        "model_name_or_path": str(policy),
        "per_device_train_batch_size": batch // ranks // split,
        "gradient_accumulation_steps": split,
        "output_dir": str(place / f"zero{zero}" if zero else place / "alone"),
    }
    if zero:
        values["deepspeed"] = str(ROOT / "launch" / f"zero{zero}.json")
    config = place / f"{zero or 'alone'}.yaml"
    config.write_text(json.dumps(values))  # JSON is YAML
    memory = str(place / f"zero{zero}.memory") if zero else None
    return {"ranks": ranks, "argv": [verb, "--config", str(config)], "memory": memory}


def losses(run_folder: Path) -> list[float]:
    """The loss of each step."""
    rows = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def memory(place: Path, zero: int) -> list[dict[str, int]]:
    """What each rank held, and should hold."""
    return [json.loads(path.read_text()) for path in sorted((place / f"zero{zero}.memory").glob("rank-*.json"))]


def promised(weights: int, zero: int) -> dict[str, float]:
    """Bytes a rank of each part by table 1 of Rajbhandari et al. 2020 (arXiv:1910.02054), in float32, K = 12."""
    return {
        "parameters": 4 * weights / (NUM_RANKS if zero == 3 else 1),
        "gradients": 4 * weights / (NUM_RANKS if zero >= 2 else 1),
        "optimizer": 12 * weights / NUM_RANKS,
    }
