"""The command: read it, write its files, start the ranks, start them again where that may help."""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.launcher.files import deepspeed_settings, launch_folder, make_folder, write_files
from rlhf.launcher.memory import next_setting
from rlhf.launcher.preflight import Place, check
from rlhf.launcher.settings import ALONE, is_on, output_dir, read_settings, split_command
from rlhf.launcher.slurm import Job, submit, write_script
from rlhf.launcher.watch import STOPPED, End, Watch, read_news
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
    nodes: int = field(default=1, metadata={"help": "Nodes. Start the same command on each; all see the run's folder."})
    node_rank: int | None = field(
        default=None, metadata={"help": "This node's number, 0 for the first; SLURM_NODEID by default."}
    )
    main_address: str | None = field(default=None, metadata={"help": "Address of node 0, as the others reach it."})
    main_port: int = field(
        default=29500,
        metadata={"help": "A free port of node 0, and after it one for each restart; one node finds its own."},
    )
    slurm: bool = field(
        default=False, metadata={"help": "Start nothing: write a SLURM job's script to the launch folder."}
    )
    submit: bool = field(default=False, metadata={"help": "With --slurm: submit it."})
    time: str = field(default="24:00:00", metadata={"help": "With --slurm: time limit of one start; it requeues."})


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
    _check_numbers(launch, verb)
    on_cpu = is_on(settings, "use_cpu") or (not launch.slurm and _count_gpus() == 0)
    if launch.slurm:
        ranks = _gpus_of_a_job(launch, verb)
    else:
        ranks = 1 if verb in ALONE else launch.gpus or (1 if on_cpu else _count_gpus())
    deepspeed = _deepspeed(launch, verb, settings)

    folder = launch_folder(output_dir(settings))
    place = _place(launch, ranks, on_cpu)
    told = {**settings, "deepspeed": "launch/zero1.json"} if deepspeed else settings
    mistakes = check(verb, told, place)
    if mistakes:
        print("\n".join(f"rlhf: {mistake}" for mistake in mistakes), file=sys.stderr)
        return 2
    make_folder(folder)
    if launch.slurm:
        _write_job(launch, folder, ranks, on_cpu, [verb, *flags], own)
        return 0
    if deepspeed is not None:
        flags = [*flags, "--deepspeed", str(folder / "deepspeed.json")]
    by_hand = ["torchrun", *_torchrun(launch, place), "-m", "rlhf", verb, *flags]
    write_files(folder, deepspeed, by_hand if place.is_first else None)
    return _run_attempts(launch, place, folder, [verb, *flags], settings, _environment(ranks, on_cpu))


def with_resume(verb: list[str]) -> list[str]:
    """The verb's command with `--resume true`, whatever it said before."""
    return [*_without(verb, "resume"), "--resume", "true"]


def _run_attempts(
    launch: LaunchConfig,
    place: Place,
    folder: Path,
    verb: list[str],
    settings: dict[str, Any],
    environment: dict[str, str],
) -> int:
    old_news = read_news(folder)
    for attempt in range(launch.max_restarts + 1):
        again = verb if attempt == 0 else with_resume(verb)
        end = _attempt(launch, place, folder, again, environment, attempt, old_news)
        if end.code == STOPPED:
            print("launch: stopped at a checkpoint, as SIGUSR1 asked; go on with --resume true", file=sys.stderr)
        elif end.message:
            print(f"rlhf: launch: {end.message}", file=sys.stderr)
        if end.out_of_memory:
            num_ranks = launch.nodes * place.num_ranks
            advice = next_setting(verb[0], settings, launch.zero or 0, launch.offload, num_ranks)
            print(f"rlhf: out of memory; next to try: {advice}", file=sys.stderr)
        if not end.may_help or attempt == launch.max_restarts:
            return end.code
        print(f"launch: restart {attempt + 1} of {launch.max_restarts}, from the newest whole checkpoint", flush=True)
        if launch.nodes == 1:
            place = _place(launch, place.num_ranks, place.num_gpus is None)  # another port
        else:  # the next one: at the old one a node that is quicker would meet what is left of the attempt before
            place = replace(place, port=launch.main_port + attempt + 1)
    raise AssertionError("unreachable")


def _attempt(
    launch: LaunchConfig,
    place: Place,
    folder: Path,
    verb: list[str],
    environment: dict[str, str],
    attempt: int,
    old_news: dict[str, int],
) -> End:
    first = _node_rank(launch) * place.num_ranks
    watch = Watch(
        folder,
        range(first, first + place.num_ranks),
        environment,
        attempt=attempt,
        hang_seconds=None if verb[0] in ALONE else launch.hang_seconds,
        old_news=old_news,
    )
    start = [sys.executable, "-m", "rlhf.launcher.agent", str(watch.ended), *_torchrun(launch, place)]
    return watch.run([*start, "-m", "rlhf.launcher.rank", str(folder), *verb])


