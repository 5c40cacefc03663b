"""The planner's sums beside what real runs take: a dozen trainings on the processor, each in a process of its own.

    python benchmarks/planner.py [--only NAME ...]

Random Llamas of 5 to 42 million weights in float32, two optimizer steps of the stage itself (TRL's trainers, ours for
PPO), every sequence at its longest. A run's peak is the kernel's own high-water mark of resident memory (VmHWM, reset
when the models are about to be loaded) less the level at that moment. Before, the same stage runs on a tiny model, so
that what libraries load late is not taken for the model's. malloc gives back what is freed (MALLOC_MMAP_THRESHOLD_):
what is measured is then what is alive, which is what the planner counts. Prints a Markdown table and writes
benchmarks/results/planner.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "planner.json"
AIM = 0.15
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Case:
    """One training: its verb, the model's width, depth and vocabulary, and the config's values."""

    name: str
    verb: str
    hidden: int
    layers: int
    vocabulary: int
    values: dict[str, Any] = field(default_factory=dict)


_LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear"}
_CHECKPOINTING = {"gradient_checkpointing": True}
_SCORE_LORA = _LORA | _CHECKPOINTING | {"lora_task_type": "SEQ_CLS"}
CASES = [
    Case("sft, 5M", "sft", 256, 4, 8192, {"per_device_train_batch_size": 8, "max_length": 128}),
    Case("sft, 23M", "sft", 512, 6, 8192, {"per_device_train_batch_size": 4, "max_length": 256}),
    Case("sft, 23M, checkpointing", "sft", 512, 6, 8192, {"max_length": 256} | _CHECKPOINTING),
    Case("sft, 23M, accumulation", "sft", 512, 6, 8192, {"max_length": 128, "gradient_accumulation_steps": 2}),
    Case("sft, 42M, vocabulary 32k", "sft", 512, 8, 32000, {"per_device_train_batch_size": 2, "max_length": 256}),
    Case("sft, 23M, LoRA", "sft", 512, 6, 8192, {"max_length": 256} | _LORA),
    Case("reward, 23M", "reward", 512, 6, 8192, {"per_device_train_batch_size": 2, "max_length": 256}),
    Case(
        "reward, 23M, LoRA, checkpointing", "reward", 512, 6, 8192, {"max_length": 256} | _SCORE_LORA | _CHECKPOINTING
    ),
    Case("dpo, 23M", "dpo", 512, 6, 8192, {"per_device_train_batch_size": 2, "max_length": 128}),
    Case("dpo, 23M, LoRA", "dpo", 512, 6, 8192, {"per_device_train_batch_size": 2, "max_length": 256} | _LORA),
    Case("ppo, 23M, separate value", "ppo", 512, 6, 8192),
    Case("ppo, 23M, shared value, checkpointing", "ppo", 512, 6, 8192, {"value_model_kind": "shared"} | _CHECKPOINTING),
    Case("ppo, 23M, LoRA, adapter value", "ppo", 512, 6, 8192, {"value_model_kind": "adapter"} | _LORA),
    Case("ppo, 42M, shared value, vocabulary 32k", "ppo", 512, 8, 32000, {"value_model_kind": "shared"}),
]
_SETTINGS = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "max_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
_PPO = {
    "per_device_train_batch_size": 16,
    "num_ppo_epochs": 1,
    "num_mini_batches": 2,
    "max_new_tokens": 32,
    "max_prompt_length": 96,
    "micro_batch_tokens": 1024,
}


def main() -> None:
    """Run every case in a process of its own, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of cases; the others' figures stay")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print("RESULT " + json.dumps(measure(next(c for c in CASES if c.name == given.case), Path(given.folder))))
        return
    known = {row["name"]: row for row in json.loads(RESULTS.read_text())["runs"]} if given.only else {}
    for case in CASES:
        if (not given.only or case.name in given.only) and (row := in_process(case)):
            known[case.name] = row
    rows = [known[case.name] for case in CASES if case.name in known]
    print(table(rows))
    RESULTS.write_text(json.dumps({"machine": machine(), "aim": AIM, "runs": rows}, indent=2) + "\n")


