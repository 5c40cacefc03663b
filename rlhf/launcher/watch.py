"""Start this node's ranks and watch them: the first that dies or hangs ends them all, and is named."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rlhf.extension_lock import drop_left_locks
from rlhf.launcher.memory import is_out_of_memory
from rlhf.launcher.network import CUT, Network, network_of
from rlhf.launcher.rank import RankFiles, read_mark

STOPPED = 75  # EX_TEMPFAIL, as `rlhf.training`: a checkpoint was asked for and is written
HUNG = 124  # as timeout(1)
USER_ERROR = 2  # as `rlhf.cli`: the user has to mend something
_POLL = 0.2  # seconds
_AGAIN = 2.0  # seconds between signals to ranks that do not listen yet
_GRACE = 10.0  # seconds in which a node whose ranks die with others' may find out why its own did
_LINES = 15
# No consequence of another rank's end; NCCL aborts ranks that lost another with SIGABRT.
_OWN_SIGNALS = [-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL]


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    Args:
        code: the first failing rank's exit code, 128 + N for signal N, 0 where all is done.
        message: who failed, where and how, with its last lines; empty where nothing failed.
        out_of_memory: whether that rank's log says so.
        may_help: whether the same once more may end otherwise: not after an error that the user must mend.
    """

    code: int
    message: str = ""
    may_help: bool = False
    out_of_memory: bool = False


