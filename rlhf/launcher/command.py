"""The command: read it, write its files, start the ranks, start them again where that may help."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.launcher import record
from rlhf.launcher.cause import Cause, read_cause
from rlhf.launcher.facts import differences, node_facts
from rlhf.launcher.files import deepspeed_settings, launch_folder, make_folder, write_files
from rlhf.launcher.meet import EndedElsewhere, Meeting
from rlhf.launcher.memory import flags as flags_of
from rlhf.launcher.memory import next_setting, smaller
from rlhf.launcher.preflight import Place, check
from rlhf.launcher.rank import RankFiles, read_mark
from rlhf.launcher.settings import ALONE, is_on, output_dir, read_settings, split_command
from rlhf.launcher.slurm import Job, check_time, submit, write_script
from rlhf.launcher.verdict import Lesson, Verdict, judge
from rlhf.launcher.watch import STOPPED, End, Watch, read_news
from rlhf.ports import choose_port

_OUT_OF_MEMORY = 1  # the exit code of a rank that ran out of memory
# Exit codes after which nothing is tried again: an error to mend, a stop that was asked for.
_ASKED_FOR = (STOPPED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_FOR_GOOD = (2, *_ASKED_FOR)
_COMES_WITHIN = 15.0  # seconds after its own failure in which a node that goes on has come to the meeting


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
    auto: bool = field(
        default=False,
        metadata={"help": "Where memory runs out, halve the micro-batch at the same global batch, and go on."},
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
    meet_seconds: float = field(
        default=600.0, metadata={"help": "How long nodes wait for each other before each attempt."}
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
    if is_on(settings, "resume") and record.is_finished(output_dir(settings)):  # as a job that SLURM starts once more
        print(f"launch: {output_dir(settings)} holds a finished run: nothing is left to do")
        return 0
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
    if mistakes and (launch.nodes == 1 or launch.slurm):
        print("\n".join(f"rlhf: {mistake}" for mistake in mistakes), file=sys.stderr)
        return 2
    make_folder(folder)
    if launch.slurm:
        _write_job(launch, folder, ranks, on_cpu, [verb, *flags], own)
        return 0
    if deepspeed is not None:
        flags = [*flags, "--deepspeed", str(folder / "deepspeed.json")]
    attempts = _Attempts(launch, place, folder, [verb, *flags], settings, _environment(ranks, on_cpu))
    if mistakes := attempts.begin(mistakes):
        print("\n".join(f"rlhf: {mistake}" for mistake in mistakes), file=sys.stderr)
        return 2
    by_hand = ["torchrun", *_torchrun(launch, place), "-m", "rlhf", *attempts.verb]
    write_files(folder, deepspeed, by_hand if place.is_first else None)
    return attempts.run()


def with_resume(verb: list[str]) -> list[str]:
    """The verb's command with `--resume true`, whatever it said before."""
    return [*_without(verb, "resume"), "--resume", "true"]


