"""How fast `rlhf compare` is beside loops at batch 8, and what a killed comparison does again.

    python benchmarks/compare_speed.py --demo runs/demo-0 [--turns 3] [--threads 2]

Three policies of a finished demo answer 1,000 prompts and two judges (reward model and gold) score each response. Ours
also measures every response's KL and fluency and writes the report with its intervals; `same_work` leaves that out.
Turn by turn, each arm a process of its own, timed from start to end (benchmarks/compare_speed_arm.py has the loops).
Then one of ours is killed (SIGKILL) while the second policy answers, and goes on. Prints Markdown and writes
benchmarks/results/compare_speed.json.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from install_trl_peer import install

from rlhf.demo.domain import draw_prompts
from rlhf.records import write_jsonl

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "compare_speed.json"
POLICIES = ("sft", "dpo", "ppo")
ARMS = ("ours", "same_work", "plain", "trl")
BATCH = 256  # ours; twice the demo's
TRL = "1.0.0"  # the last with judges; 1.1 to 1.4 have none any more


def main() -> None:
    """Run the turns, kill and resume, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder of a finished `rlhf demo`")
    parser.add_argument("--num_prompts", type=int, default=1000)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, default=Path("runs/trl-1.0"), help="where TRL 1.0 is, or shall be")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    install(arguments.peer, TRL)
    with tempfile.TemporaryDirectory() as folder:
        arguments.prompts = Path(folder) / "prompts.jsonl"  # the demo's own held-out ones are 300
        write_jsonl(arguments.prompts, draw_prompts(held_out=True, num_prompts=arguments.num_prompts, rng=Random(0)))
        turns = []
        for turn in range(arguments.turns):
            turns.append({arm: run_arm(arm, Path(folder) / f"{arm}-{turn}", arguments) for arm in ARMS})
            told = ", ".join(f"{arm} {one['seconds']:.0f} s" for arm, one in turns[-1].items())
            print(f"turn {turn + 1}: {told}", flush=True)
        resumed = kill_and_resume(Path(folder), arguments)
    result = {
        "setup": {
            "num_prompts": arguments.num_prompts,
            "policies": POLICIES,
            "judges": ["reward_model", "gold"],
            "threads": arguments.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load": os.getloadavg()[0],
            "versions": {name: version(name) for name in ("torch", "transformers")} | {"trl of the arm trl": TRL},
        },
        "turns": turns,
        "times_as_fast": {
            ours: {
                loop: statistics.median(turn[loop]["seconds"] / turn[ours]["seconds"] for turn in turns)
                for loop in ("plain", "trl")
            }
            for ours in ("ours", "same_work")
        },
        "killed_and_resumed": resumed,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def run_arm(arm: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One arm's seconds, and what it found."""
    folder.mkdir()
    if arm == "ours":
        command = [sys.executable, "-m", "rlhf", "compare", *compare_arguments(folder / "compare", arguments)]
    else:
        command = _job(folder, {"arm": arm, **_inputs(arguments)})
    begin = time.perf_counter()
    _run(command, arguments)
    seconds = time.perf_counter() - begin
    if arm == "ours":
        report = json.loads((folder / "compare" / "report.json").read_text())
        return {"seconds": seconds} | _found_by_ours(folder / "compare", report)
    return {"seconds": seconds} | json.loads((folder / "out.json").read_text())


def kill_and_resume(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL while the second policy answers; what the resumed run generates, and whether its report is the same."""
    out = folder / "killed"
    command = [sys.executable, "-m", "rlhf", "compare", *compare_arguments(out, arguments)]
    process = subprocess.Popen(
        command, env=_environment(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # The bar of the second policy, past 0%: it is being answered, and not finished.
    assert any(re.match(rf"{POLICIES[1]}: +[1-9]\d?%", line) for line in process.stderr), "compare ended before"
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted(path.name for path in out.glob("responses.*"))
    before = {path.name: path.read_bytes() for path in out.glob("responses.*.jsonl")}
    job = folder / "resume"
    job.mkdir()
    _run(_job(job, {"arm": "resume", "arguments": compare_arguments(out, arguments)}), arguments)
    return {
        "on_disk_when_killed": there,
        "generated_after": json.loads((job / "out.json").read_text()),
        "finished_files_untouched": all((out / name).read_bytes() == text for name, text in before.items()),
        "same_report_as_without_the_kill": (out / "report.json").read_bytes()
        == (folder / "ours-0" / "compare" / "report.json").read_bytes(),
    }


def compare_arguments(out: Path, arguments: argparse.Namespace) -> list[str]:
    """The flags of `rlhf compare`, the config file left out."""
    inputs = _inputs(arguments)
    settings = {
        "prompts": inputs["prompts"],
        "output_dir": str(out),
        "reward_model": inputs["reward"],
        "gold": "rlhf.demo.rubric:score",
        "num_prompts": arguments.num_prompts,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": BATCH,
    }
    path = out.with_suffix(".json")  # JSON is YAML
    path.write_text(json.dumps(settings | {"policies": list(inputs["policies"].values())}))
    return ["--config", str(path)]


def _inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    demo = arguments.demo.resolve()
    return {
        "policies": {name: str(demo / name) for name in POLICIES},
        "reward": str(demo / "reward"),
        "prompts": str(arguments.prompts),
        "num_prompts": arguments.num_prompts,
        "max_new_tokens": arguments.max_new_tokens,
        "trl": str(arguments.peer.resolve()),
        "batch_size": BATCH,
    }


def _found_by_ours(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    texts = [json.loads(line)["text"] for name in POLICIES for line in (folder / f"responses.{name}.jsonl").open()]
    wins: dict[str, dict[str, float]] = {}
    for pair in report["pairs"]:
        if pair["a"] == POLICIES[0]:
            wins.setdefault(pair["judge"], {})[pair["b"]] = 1 - pair["win_rate"]["mean"]
    words = [len(text.split()) for text in texts]
    return {"responses": len(words), "words_a_response": sum(words) / len(words), "wins": wins}


def _job(folder: Path, job: dict[str, Any]) -> list[str]:
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"out": str(folder / "out.json")}))
    return [sys.executable, str(HERE / "compare_speed_arm.py"), str(path)]


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}


def _run(command: list[str], arguments: argparse.Namespace) -> None:
    done = subprocess.run(command, env=_environment(arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def table(result: dict[str, Any]) -> str:
    """The medians in Markdown, and what the kill cost."""
    lines = ["| arm | seconds | responses | words a response | DPO, PPO beat SFT by gold |", "| --- " * 5 + "|"]
    for arm in ARMS:
        seconds = statistics.median(turn[arm]["seconds"] for turn in result["turns"])
        one = result["turns"][0][arm]
        wins = ", ".join(f"{rate:.2f}" for rate in one["wins"]["gold"].values())
        lines.append(f"| {arm} | {seconds:.0f} | {one['responses']:,} | {one['words_a_response']:.1f} | {wins} |")
    for ours, ratios in result["times_as_fast"].items():
        faster = ", ".join(f"{ratio:.1f} times as fast as {loop}" for loop, ratio in ratios.items())
        lines += ["", f"{ours} is {faster}"]
    return "\n".join([*lines, "", json.dumps(result["killed_and_resumed"], indent=2)])


if __name__ == "__main__":
    main()