@dataclass
class Watch:
    """One attempt at a job on this node.

    Args:
        folder: the launch folder.
        ranks: global ranks of this node.
        environment: theirs.
        attempt: 0, and one more for each restart; the nodes of a job tell each other by it.
        hang_seconds: a rank that neither steps nor prints for so long hangs; None: not watched.
        old_news: `read_news` from before this launch.
    """

    folder: Path
    ranks: range
    environment: dict[str, str]
    attempt: int = 0
    hang_seconds: float | None = None
    old_news: dict[str, int] = field(default_factory=dict)
    _wanted: list[int] = field(default_factory=list)  # signals that came in
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _printed: int = 0
    _told: float = 0.0
    _news_came: float | None = None
    _network: Network | None = None
    _begun: float = 0.0

    @property
    def ended(self) -> Path:
        """Where torchrun's failures are written."""
        return self.folder / "ranks" / f"ended-{self.ranks.start}.json"

    def news(self, attempt: int) -> Path:
        """Where the first node that fails tells the others so."""
        return self.folder / "ranks" / f"failed-{attempt}.json"

    def run(self, command: list[str]) -> End:
        """Start the ranks (`command` is a child process that does), copy rank 0's log to the console, and wait.

        No process of theirs is left after it.
        """
        for rank in self.ranks:
            RankFiles(self.folder, rank).forget()
        self.ended.unlink(missing_ok=True)
        self._printed = _size(RankFiles(self.folder, 0).log)
        self._network = network_of(command)
        self._begun = time.time()
        output = self.folder / "logs" / f"node-{self.ranks.start}.log"
        with output.open("ab") as log, self._listening():
            with _held_back(signal.SIGUSR1):
                agent = subprocess.Popen(
                    command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            try:
                end = self._wait(agent)
            finally:
                self._kill(agent)
        self._copy_console()
        if end.message:
            self._tell(end)
        return end

    def _tell(self, end: End) -> None:
        """Tell the other nodes; those that try again although this one will not, too."""
        told = json.dumps({"host": socket.gethostname(), "code": end.code, "may_help": end.may_help})
        for attempt in (self.attempt,) if end.may_help else (self.attempt, self.attempt + 1):
            part = self.news(attempt).with_suffix(f".{os.getpid()}")
            with suppress(OSError):
                part.write_text(told, encoding="utf-8")
                part.replace(self.news(attempt))

    def _wait(self, agent: subprocess.Popen[bytes]) -> End:
        while True:
            code = agent.poll()
            self._copy_console()
            if code is not None:
                return End(0) if code == 0 else self._failed(code)
            for number in self._wanted:
                if number != signal.SIGUSR1:
                    return End(128 + number, f"stopped by {signal.Signals(number).name}")
            if self._wanted and time.monotonic() - self._told > _AGAIN:
                self._told = time.monotonic()
                self._signal_ranks(signal.SIGUSR1)
            if (silent := self._silent()) is not None:
                return self._hung(*silent)
            if self._network is not None and (wrong := self._network.cut()) is not None:
                how = f"is cut off (for {CUT:.0f} s {wrong})"
                return End(HUNG, self._message(self.ranks.start, how), may_help=True)
            if self._failed_long_ago_elsewhere():
                return self._failed_elsewhere()
            time.sleep(_POLL)  # ranks tell by files and by their end: no one event to wait on

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGUSR1 goes to the ranks; SIGTERM and SIGINT end them."""
        numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda n, _: self._wanted.append(n)) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal_ranks(self, number: int) -> None:
        for rank in self.ranks:
            mark = read_mark(RankFiles(self.folder, rank))
            if mark:
                with suppress(ProcessLookupError):
                    os.kill(mark.pid, number)

    def _silent(self) -> tuple[int, float] | None:
        """The rank that gave no sign of life for longest, and for how many seconds, where that is too long."""
        if self.hang_seconds is None:
            return None
        now = time.monotonic()
        for rank in self.ranks:
            files = RankFiles(self.folder, rank)
            signs = (_time(files.mark), _time(files.beat), _size(files.log))
            if rank not in self._seen or self._seen[rank][0] != signs:
                self._seen[rank] = (signs, now)
        rank = min(self._seen, key=lambda rank: self._seen[rank][1])
        seconds = now - self._seen[rank][1]
        return (rank, seconds) if seconds > self.hang_seconds else None

    def _hung(self, rank: int, seconds: float) -> End:
        self._signal_ranks(signal.SIGUSR2)  # each writes to its log where it stands
        until = time.monotonic() + 2
        sizes = {one: _size(RankFiles(self.folder, one).log) for one in self.ranks}
        while time.monotonic() < until and any(
            _size(RankFiles(self.folder, one).log) == size for one, size in sizes.items()
        ):
            time.sleep(_POLL)  # until their stacks are in their logs
        # Ranks that wait for a hung one are silent too. One that was stopped is known for sure.
        rank = next((one for one in self.ranks if self._is_stopped(one)), rank)
        wrong = self._network.trouble() if self._network is not None else None
        network = f", and {wrong}: the network may be down," if wrong else ""
        how = f"hangs: no step and no line for {seconds:.0f} s (--hang_seconds){network}"
        return End(HUNG, self._message(rank, how), may_help=True)

    def _is_stopped(self, rank: int) -> bool:
        mark = read_mark(RankFiles(self.folder, rank))
        try:
            return mark is not None and psutil.Process(mark.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def _failed(self, code: int) -> End:
        try:
            failures = json.loads(self.ended.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            log = self.folder / "logs" / f"node-{self.ranks.start}.log"
            tail = "".join(f"\n    {line}" for line in last_lines(log))
            return End(
                code if code > 0 else 128 - code,
                f"torchrun on {socket.gethostname()} ended with {_how(code)}; its last lines, of {log}:{tail}",
                may_help=code < 0,
            )
        rank, code = self._first(failures)
        if code == STOPPED:
            return End(STOPPED, "")
        shell_code = code if code > 0 else 128 - code
        message = self._message(rank, f"ended with {_how(code)}")
        memory = is_out_of_memory(last_lines(RankFiles(self.folder, rank).log))
        return End(shell_code, message, may_help=code != USER_ERROR and not memory, out_of_memory=memory)

    def _first(self, failures: list[dict[str, Any]]) -> tuple[int, int]:
        """The rank that failed of itself, and its exit code: others fail because their connection to it broke.

        That may end them before it: then torchrun names them and not it, so what the ranks said goes before that.
        """
        said = {rank: code for rank in self.ranks if (code := _said(RankFiles(self.folder, rank))) is not None}
        failures = [{**one, "exit_code": said.get(one["rank"], one["exit_code"])} for one in failures]
        killed = [one for one in failures if one["exit_code"] in _OWN_SIGNALS]
        mistaken = [rank for rank in said if said[rank] == USER_ERROR]
        if mistaken and not killed:
            return min(mistaken, key=lambda rank: _time(RankFiles(self.folder, rank).said)), USER_ERROR
        first = min(killed or failures, key=lambda one: one["time"])
        return first["rank"], first["exit_code"]

    def _failed_long_ago_elsewhere(self) -> bool:
        """Whether another node has failed, and this one has had the time to say that it was its own doing."""
        news = self.news(self.attempt)
        if _time(news) in (0, self.old_news.get(news.name, 0)):
            return False
        self._news_came = self._news_came or time.monotonic()
        return time.monotonic() - self._news_came > _GRACE

    def _failed_elsewhere(self) -> End:
        told = json.loads(self.news(self.attempt).read_text(encoding="utf-8"))
        return End(told["code"], f"a rank on {told['host']} failed, and its message is there", told["may_help"])

    def _message(self, rank: int, how: str) -> str:
        files = RankFiles(self.folder, rank)
        mark = read_mark(files)
        host = mark.host if mark else socket.gethostname()
        try:
            where = f" during {files.beat.read_text(encoding='utf-8')}"
        except OSError:
            where = " before its first step"
        tail = "".join(f"\n    {line}" for line in last_lines(files.log))
        return f"rank {rank} on {host} {how}{where}; its last lines, of {files.log}:{tail}"

    def _kill(self, agent: subprocess.Popen[bytes]) -> None:
        """End whatever is left: the agent, the ranks, their groups and all their children."""
        left: list[psutil.Process] = []
        with suppress(psutil.Error):
            left = psutil.Process(agent.pid).children(recursive=True)
        groups = {mark.pid for rank in self.ranks if (mark := read_mark(RankFiles(self.folder, rank)))}
        for group in (*groups, agent.pid):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        # ninja gives each compiler a group of its own: of a rank that was killed only the session still tells them.
        left += [process for process in psutil.process_iter() if _session(process.pid) in {*groups, agent.pid}]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        agent.wait()
        psutil.wait_procs(left, timeout=10)
        drop_left_locks(self._begun)

    def _copy_console(self) -> None:
        log = RankFiles(self.folder, 0).log
        if 0 not in self.ranks or _size(log) <= self._printed:
            return
        with log.open("rb") as file:
            file.seek(self._printed)
            new = file.read()
        self._printed += len(new)
        sys.stdout.write(new.decode("utf-8", errors="replace"))
        sys.stdout.flush()


def read_news(folder: Path) -> dict[str, int]:
    """What earlier launches left of failures: file names and their times."""
    return {path.name: _time(path) for path in (folder / "ranks").glob("failed-*.json")}


def _said(files: RankFiles) -> int | None:
    try:
        return int(files.said.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:  # it has just ended
        return None


def last_lines(log: Path, count: int = _LINES) -> list[str]:
    """The last lines of a log, of a bar that was drawn over itself only what stood at the end."""
    try:
        text = log.read_bytes()[-100_000:].decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "SIGKILL (from someone, or from the kernel where memory ran out)"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@contextmanager
def _held_back(number: int) -> Iterator[None]:
    """Have the kernel keep a signal for this thread, and for processes started meanwhile until they let it in.

    SLURM signals every process of a step; a child that has only begun knows no handler yet and would die of it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