def _check_numbers(launch: LaunchConfig, verb: str) -> None:
    if launch.gpus is not None and launch.gpus < 1:
        raise UserError(f"gpus: {launch.gpus} is no number of GPUs; set --gpus 1 or more")
    if launch.max_restarts < 0:
        raise UserError(f"max_restarts: {launch.max_restarts} is below 0; set 0 or more")
    if launch.hang_seconds <= 0:
        raise UserError(f"hang_seconds: {launch.hang_seconds:g} is no time; set some seconds, 600 by default")
    if launch.nodes < 1:
        raise UserError(f"nodes: {launch.nodes} is no number of nodes; set --nodes 1 or more")
    if launch.submit and not launch.slurm:
        raise UserError("submit: is for a SLURM job; add --slurm true")
    if verb in ALONE and ((launch.gpus or 1) > 1 or launch.nodes > 1):
        raise UserError(f"gpus: {verb} is one process and uses one GPU; leave out --gpus and --nodes")
    if launch.nodes == 1 or launch.slurm:
        return
    if launch.main_address is None:
        raise UserError("main_address: is not set, and several nodes must know where to meet; give node 0's address")
    if not 0 <= _node_rank(launch) < launch.nodes:
        raise UserError(
            f"node_rank: {_node_rank(launch)} is none of {launch.nodes} nodes; they count from 0 to {launch.nodes - 1}"
        )


def _node_rank(launch: LaunchConfig) -> int:
    if launch.nodes == 1:
        return 0
    if launch.node_rank is not None:
        return launch.node_rank
    number = os.environ.get("SLURM_NODEID", "")
    if not number.isdigit():
        raise UserError("node_rank: is not set; give each node its number, 0 for the first")
    return int(number)


def _deepspeed(launch: LaunchConfig, verb: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    deepspeed = deepspeed_settings(launch.zero or 0, launch.offload)
    if deepspeed is not None and verb in ALONE:
        raise UserError(f"zero: {verb} trains nothing, so there is nothing to shard; leave out --zero and --offload")
    if deepspeed is not None and "deepspeed" in settings:
        raise UserError("zero: the verb has a --deepspeed file of its own; leave out that or --zero and --offload")
    return deepspeed


def _place(launch: LaunchConfig, ranks: int, on_cpu: bool) -> Place:
    num_gpus = None if on_cpu or launch.slurm else _count_gpus()
    if launch.slurm or launch.nodes == 1:
        return Place(ranks, num_gpus, "127.0.0.1", choose_port("127.0.0.1", 0))
    return Place(ranks, num_gpus, str(launch.main_address), launch.main_port, _node_rank(launch) == 0)


def _gpus_of_a_job(launch: LaunchConfig, verb: str) -> int:
    if verb in ALONE:
        return 1
    if launch.gpus is None:
        raise UserError("gpus: is not set, and this machine is not the job's; give the GPUs of a node")
    return launch.gpus


def _write_job(launch: LaunchConfig, folder: Path, ranks: int, on_cpu: bool, verb: list[str], own: list[str]) -> None:
    for key in ("slurm", "submit", "time", "node_rank", "main_address", "main_port"):
        own = _without(own, key)
    job = Job(
        name=folder.stem,
        folder=folder,
        nodes=launch.nodes,
        ranks=ranks,
        uses_gpus=not on_cpu,
        time=launch.time,
        launch=[sys.executable, "-m", "rlhf", "launch", *own],
        verb=verb,
    )
    path = write_script(job)
    if launch.submit:
        print(submit(path))
    else:
        print(f"{path}: written; submit it with `sbatch {path}`, or with --submit true")


def _without(argv: list[str], key: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in argv:
        if word.startswith("--"):
            skip = word == f"--{key}" or word.startswith(f"--{key}=")
        if not skip:
            kept.append(word)
    return kept


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _torchrun(launch: LaunchConfig, place: Place) -> list[str]:
    where = ["--master_addr", place.address, "--master_port", str(place.port)]
    if launch.nodes > 1:
        where = ["--node_rank", str(_node_rank(launch)), *where]
    return ["--nnodes", str(launch.nodes), "--nproc_per_node", str(place.num_ranks), *where]


def _environment(ranks: int, on_cpu: bool) -> dict[str, str]:
    """The ranks' environment: unbuffered logs, stacks on a crash, a fair share of the processors."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    environment.setdefault("COLUMNS", "120")  # of a console that is a file
    if on_cpu:
        environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed looks for another
    return environment
