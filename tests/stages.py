"""Configs and records for tests of stages: a few steps on a tiny model."""

import importlib
from pathlib import Path
from typing import Any

from rlhf.config import from_values
from rlhf.loop import STAGES
from rlhf.records import Demonstration, Preference, Prompt, make_id, write_jsonl

TRAINING = {
    "max_length": 128,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "disable_tqdm": True,
}
QUESTIONS = ["Hello", "I would like to return the shoes", "What time does the shop close?", "Can I have the receipt?"]


def config(verb: str, **values: Any) -> tuple[Any, ...]:
    """The verb's config from these values, as its YAML would give it."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return from_values(importlib.import_module(STAGES[verb]).Config, plain, f"{verb}.yaml")


def run(verb: str, **values: Any) -> Any:
    """Run one stage."""
    return importlib.import_module(STAGES[verb]).run(config(verb, **values))


def demonstrations(path: Path, count: int = 8) -> Path:
    """Short conversations with one right answer."""
    rows = []
    for n in range(count):
        messages = [
            {"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"},
            {"role": "assistant", "content": "Thank you, that is very kind."},
        ]
        rows.append(Demonstration(make_id("dem", messages), messages))
    write_jsonl(path, rows)
    return path


def preferences(path: Path, count: int = 8, first: int = 0) -> Path:
    """Pairs in which a thank-you beats a shrug, one a prompt."""
    rows = []
    for n in range(first, first + count):
        prompt = [{"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"}]
        good = [{"role": "assistant", "content": "Thank you, that is very kind."}]
        bad = [{"role": "assistant", "content": f"What {'what ' * (n % 3)}"}]
        rows.append(Preference(make_id("prf", n), make_id("prm", prompt), prompt, good, bad))
    write_jsonl(path, rows)
    return path


def prompts(path: Path, count: int = 6) -> Path:
    """Prompts of different lengths."""
    rows = []
    for n in range(count):
        messages = [{"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"}]
        rows.append(Prompt(make_id("prm", messages), messages, {"number": n}))
    write_jsonl(path, rows)
    return path


def reward(place: Path, policy: Path, **values: Any) -> Any:
    """A reward run in PLACE/reward on 16 pairs, judged on 8 others."""
    settings: dict[str, Any] = {
        **TRAINING,
        "preferences": preferences(place / "train.jsonl", 16),
        "eval_preferences": preferences(place / "eval.jsonl", 8, first=16),
        "model_name_or_path": policy,
        "output_dir": place / "reward",
        "save_strategy": "no",
    }
    return run("reward", **(settings | values))
