"""Ten SIGKILLs: two ranks train under `rlhf launch`, one is killed again and again, and the result must be the same.

python benchmarks/launch_survive.py [--only sft ...] [--seed 0]

Each job runs twice on two CPU ranks with DeepSpeed: undisturbed, and in one launch with --max_restarts 10 in which a
random rank is killed at ten random moments. Four of them fall into the eight seconds after a rank's first line
(imports, loading, resuming), the others some random time after the job has come further than before, so that it gets
home. Weights and logged metrics are compared to the bit. Results of jobs that are not asked for stay in the file.
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
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parents[1]))

from rlhf.launcher.files import launch_folder
from rlhf.launcher.rank import Mark, RankFiles, read_mark
from tests import launch_cases as cases
from tests.tiny import tiny_policy

OUT = Path(__file__).parent / "results" / "launch_survive.json"
JOBS = {"sft": 2, "dpo": 3, "ppo": 2}  # verb and ZeRO stage
NUM_KILLS = 10
STEPS = {"sft": 800, "dpo": 600, "ppo": 400}  # of 0.05 to 0.2 s: more than all kills leave time for
VALUES = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
START_SECONDS = 8.0  # about what two ranks take to their first step on two cores
STEP_SECONDS = 0.3  # a step and its checkpoint, or more
PATIENCE = 1200.0  # seconds, for a whole job
_OURS = "LAUNCH_SURVIVE"  # in the environment of all processes of a job
# What a clock or the machine decides; TRL counts `num_tokens` from 0 in each attempt.
MEASURED = ("seconds/", "memory", "episodes_per_second", "tokens_per_second", "train_", "num_tokens")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: which rank, what it had said of itself, and the seconds since it started."""

    rank: int
    where: str
    seconds: float


def survive(verb: str, zero: int, folder: Path, seed: int) -> dict[str, Any]:
    """Both runs of a job in `folder`, and whether their results are the same."""
    policy = tiny_policy(folder / "policy")
    if verb == "sft":  # the other two switch dropout off
        _set_dropout(policy)
    whole, killed = folder / "undisturbed", folder / "killed"
    one = _launch(verb, zero, whole, policy, None)
    other = _launch(verb, zero, killed, policy, random.Random(f"{seed}/{verb}"))
    logged, again = rows(whole / "run"), rows(killed / "run")
    return {
        "verb": verb,
        "zero": zero,
        "steps": STEPS[verb],
        "kills": [asdict(kill) for kill in other.kills],
        "restarts": other.restarts,
        "seconds": {"undisturbed": one.seconds, "killed": other.seconds},
        "weights": sum(tensor.numel() for tensor in cases.weights(whole / "run").values()),
        "weights_equal": _same_weights(whole / "run", killed / "run"),
        "last_step": logged[-1],
        "last_step_equal": logged[-1] == again[-1],
        "rows": len(logged),
        "rows_equal": sum(one == other for one, other in zip(logged, again, strict=False)),
        "rows_of_killed": len(again),
        "processes_left": len(_left(folder)),
        "locks_left": len(_locks()),
    }


@dataclass(frozen=True)
class Done:
    """A launch that came home, and the kills on its way."""

    kills: list[Kill]
    restarts: int
    seconds: float


def _launch(verb: str, zero: int, place: Path, policy: Path, dice: random.Random | None) -> Done:
    """One launch to its end; with `dice` it is killed on its way. Ends this program where the launch fails."""
    place.mkdir()
    own = ["--gpus", "2", "--zero", str(zero), "--max_restarts", str(NUM_KILLS)]
    job = getattr(cases, verb)(place, policy, max_steps=STEPS[verb], **VALUES)
    command = [sys.executable, "-m", "rlhf", "launch", *own, "--", *job]
    environment = {**cases.environment(), _OURS: str(place.parent)}
    begin = time.monotonic()
    with (place / "out.txt").open("wb") as out:
        process = subprocess.Popen(command, cwd=cases.ROOT, env=environment, stdout=out, stderr=out)
        try:
            kills = _kill_often(process, place, STEPS[verb], dice) if dice else []
            code = process.wait(timeout=PATIENCE)
        except BaseException:
            print((place / "out.txt").read_text(encoding="utf-8", errors="replace")[-5000:], file=sys.stderr)
            raise
        finally:
            process.kill()
    said = (place / "out.txt").read_text(encoding="utf-8", errors="replace")
    if code != 0:
        raise SystemExit(f"{verb}, {place.name}: exit code {code}\n{said[-5000:]}")
    return Done(kills, _restarts(place), round(time.monotonic() - begin, 1))