@dataclass
class _Attempts:
    """The attempts at one job on this node, one after another, in step with the other nodes."""

    launch: LaunchConfig
    place: Place
    folder: Path
    verb: list[str]
    settings: dict[str, Any]
    environment: dict[str, str]
    number: int = 0
    restarts: int = 0
    old_news: dict[str, int] = field(default_factory=dict)

    def begin(self, mistakes: list[str]) -> list[str]:
        """Meet the other nodes, if any. Returns all mistakes, this node's and those that only a comparison shows."""
        if self.launch.nodes == 1:
            self._take(self._carried())
            self.old_news = read_news(self.folder)
            return mistakes

        def decide(nodes: list[dict[str, Any]]) -> dict[str, Any]:
            wrong = differences(nodes)
            return {"mistakes": wrong, "changes": {} if wrong else self._carried()}

        own = ("zero", "offload", "nodes", "auto", "max_restarts")
        settings = {**self.settings, **{f"launch --{key}": getattr(self.launch, key) for key in own}}
        facts = node_facts(self.place.num_ranks, self.place.num_gpus, settings, mistakes)
        try:
            verdict = self._meet(facts, decide)
        except UserError as error:
            return [*mistakes, str(error)]
        self._take(verdict["changes"])
        return verdict["mistakes"]

    def run(self) -> int:
        """Run until all is done, or trying again helps no more. Returns the exit code."""
        while True:
            end = self._attempt()
            asked_for = not end.may_help and end.code in _ASKED_FOR
            cause = None if end.code == 0 or asked_for else self._cause()
            code = _OUT_OF_MEMORY if cause else end.code
            self._tell(end, cause)
            if code == 0 or (code in _FOR_GOOD and not end.may_help):
                return code
            if end.may_help and record.is_finished(output_dir(self.settings)):
                print("launch: the run was finished before that, and is whole: nothing to try again", flush=True)
                return 0
            lesson = self._lesson(end, cause)
            try:
                verdict = self._decide(lesson)
            except UserError as error:
                print(f"rlhf: {error}", file=sys.stderr)
                return code
            if not verdict.go:
                if lesson.out_of_memory:
                    self._advise(cause)
                return code
            self._next(verdict)

    def _carried(self) -> dict[str, int]:
        """What an earlier launch of a run that is resumed has set, once its record has it too."""
        if not is_on(self.settings, "resume"):
            record.forget(self.folder)
            return {}
        changes = record.remembered(self.folder) if self.launch.auto else {}
        if changes:
            record.take_settings(output_dir(self.settings), changes)
        return changes

    def _take(self, changes: dict[str, int]) -> None:
        self.settings = {**self.settings, **changes}
        for key in changes:
            self.verb = _without(self.verb, key)
        self.verb = [*self.verb, *flags_of(changes)]

    def _meet(self, facts: dict[str, Any], decide: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
        place = self.place
        node = _node_rank(self.launch)
        meeting = Meeting(
            self.folder, node, self.launch.nodes, self.number, place.address, place.port, self.launch.meet_seconds,
            has_ended=self._ended_elsewhere(),
        )  # fmt: skip
        verdict = meeting.hold(facts, decide)
        began = meeting.began()
        self.old_news = {name: when for name, when in read_news(self.folder).items() if when <= began}
        return verdict

    def _ended_elsewhere(self) -> Callable[[], bool]:
        """Whether a node has said that it fails for good, and has not come all the same."""
        since: list[float] = []

        def ended() -> bool:
            name = f"failed-{self.number}.json"
            news = read_news(self.folder).get(name, 0)
            if self.number == 0 or news in (0, self.old_news.get(name, 0)):
                return False
            since.append(time.monotonic())
            return since[-1] - since[0] > _COMES_WITHIN

        return ended

    def _attempt(self) -> End:
        first = _node_rank(self.launch) * self.place.num_ranks
        watch = Watch(
            self.folder,
            range(first, first + self.place.num_ranks),
            self.environment,
            attempt=self.number,
            hang_seconds=None if self.verb[0] in ALONE else self.launch.hang_seconds,
            old_news=self.old_news,
        )
        agent = [sys.executable, "-m", "rlhf.launcher.agent", str(watch.ended), *_torchrun(self.launch, self.place)]
        return watch.run([*agent, "-m", "rlhf.launcher.rank", str(self.folder), *self.verb])

    def _cause(self) -> tuple[RankFiles, Cause] | None:
        """The first rank of this node that said that its memory ran out, and where."""
        first = _node_rank(self.launch) * self.place.num_ranks
        ranks = [RankFiles(self.folder, rank) for rank in range(first, first + self.place.num_ranks)]
        told = [(files, cause) for files in ranks if (cause := read_cause(files.memory)) is not None]
        return min(told, key=lambda one: one[0].memory.stat().st_mtime_ns, default=None)

    def _tell(self, end: End, told: tuple[RankFiles, Cause] | None) -> None:
        if end.code == STOPPED:
            print("launch: stopped at a checkpoint, as SIGUSR1 asked; go on with --resume true", file=sys.stderr)
        elif told is not None:
            files, cause = told
            mark = read_mark(files)
            where = f"rank {files.rank} on {mark.host}" if mark else f"rank {files.rank}"
            print(f"rlhf: launch: {where} ran out of memory: {cause}; its log: {files.log}", file=sys.stderr)
        elif end.message:
            print(f"rlhf: launch: {end.message}", file=sys.stderr)

    def _lesson(self, end: End, told: tuple[RankFiles, Cause] | None) -> Lesson:
        short = end.out_of_memory or told is not None
        if not short:
            return Lesson(may_help=end.may_help)
        on_cpu = self.place.num_gpus is None
        changes = smaller(self.verb[0], self.settings, told[1] if told else None, on_cpu)
        return Lesson(out_of_memory=True, changes=changes)

    def _decide(self, lesson: Lesson) -> Verdict:
        left = self.launch.max_restarts - self.restarts
        alone = judge([lesson], self.launch.auto, left)
        if self.launch.nodes == 1:
            if alone.changes:
                self._record(alone.changes)
            return alone
        if not (self.launch.auto or alone.go):
            return alone

        def decide(nodes: list[dict[str, Any]]) -> dict[str, Any]:
            verdict = judge([Lesson(**node["lesson"]) for node in nodes], self.launch.auto, left)
            if verdict.changes:
                self._record(verdict.changes)
            return asdict(verdict)

        self._move_on()
        try:
            return Verdict(**self._meet({"lesson": asdict(lesson)}, decide))
        except EndedElsewhere:
            return Verdict(go=False)

    def _record(self, changes: dict[str, int]) -> None:
        record.remember(self.folder, changes)
        record.take_settings(output_dir(self.settings), changes)

    def _move_on(self) -> None:
        self.number += 1
        if self.launch.nodes == 1:
            self.place = _place(self.launch, self.place.num_ranks, self.place.num_gpus is None)  # another port
        else:  # the next one: at the old one a quicker node would meet what is left of the attempt before
            self.place = replace(self.place, port=self.launch.main_port + self.number)

    def _next(self, verdict: Verdict) -> None:
        if self.launch.nodes == 1:
            self._move_on()
            self.old_news = read_news(self.folder)
        self._take(verdict.changes or {})
        self.verb = with_resume(self.verb)
        if verdict.counts:
            self.restarts += 1
            count = f"restart {self.restarts} of {self.launch.max_restarts}"
            print(f"launch: {count}, from the newest whole checkpoint", flush=True)
        else:
            less = " ".join(flags_of(verdict.changes or {}))
            print(f"launch: goes on from the newest whole checkpoint with {less}; the result stays", flush=True)

    def _advise(self, told: tuple[RankFiles, Cause] | None) -> None:
        num_ranks = self.launch.nodes * self.place.num_ranks
        cause = told[1] if told else None
        zero, offload, on_cpu = self.launch.zero or 0, self.launch.offload, self.place.num_gpus is None
        advice = next_setting(self.verb[0], self.settings, zero, offload, num_ranks, cause, on_cpu)
        print(f"rlhf: out of memory; next to try: {advice}", file=sys.stderr)


def _check_numbers(launch: LaunchConfig, verb: str) -> None:
    if launch.gpus is not None and launch.gpus < 1:
        raise UserError(f"gpus: {launch.gpus} is no number of GPUs; set --gpus 1 or more")
    if launch.max_restarts < 0:
        raise UserError(f"max_restarts: {launch.max_restarts} is below 0; set 0 or more")
    if launch.hang_seconds <= 0:
        raise UserError(f"hang_seconds: {launch.hang_seconds:g} is no time; set some seconds, 600 by default")
    if launch.meet_seconds <= 0:
        raise UserError(f"meet_seconds: {launch.meet_seconds:g} is no time; set some seconds, 600 by default")
    if launch.nodes < 1:
        raise UserError(f"nodes: {launch.nodes} is no number of nodes; set --nodes 1 or more")
    if launch.submit and not launch.slurm:
        raise UserError("submit: is for a SLURM job; add --slurm true")
    if launch.slurm:
        check_time(launch.time)
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
