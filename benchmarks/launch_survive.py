"""Ten SIGKILLs: two ranks train under `rlhf launch`, one is killed again and again, and the result must be the same.

python benchmarks/launch_survive.py [--only sft ...] [--seed 0]

Each job runs twice on two CPU ranks with DeepSpeed: undisturbed, and in one launch with --max_restarts 10 in which a
random rank is killed at ten random moments. Four of them fall into the twelve seconds after a rank's first line
(imports, loading, resuming), the others some random time after the job has come further than before, so that it gets
home. Weights and logged metrics are compared to the bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from rlhf.launcher.files import launch_folder
from rlhf.launcher.rank import Mark, RankFiles, read_mark
from tests import launch_cases as cases
from tests.tiny import tiny_policy

OUT = Path(__file__).parent / "results" / "launch_survive.json"
JOBS = {"sft": 2, "dpo": 3, "ppo": 2}  # verb and ZeRO stage
NUM_KILLS = 10
VALUES = {"max_steps": 40, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
START_SECONDS = 12.0  # about what two ranks take to their first step on two cores
STEP_SECONDS = 1.5
PATIENCE = 1200.0  # seconds, for a whole job
# What a clock or the machine decides; TRL counts `num_tokens` from 0 in each attempt.
MEASURED = ("seconds/", "memory/", "episodes_per_second", "tokens_per_second", "train_", "num_tokens")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: which rank, what it had said of itself, and the seconds since it started."""

    rank: int
    where: str
    seconds: float


def survive(verb: str, zero: int, folder: Path, seed: int) -> dict[str, Any]:
    """Both runs of a job in `folder`, and whether their results are the same."""
    policy = tiny_policy(folder / "policy")
    places = {name: folder / name for name in ("undisturbed", "killed")}
    own = ["--gpus", "2", "--zero", str(zero), "--max_restarts", str(NUM_KILLS)]
    kills: list[Kill] = []
    restarts = 0
    seconds: dict[str, float] = {}
    for name, place in places.items():
        place.mkdir()
        begin = time.monotonic()
        with (place / "out.txt").open("wb") as out:
            command = [
                sys.executable,
                "-m",
                "rlhf",
                "launch",
                *own,
                "--",
                *getattr(cases, verb)(place, policy, **VALUES),
            ]
            process = subprocess.Popen(command, cwd=cases.ROOT, env=cases.environment(), stdout=out, stderr=out)
            try:
                if name == "killed":
                    kills = list(_kill_often(process, place, random.Random(f"{seed}/{verb}")))
                code = process.wait(timeout=PATIENCE)
            finally:
                process.kill()
        seconds[name] = round(time.monotonic() - begin, 1)
        said = (place / "out.txt").read_text(encoding="utf-8", errors="replace")
        restarts = said.count("launch: restart ")
        if code != 0:
            raise SystemExit(f"{verb}, {name}: exit code {code}\n{said[-5000:]}")
    whole, killed = (place / "run" for place in places.values())
    logged, again = rows(whole), rows(killed)
    return {
        "verb": verb,
        "zero": zero,
        "steps": VALUES["max_steps"],
        "kills": [asdict(kill) for kill in kills],
        "restarts": restarts,
        "seconds": seconds,
        "weights": sum(tensor.numel() for tensor in cases.weights(whole).values()),
        "weights_equal": _same_weights(whole, killed),
        "last_step": logged[-1],
        "last_step_equal": logged[-1] == again[-1],
        "rows": len(logged),
        "rows_equal": sum(one == other for one, other in zip(logged, again, strict=False)),
        "rows_of_killed": len(again),
        "processes_left": len(cases.alive(folder)),
    }


def rows(run: Path) -> list[dict[str, Any]]:
    """The steps' rows of metrics.jsonl, without what a clock decides."""
    kept = [row for row in cases.rows(run) if "loss" in row or "score" in row]
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in kept]


def _kill_often(process: subprocess.Popen[bytes], place: Path, dice: random.Random) -> list[Kill]:
    """Kill one rank of each of the next attempts."""
    kills: list[Kill] = []
    old: set[int] = set()  # processes of earlier attempts
    reached = 0
    for number in range(NUM_KILLS):
        rank = dice.randrange(2)
        in_start, share = number % 3 == 0, dice.random()
        files = RankFiles(launch_folder(place / "run"), rank)
        mark = _when(process, lambda files=files, old=frozenset(old): _new_mark(files, old))
        begin = time.monotonic()
        if not in_start:
            _when(process, lambda files=files, step=reached: _step(files) > step)
        time.sleep(share * (START_SECONDS if in_start else STEP_SECONDS))  # the random moment itself
        reached = max(reached, _step(files))
        where = files.beat.read_text(encoding="utf-8") if files.beat.is_file() else "its start"
        os.kill(mark.pid, signal.SIGKILL)
        kills.append(Kill(rank, where, round(time.monotonic() - begin, 2)))
        print(f"  kill {number + 1}: {kills[-1]}", file=sys.stderr, flush=True)
        old |= {mark.pid for one in range(2) if (mark := read_mark(RankFiles(files.folder, one)))}
    return kills


def _when(process: subprocess.Popen[bytes], come: Any) -> Any:
    """What `come()` gives as soon as it gives something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if found := come():
            return found
        time.sleep(0.005)  # another process's step: nothing to wait on but its file
    raise SystemExit(f"the job ended, with exit code {process.returncode}, or stands still, before its kill")


def _new_mark(files: RankFiles, old: frozenset[int]) -> Mark | None:
    mark = read_mark(files)
    return mark if mark and mark.pid not in old else None


def _step(files: RankFiles) -> int:
    """How far the rank says it is."""
    try:
        digits = [word for word in files.beat.read_text(encoding="utf-8").replace(",", "").split() if word.isdigit()]
    except OSError:
        return 0
    return int(digits[-1]) if digits else 0


def _same_weights(one: Path, other: Path) -> bool:
    import torch

    left, right = cases.weights(one), cases.weights(other)
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| job | kills | in the start / in training | restarts | weights equal | rows of the log equal | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        starts = sum(kill["where"] == "its start" for kill in one["kills"])
        equal = f"all {one['weights']:,}" if one["weights_equal"] else "no"
        seconds = f"{one['seconds']['killed']:.0f}, undisturbed {one['seconds']['undisturbed']:.0f}"
        lines.append(
            f"| {one['verb']}, ZeRO-{one['zero']}, {one['steps']} steps | {len(one['kills'])} | "
            f"{starts} / {len(one['kills']) - starts} | {one['restarts']} | {equal} | "
            f"{one['rows_equal']} of {one['rows']} | {seconds} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the jobs one after the other and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for verb in arguments.only:
        with tempfile.TemporaryDirectory(prefix="launch-survive-") as folder:
            results.append(survive(verb, JOBS[verb], Path(folder), arguments.seed))
        told = {"seed": arguments.seed, "processors": os.cpu_count(), "jobs": results}
        arguments.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