def _set_dropout(policy: Path) -> None:
    """Make the result depend on each rank's random state."""
    config = policy / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "attention_dropout": 0.1}))


def _left(folder: Path) -> list[int]:
    """Processes that a launch in `folder` started, by their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_OURS) == str(folder):
                found.append(process.pid)
    return found


def _locks() -> list[Path]:
    """Locks of the compiler's cache, of which none should be left."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    return [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern)]


def rows(run: Path) -> list[dict[str, Any]]:
    """The steps' rows of metrics.jsonl, without what a clock decides."""
    kept = [row for row in cases.rows(run) if "loss" in row or "score" in row]
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in kept]


def _kill_often(process: subprocess.Popen[bytes], place: Path, steps: int, dice: random.Random) -> list[Kill]:
    """Kill one rank of each of the next attempts at a job of so many steps."""
    kills: list[Kill] = []
    reached = 0
    for number in range(NUM_KILLS):
        rank = dice.randrange(2)
        in_start, share, moment = number % 3 == 0, dice.random(), dice.random()
        files = RankFiles(launch_folder(place / "run"), rank)
        _when(process, lambda number=number: _restarts(place) == number)
        mark = _when(process, lambda files=files: _living(files))
        begin = time.monotonic()
        if not in_start:
            step = reached + int(share * steps / NUM_KILLS)
            _when(process, lambda files=files, step=step: _step(files) > step)
        time.sleep(moment * (START_SECONDS if in_start else STEP_SECONDS))  # the random moment itself
        reached = max(reached, _step(files))
        where = (files.beat.read_text(encoding="utf-8") or "training") if files.beat.is_file() else "its start"
        os.kill(mark.pid, signal.SIGKILL)
        kills.append(Kill(rank, where, round(time.monotonic() - begin, 2)))
        print(f"  kill {number + 1}: {kills[-1]}", file=sys.stderr, flush=True)
    return kills


def _restarts(place: Path) -> int:
    """How often the launcher has said that it starts the ranks again."""
    return (place / "out.txt").read_text(encoding="utf-8", errors="replace").count("launch: restart ")


def _living(files: RankFiles) -> Mark | None:
    """The rank's mark, where it is not one of an attempt that has ended."""
    mark = read_mark(files)
    with suppress(psutil.Error):
        if mark and psutil.Process(mark.pid).status() != psutil.STATUS_ZOMBIE:
            return mark
    return None


def _when(process: subprocess.Popen[bytes], come: Any) -> Any:
    """What `come()` gives as soon as it gives something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if found := come():
            return found
        time.sleep(0.005)  # another process's step: nothing to wait on but its file
    raise SystemExit(f"the job ended, with exit code {process.returncode}, or stands still, before its kill")


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
    for verb in arguments.only:
        with tempfile.TemporaryDirectory(prefix="launch-survive-") as folder:
            done = survive(verb, JOBS[verb], Path(folder), arguments.seed)
        there = json.loads(arguments.out.read_text(encoding="utf-8"))["jobs"] if arguments.out.is_file() else []
        jobs = {**{job["verb"]: job for job in there}, verb: {"seed": arguments.seed, **done}}
        told = {"processors": os.cpu_count(), "jobs": [jobs[verb] for verb in JOBS if verb in jobs]}
        arguments.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        print(table(told["jobs"]))


if __name__ == "__main__":
    main()
