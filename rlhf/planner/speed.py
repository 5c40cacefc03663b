"""How long it takes and what it costs, from a throughput that was measured or is given."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rlhf.errors import UserError
from rlhf.planner.options import PlanOptions, Setting
from rlhf.planner.stages import Stage
from rlhf.runs import read_run


@dataclass(frozen=True)
class Duration:
    """Time and cost of the whole training.

    Args:
        tokens: that are trained on, every sequence at its longest: an upper bound.
        tokens_per_second: of one GPU.
        source: where that is from.
        hours: from start to end.
        gpu_hours: over all GPUs.
        cost: in the currency of the price; None without one.
    """

    tokens: int
    tokens_per_second: float
    source: str
    hours: float
    gpu_hours: float
    cost: float | None


def duration(stage: Stage, setting: Setting, options: PlanOptions) -> Duration | None:
    """Time and cost; None without a throughput, or where nothing says how much there is to train on."""
    rate, source = _rate(options)
    tokens = num_tokens(stage, setting, options)
    if rate is None or tokens is None:
        return None
    seconds = tokens / (rate * options.ranks)
    gpu_hours = seconds / 3600 * options.ranks
    cost = None if options.price is None else gpu_hours * options.price
    return Duration(tokens, rate, source, seconds / 3600, gpu_hours, cost)


def num_tokens(stage: Stage, setting: Setting, options: PlanOptions) -> int | None:
    """Tokens that go through the training, every sequence at its longest."""
    training = stage.training
    sequences = 2 if stage.verb in ("reward", "dpo") else 1
    if training.max_steps > 0:
        batch = setting.micro_batch * setting.accumulation
        batch = training.per_device_train_batch_size if stage.verb == "ppo" else batch
        examples = training.max_steps * batch * options.ranks
    else:
        given = options.examples or _lines(stage.data)
        if given is None:
            return None
        examples = math.ceil(given * training.num_train_epochs)
    return examples * sequences * stage.length


def read_throughput(folder: str) -> float:
    """Tokens a second of a run, all its GPUs together, from metrics.jsonl.

    Raises UserError where the folder is no run, or its log has no throughput.
    """
    read_run(folder)
    path = Path(folder) / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    rounds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    if rounds:
        return float(median(rounds))
    tokens = max((row["num_tokens"] for row in rows if row.get("num_tokens")), default=None)
    seconds = max((row["train_runtime"] for row in rows if row.get("train_runtime")), default=None)
    if not tokens or not seconds:
        raise UserError(
            f"like: {folder} has no throughput in metrics.jsonl (tokens_per_second, or num_tokens and train_runtime); "
            "give a finished training run, or --tokens_per_second"
        )
    return float(tokens) / float(seconds)


def _rate(options: PlanOptions) -> tuple[float | None, str]:
    if options.tokens_per_second is not None:
        return options.tokens_per_second, "given"
    if options.like is not None:
        return read_throughput(options.like) / options.like_gpus, f"measured in {options.like}"
    return None, ""


def _lines(data: Any) -> int | None:
    """Lines of the file to train on, None where it is not there."""
    for key in ("demonstrations", "preferences", "prompts"):
        given = getattr(data, key, None)
        if isinstance(given, str) and Path(given).is_file():
            with Path(given).open(encoding="utf-8") as file:
                lines = sum(bool(line.strip()) for line in file)
            limit = getattr(data, "num_prompts", None)
            return min(lines, limit) if limit else lines
    return None
