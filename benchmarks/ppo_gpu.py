"""PPO on one GPU, bf16: ours beside TRL 1.12's, and where the time goes against what the chip can do.

    python benchmarks/ppo_gpu.py [--budget 480] [--peer FOLDER] [--tiny]

Every arm is a process of its own. An arm that fails or takes too long is written down as that; after `--budget`
seconds no other one starts. The JSON (ppo_gpu.json in $OUT, else in benchmarks/results/) is written after every arm.
Weights are float32 and computing is bf16 under autocast, in both trainers; the reward model is bf16.

What is counted. Rollout: a decode step reads all weights of the policy once, in bf16, but for its embeddings: bytes
over seconds, against the bandwidth of a copy. Update: 6 operations a weight and token (prompts and replies) through
policy and value model, 6 a weight of the output layer and token of a reply, each pass; attention and what is computed
twice are not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from install_trl_peer import FOLDER, install
from ppo_gpu_inputs import SIZES, Size

HERE = Path(__file__).parent
SHARED = {"value_model_kind": "shared"}
# The most important first.
JOBS: list[tuple[str, dict[str, Any]]] = [
    ("ceilings", {"arm": "ceilings", "size": "0.5B"}),
    ("0.5B full, ours", {"arm": "ours", "size": "0.5B"}),
    ("0.5B full, trl", {"arm": "trl", "size": "0.5B", "rounds": 2}),
    ("0.5B full, ours shared", {"arm": "ours", "size": "0.5B", "settings": SHARED}),
    ("0.5B ragged, ours", {"arm": "ours", "size": "0.5B", "ends": True}),
    ("0.5B ragged, trl", {"arm": "trl", "size": "0.5B", "ends": True, "rounds": 2}),
    ("1.5B full, ours", {"arm": "ours", "size": "1.5B", "episodes": 32}),
    ("1.5B full, trl", {"arm": "trl", "size": "1.5B", "episodes": 32, "rounds": 2}),
    ("1.5B full, ours shared", {"arm": "ours", "size": "1.5B", "episodes": 32, "settings": SHARED}),
    ("0.5B phases", {"arm": "engines", "size": "0.5B", "settings": {"phases": True}}),
    ("0.5B full, ours without graph", {"arm": "ours", "size": "0.5B", "settings": {"decode_graphs": False}}),
    ("0.5B precision", {"arm": "precision", "size": "0.5B"}),
    ("0.5B engines", {"arm": "engines", "size": "0.5B"}),
    ("1.5B engines", {"arm": "engines", "size": "1.5B"}),
]
DEFAULTS = {"ends": False, "settings": {}, "rounds": 3}


def main() -> None:
    """Run the arms, write after each, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no arm starts")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds an arm may take")
    parser.add_argument("--peer", type=Path, default=FOLDER, help="where TRL 1.12 is, or shall be")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all")
    parser.add_argument("--only", nargs="+", help="arms whose names hold one of these words")
    arguments = parser.parse_args()
    install(arguments.peer)
    out = Path(os.environ.get("OUT", HERE / "results")) / "ppo_gpu.json"
    began = time.monotonic()
    results: dict[str, Any] = {}
    for name, given in JOBS:
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        if time.monotonic() - began > arguments.budget:
            results[name] = {"error": "not begun: the budget was spent"}
            continue
        job = DEFAULTS | given | {"peer": str(arguments.peer)}
        if arguments.tiny:
            job |= {"size": "tiny", "episodes": 0}
        left = arguments.budget - (time.monotonic() - began) + 30
        results[name] = run(job, min(arguments.limit, left))
        if not arguments.tiny:
            out.write_text(json.dumps({"jobs": dict(JOBS), "results": against_the_chip(results)}, indent=1) + "\n")
        told = results[name].get("error") or f"{results[name].get('episodes_per_second', 0):.2f} episodes/s"
        print(f"{name}: {told} ({time.monotonic() - began:.0f} s so far)", file=sys.stderr, flush=True)
    print(table(against_the_chip(results)))


def run(job: dict[str, Any], limit: float) -> dict[str, Any]:
    """The job's figures, or `error` and its last words."""
    out = HERE / ".ppo_gpu_arm.json"
    command = [sys.executable, str(HERE / "ppo_gpu_arm.py"), json.dumps(job | {"out": str(out)})]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"took over {limit:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:300], "stderr": done.stderr[-3000:]}
    figures = json.loads(out.read_text())
    out.unlink()
    return figures


def against_the_chip(results: dict[str, Any]) -> dict[str, Any]:
    """The same, with the shares of the chip's bandwidth and operations that a round reaches."""
    chip = results.get("ceilings", {})
    for name, row in results.items():
        if "seconds" not in row or "tflops" not in chip:
            continue
        job = DEFAULTS | dict(JOBS)[name]
        size: Size = SIZES[job["size"]]
        row["rollout_share_of_bandwidth"] = _bytes(size) / row["seconds"]["rollout"] / 1e9 / chip["gb_per_second"]
        row["update_share_of_flops"] = _operations(size, job, row) / row["seconds"]["update"] / 1e12 / chip["tflops"]
    return results


def _bytes(size: Size) -> float:
    return size.shape.longest_reply * 2.0 * (size.body + size.shape.vocabulary * size.shape.hidden)


def _operations(size: Size, job: dict[str, Any], row: dict[str, Any]) -> float:
    tokens = row["update_tokens_per_second"] * row["seconds"]["update"]  # of all passes
    replies = row["reply_tokens"] * size.shape.epochs
    models = 1 if job["settings"].get("value_model_kind") else 2
    return 6.0 * (models * size.body * tokens + size.shape.vocabulary * size.shape.hidden * replies)


def table(results: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        "| arm | episodes/s | rollout tokens/s | update tokens/s | rollout s | scoring s | update s | peak GiB "
        "| above load | share of bandwidth | share of FLOPs |",
        "| --- " * 11 + "|",
    ]
    for name, row in results.items():
        if "seconds" not in row:
            lines.append(f"| {name} | {row.get('error') or json.dumps(row)[:400]} |")
            continue
        seconds = row["seconds"]
        cells = [name, f"{row['episodes_per_second']:.2f}", f"{row['rollout_tokens_per_second']:,.0f}"]
        cells += [f"{row['update_tokens_per_second']:,.0f}"]
        cells += [f"{seconds[part]:.2f}" for part in ("rollout", "scoring", "update")]
        cells += [f"{row['peak_gib']:.1f}", f"{row['peak_above_load_gib']:.1f}"]
        cells += [f"{row.get(key, 0):.2f}" for key in ("rollout_share_of_bandwidth", "update_share_of_flops")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
