"""PPO's speed and memory: ours, TRL 1.12's, and bare loops with no trainer at all, turn by turn.

    python benchmarks/ppo_vs_trl.py [--configs full ragged best] [--turns 5] [--rounds 3] [--threads 2]

Every turn runs each arm once, one after the other, each in a process of its own; ratios are taken within a turn
and their median over the turns is printed: a Markdown table, then one JSON line. On an idle machine five turns
take about an hour on two cores. The first run fetches TRL 1.12 into runs/trl-1.12.

Configurations (benchmarks/ppo_inputs.py says how replies end in all arms alike):

- full: a separate value model, float32, every reply 64 tokens long;
- ragged: the same, replies of 8 to 64 tokens, the same lengths in every arm;
- best: ours as the demo has it, with the value head on the policy's trunk and one pass over a round's episodes, in bf16
  where the CPU is faster in it; TRL as in `full`, and with one pass too. Whether the demo loses gold by it
  is what benchmarks/ppo_passes.py measures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from install_trl_peer import FOLDER, VERSION, install
from ppo_arm import Job
from ppo_inputs import FULL, TINY, Shape, cpu, write_inputs

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ppo_vs_trl.json"
# Of each configuration: its arms as (arm, whose inputs and settings).
CONFIGS = {
    "full": {
        "ours": ("ours", "full"),
        "trl": ("trl", "full"),
        "trl_defaults": ("trl", "defaults"),
        "bare": ("bare", "full"),
    },
    "ragged": {"ours": ("ours", "ragged"), "trl": ("trl", "ragged"), "bare": ("bare", "ragged")},
    "best": {
        "ours": ("ours", "best"),
        "trl": ("trl", "full"),
        "trl_one_pass": ("trl", "one_pass"),
        "bare": ("bare", "full"),
    },
}
# Without gradient checkpointing in any arm but this: it is TRL's default, and costs it time here.
SETTINGS = {
    "defaults": {"gradient_checkpointing": True},
    "best": {"value_model_kind": "shared", "num_ppo_epochs": 1},
    "one_pass": {"num_ppo_epochs": 1},
}
Figures = dict[tuple[str, str], dict[str, Any]]


def main() -> None:
    """Run all turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="rounds a run; the first is a warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all")
    parser.add_argument("--arms", nargs="+", choices=["ours", "trl", "bare"], default=["ours", "trl", "bare"])
    parser.add_argument("--peer", type=Path, default=FOLDER, help="where TRL 1.12 is, or shall be")
    parser.add_argument("--out", type=Path, help="the default is benchmarks/results/ppo_vs_trl.json; none with --tiny")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, for the first is not measured")
    if "trl" in arguments.arms:
        install(arguments.peer)
    shape = TINY if arguments.tiny else FULL
    load_before = os.getloadavg()[0]
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.turns):
            turns.append(run_turn(Path(folder), shape, arguments))
            print(f"turn {turn + 1} of {arguments.turns}: {_brief(turns[-1])}", file=sys.stderr, flush=True)
    result = {name: summary(CONFIGS[name], turns) for name in arguments.configs}
    setup = describe(shape, arguments) | {"load_before": load_before, "best_in_bf16": faster_in_bf16()}
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"setup": setup, "configs": result}, indent=2) + "\n")
    print(table(result) + "\n")
    print(json.dumps({name: row["ratios"] for name, row in result.items()}))


def run_turn(folder: Path, shape: Shape, arguments: argparse.Namespace) -> Figures:
    """Each arm of each configuration once; what two configurations share runs once."""
    wanted = {pair: None for name in arguments.configs for pair in CONFIGS[name].values()}
    figures: Figures = {}
    for arm, config in wanted:
        if arm not in arguments.arms:
            continue
        inputs = folder / ("ends" if config == "ragged" else "full")
        if not inputs.exists():
            write_inputs(inputs, shape, ends=config == "ragged")
        settings = SETTINGS.get(config, {}) | ({"bf16": faster_in_bf16()} if config == "best" else {})
        peer, out = str(arguments.peer), str(folder / "figures.json")
        job = Job(arm, str(inputs), arguments.rounds, arguments.threads, out, settings, peer)
        run_child(job, folder)
        figures[arm, config] = json.loads(Path(job.out).read_text())
    return figures


@cache
def faster_in_bf16() -> bool:
    """Whether this machine multiplies matrices of a micro-batch's size in bf16 at 1.5 times the rate of float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weight = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        torch.mm(tokens, weight)
        each = []
        for _ in range(20):
            began = time.perf_counter()
            torch.mm(tokens, weight)
            each.append(time.perf_counter() - began)
        seconds[dtype] = statistics.median(each)
    return seconds[torch.float32] > 1.5 * seconds[torch.bfloat16]


def run_child(job: Job, folder: Path) -> None:
    """Run a job in a process of its own, without network and GPU; stops this one with the child's last words."""
    script = HERE / ("ppo_arm.py" if job.arm in ("ours", "bare") else "trl_peer.py")
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(HERE.parent),
    }
    command = [sys.executable, str(script), str(job.write(folder / "job.json"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job.arm}: the run failed\n{done.stderr[-4000:]}")


def summary(arms: dict[str, tuple[str, str]], turns: list[Figures]) -> dict[str, Any]:
    """Medians over the turns of every arm's figures, and of ours over the others' within a turn."""
    arms = {name: pair for name, pair in arms.items() if pair in turns[0]}
    keys = ["episodes_per_second", "peak_mib", "loaded_mib", "mean_reply"]
    medians = {name: {key: _median(turn[pair][key] for turn in turns) for key in keys} for name, pair in arms.items()}
    ratios = {}
    for other in ("trl", "trl_defaults", "trl_one_pass", "bare"):
        if "ours" not in arms or other not in arms:
            continue
        for key, name in (("episodes_per_second", "speed"), ("peak_mib", "memory")):
            each = [turn[arms["ours"]][key] / turn[arms[other]][key] for turn in turns]
            ratios[f"{name}_over_{other}"] = {"median": _median(each), "low": min(each), "high": max(each)}
    return {
        "ratios": ratios,
        "medians": medians,
        "turns": [{n: turn[pair] for n, pair in arms.items()} for turn in turns],
    }


def table(result: dict[str, Any]) -> str:
    """The medians in Markdown; ratios with their lowest and highest turn."""
    lines = [
        "| configuration | arm | episodes/s | ours over it | peak above load, MiB | ours over it | mean reply |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for config, row in result.items():
        for arm, median in row["medians"].items():
            speed, memory = (_ratio(row["ratios"].get(f"{name}_over_{arm}")) for name in ("speed", "memory"))
            cells = [config, arm, f"{median['episodes_per_second']:.2f}", speed]
            cells += [f"{median['peak_mib']:.0f}", memory, f"{median['mean_reply']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures hang on."""
    return {
        "shape": asdict(shape),
        "turns": arguments.turns,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")} | {"trl": VERSION},
    }


def _median(values: Any) -> float:
    return statistics.median(values)


def _ratio(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def _brief(figures: Figures) -> str:
    return ", ".join(f"{arm}/{config} {row['episodes_per_second']:.2f}/s" for (arm, config), row in figures.items())


if __name__ == "__main__":
    main()
