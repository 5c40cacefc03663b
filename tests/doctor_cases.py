"""Rows of metrics made by hand, and what the doctor says of them."""

from typing import Any

from rlhf.ppo.diagnostics import Finding, diagnose

CONFIG: dict[str, Any] = {
    "bf16": False,
    "dtype": "float32",
    "kl_ceiling": 20.0,
    "guard_steps": 3,
    "guard_patience": 2,
    "max_new_tokens": 96,
    "num_ppo_epochs": 4,
    "num_mini_batches": 4,
    "value_warmup_steps": 0,
}


def healthy(num_rounds: int = 12) -> list[dict[str, Any]]:
    """A run to be content with: the score rises, the KL with it, and nothing else moves."""
    rows = []
    for n in range(num_rounds):
        row = {
            "step": n + 1,
            "loss": 0.1,
            "score": 0.1 * n,
            "score/std": 1.0,
            "kl": 0.5 * n,
            "length": 40.0,
            "eos_rate": 0.95,
            "entropy": 2.0,
            "ratio/first_deviation": 1e-6,
            "approx_kl": 0.01,
            "clip_fraction": 0.1,
            "explained_variance": 0.6,
            "updates_skipped": 0.0,
            "updates_stopped": 0.0,
            "seconds/rollout": 5.0,
            "seconds/reward": 1.0,
            "seconds/reference": 1.0,
            "seconds/update": 3.0,
        }
        if row["step"] % 3 == 0:
            row |= {"guard/gold": 0.05 * n, "guard/score": 0.1 * n}
        rows.append(row)
    return rows


def with_figures(rows: list[dict[str, Any]], **figures: Any) -> list[dict[str, Any]]:
    """The rows with some figures set: one for all, or a list with one a row. `__` stands for `/`."""
    for key, values in figures.items():
        values = values if isinstance(values, list) else [values] * len(rows)
        for row, value in zip(rows, values, strict=True):
            row[key.replace("__", "/")] = value
    return rows


def finding(name: str, rows: list[dict[str, Any]], **config: Any) -> Finding:
    """The doctor's word on one thing."""
    return next(found for found in diagnose(rows, CONFIG | config) if found.name == name)
