"""The command: read it, write its files, start the ranks, start them again where that may help."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.launcher.files import deepspeed_settings, launch_folder, make_folder, write_files
from rlhf.launcher.preflight import Place, check
from rlhf.launcher.settings import ALONE, is_on, output_dir, read_settings, split_command
from rlhf.launcher.watch import STOPPED, End, Watch
from rlhf.ports import choose_port


@dataclass
class LaunchConfig:
    """Where a verb runs."""

    gpus: int | None = field(
        default=None,
        metadata={"help": "GPUs, and so processes, on each node; all by default. Without any GPU: CPU processes."},
    )
    zero: int | None = field(
        default=None, metadata={"help": "ZeRO stage: 0 (plain data parallel, the default), 1, 2 or 3."}
    )
    offload: str | None = field(
        default=None, metadata={"help": "Keep in CPU memory: optimizer (ZeRO-1 to 3), or params as well (ZeRO-3)."}
    )
    max_restarts: int = field(
        default=0, metadata={"help": "Times to go on from the newest whole checkpoint after a rank died or hung."}
    )
    hang_seconds: float = field(
        default=600.0, metadata={"help": "A rank that neither steps nor prints for so long ends the job."}
    )


class Config(NamedTuple):
    """What `rlhf launch` takes before the `--`."""

    launch: LaunchConfig


def run(argv: list[str]) -> int:
    """Launch a verb and return its exit code: 0, the first failing rank's, 124 for a hang, 75 for a stop on SIGUSR1.

    Raises UserError for a command that cannot work, before anything is started.
    """
    if argv and argv[0] in ("-h", "--help"):
        print("usage: rlhf launch [--key value ...] -- VERB --config FILE [--key value ...]\n")
        parse(Config, ["--help"], None)
    own, verb, flags = split_command(argv)
    launch = parse(Config, own, None).launch
    settings = read_settings(verb, flags)
    on_cpu = is_on(settings, "use_cpu") or _count_gpus() == 0
    ranks = _count_ranks(launch, verb, on_cpu)
    deepspeed = deepspeed_settings(launch.zero or 0, launch.offload)
    if deepspeed is not None and verb in ALONE:
        raise UserError(f"zero: {verb} trains nothing, so there is nothing to shard; leave out --zero and --offload")
    if deepspeed is not None and "deepspeed" in settings:
        raise UserError("zero: the verb has a --deepspeed file of its own; leave out that or --zero and --offload")

    folder = launch_folder(output_dir(settings))
    port = choose_port("127.0.0.1", 0)
    place = Place(ranks, None if on_cpu else _count_gpus(), "127.0.0.1", port)
    mistakes = check(verb, {**settings, **({"deepspeed": "launch/zero1.json"} if deepspeed else {})}, place)
    if mistakes:
        print("\n".join(f"rlhf: {mistake}" for mistake in mistakes), file=sys.stderr)
        return 2
    make_folder(folder)
    if deepspeed is not None:
        flags = [*flags, "--deepspeed", str(folder / "deepspeed.json")]
    write_files(folder, deepspeed, ["torchrun", *_torchrun(ranks, port), "-m", "rlhf", verb, *flags])
    environment = _environment(ranks, on_cpu)
    for attempt in range(launch.max_restarts + 1):
        end = _attempt(launch, folder, [verb, *flags], ranks, environment, attempt)
        if end.code == STOPPED:
            print("launch: stopped at a checkpoint, as SIGUSR1 asked; go on with --resume true", file=sys.stderr)
        elif end.message:
            print(f"rlhf: launch: {end.message}", file=sys.stderr)
        if not end.may_help or attempt == launch.max_restarts:
            return end.code
        print(f"launch: restart {attempt + 1} of {launch.max_restarts}, from the newest whole checkpoint", flush=True)
    raise AssertionError("unreachable")


def _attempt(
    launch: LaunchConfig, folder: Path, verb: list[str], ranks: int, environment: dict[str, str], attempt: int
) -> End:
    trains = verb[0] not in ALONE
    again = with_resume(verb) if attempt else verb
    port = choose_port("127.0.0.1", 0)
    place = [str(folder), *again]
    watch = Watch(
        folder,
        range(ranks),
        [],
        environment,
        attempt=attempt,
        hang_seconds=launch.hang_seconds if trains else None,
    )
    start = [sys.executable, "-m", "rlhf.launcher.agent", str(watch.ended), *_torchrun(ranks, port)]
    watch.command = [*start, "-m", "rlhf.launcher.rank", *place]
    return watch.run()


def with_resume(verb: list[str]) -> list[str]:
    """The verb's command with `--resume true`, whatever it said before."""
    kept: list[str] = []
    skip = False
    for word in verb:
        if word.startswith("--"):
            skip = word == "--resume" or word.startswith("--resume=")
        if not skip:
            kept.append(word)
    return [*kept, "--resume", "true"]


def _count_ranks(launch: LaunchConfig, verb: str, on_cpu: bool) -> int:
    if launch.gpus is not None and launch.gpus < 1:
        raise UserError(f"gpus: {launch.gpus} is no number of GPUs; set --gpus 1 or more")
    if launch.max_restarts < 0:
        raise UserError(f"max_restarts: {launch.max_restarts} is below 0; set 0 or more")
    if launch.hang_seconds <= 0:
        raise UserError(f"hang_seconds: {launch.hang_seconds:g} is no time; set some seconds, 600 by default")
    if verb in ALONE:
        if (launch.gpus or 1) > 1:
            raise UserError(f"gpus: {verb} is one process and uses one GPU; leave out --gpus")
        return 1
    return launch.gpus or (1 if on_cpu else _count_gpus())


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _torchrun(ranks: int, port: int) -> list[str]:
    place = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return ["--nnodes", "1", "--nproc_per_node", str(ranks), *place]


def _environment(ranks: int, on_cpu: bool) -> dict[str, str]:
    """The ranks' environment: unbuffered logs, stacks on a crash, a fair share of the processors."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    environment.setdefault("COLUMNS", "120")  # of a console that is a file
    if on_cpu:
        environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed looks for another
    return environment