def in_process(case: Case) -> dict[str, Any] | None:
    """A case's figures from a new process; None, said aloud, where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--case", case.name, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | _ENVIRONMENT, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        print(f"{case.name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    row = json.loads(found[0].removeprefix("RESULT "))
    print(f"{case.name}: planned {row['planned']:.0f}, measured {row['measured']:.0f} MB", file=sys.stderr)
    return row


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Plan a case, run it, and set both beside each other, in MB (10**6 bytes)."""
    from rlhf.planner.memory import account
    from rlhf.planner.options import PlanOptions
    from rlhf.planner.stages import Stage

    warm = write_case(Case("warm", case.verb, 64, 2, 512, case.values), folder / "warm")
    run_stage(warm)
    asked = write_case(case, folder / "case")
    options = PlanOptions(gpus=0, length=_length(case))
    stage = Stage(case.verb, parsed(asked), options)
    planned = account(stage, stage.start(), options)
    before = reset()
    began = time.perf_counter()
    run_stage(asked)
    return asdict(case) | {
        "parameters": sum(model.count.total for model in stage.held if model.name in ("policy", "reward model")),
        "planned": planned.peak / 1e6,
        "phase": planned.worst.phase,
        "parts": {f"{part.model} {part.kind}": round(part.bytes / 1e6, 1) for part in planned.worst.parts},
        "measured": (status("VmHWM") - before) / 1e6,
        "seconds": round(time.perf_counter() - began, 1),
    }


def reset() -> int:
    """Set the high-water mark to what is resident now, and return that, in bytes."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def write_case(case: Case, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model and the data of a case, and its verb with the config's values."""
    import torch

    from rlhf.models import new_llama, train_tokenizer

    words = [f"word{n}" for n in range(4000)]
    texts = [" ".join(words[n : n + 40]) for n in range(0, 4000, 8)]
    tokenizer = train_tokenizer(texts, 500, "configs/templates/chatml.jinja")
    extra = case.vocabulary - len(tokenizer)
    if extra > 0:
        tokenizer.add_tokens([f"<extra{n}>" for n in range(extra)])
    torch.manual_seed(0)
    model = new_llama(tokenizer, case.hidden, case.layers, max(2, case.hidden // 64), 512)
    model.generation_config.suppress_tokens = [model.config.eos_token_id]  # replies of full length
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    values = {"model_name_or_path": str(folder / "model"), "output_dir": str(folder / "run")} | _SETTINGS
    values |= {} if case.verb == "ppo" else {"per_device_train_batch_size": 4}
    values |= (_PPO if case.verb == "ppo" else {}) | case.values | write_data(case, folder)
    return case.verb, values


def write_data(case: Case, folder: Path) -> dict[str, Any]:
    """Records whose texts are longer than any row: what is cut is as long as it may be."""
    from rlhf.records import Demonstration, Preference, Prompt, make_id, write_jsonl

    # A thousand tokens of prompt and reply in any case: each is cut to the room that it has.
    prompt = [[{"role": "user", "content": f"{n} " + "word " * 300}] for n in range(64)]
    long = [{"role": "assistant", "content": "answer " * 40}]
    if case.verb == "sft":
        rows = [Demonstration(make_id("dem", n), [*prompt[n], *long]) for n in range(64)]
        write_jsonl(folder / "rows.jsonl", rows)
        return {"demonstrations": str(folder / "rows.jsonl")}
    if case.verb == "ppo":
        write_jsonl(folder / "rows.jsonl", [Prompt(make_id("prm", n), prompt[n], {}) for n in range(64)])
        return {"prompts": str(folder / "rows.jsonl"), "reward": ["planner:length_of"]}
    rows = [
        Preference(
            make_id("prf", n), make_id("prm", n), prompt[n], long, [{"role": "assistant", "content": "no " * 200}]
        )
        for n in range(64)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    return {"preferences": str(folder / "rows.jsonl")} | ({"num_kl_prompts": 0} if case.verb == "dpo" else {})


def length_of(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """A reward that takes no memory."""
    return [float(len(response)) for response in responses]


def parsed(asked: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
    """The verb's config."""
    import importlib

    from rlhf.config import from_values
    from rlhf.loop import STAGES

    verb, values = asked
    return from_values(importlib.import_module(STAGES[verb]).Config, values, verb)


def run_stage(asked: tuple[str, dict[str, Any]]) -> None:
    """The stage itself."""
    import contextlib
    import io

    from rlhf.loop import run_stage as run

    with contextlib.redirect_stdout(io.StringIO()):
        run(asked[0], parsed(asked))


def _length(case: Case) -> int:
    return 128 if case.verb == "ppo" else case.values["max_length"]


def machine() -> dict[str, Any]:
    """What it ran on."""
    libraries = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    place = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **place, check=False).stdout.strip()
    return {
        "commit": commit,
        "processor": platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
    } | libraries


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: planned and measured, and how far apart."""
    lines = ["| run | weights | planned, MB | measured, MB | planned / measured |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = row["planned"] / row["measured"]
        miss = "" if abs(ratio - 1) <= AIM else " (miss)"
        millions = row["parameters"] / 1e6
        lines.append(
            f"| {row['name']} | {millions:.1f}M | {row['planned']:.0f} | {row['measured']:.0f} | {ratio:.2f}{miss} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
