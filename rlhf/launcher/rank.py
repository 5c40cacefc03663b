"""One rank's process: its log, its mark in the launch folder, and then the verb in its place.

python -m rlhf.launcher.rank FOLDER VERB ...
"""

import ctypes
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT = "RLHF_BEAT"  # the file in which a trainer says how far it is; `rlhf.training` writes it
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankFiles:
    """Where one rank of a launch writes."""

    folder: Path
    rank: int

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "logs" / f"rank-{self.rank}.log"

    @property
    def mark(self) -> Path:
        """Its process and host, as JSON."""
        return self.folder / "ranks" / f"rank-{self.rank}.json"

    @property
    def beat(self) -> Path:
        """How far its training is; touched at every step."""
        return self.folder / "ranks" / f"rank-{self.rank}.beat"

    @property
    def memory(self) -> Path:
        """What it was doing when its memory ran out, as JSON (`rlhf.launcher.cause`)."""
        return self.folder / "ranks" / f"rank-{self.rank}.memory.json"

    @property
    def traceback(self) -> Path:
        """The whole traceback of that error, of which the log has one line."""
        return self.folder / "logs" / f"rank-{self.rank}.traceback"

    def forget(self) -> None:
        """Remove what an earlier attempt left, but for the log."""
        self.mark.unlink(missing_ok=True)
        self.beat.unlink(missing_ok=True)
        self.memory.unlink(missing_ok=True)


@dataclass(frozen=True)
class Mark:
    """A rank's process."""

    pid: int
    host: str


def read_mark(files: RankFiles) -> Mark | None:
    """The rank's process; None before it has started."""
    try:
        return Mark(**json.loads(files.mark.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that happens (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Become the verb."""
    die_with_parent()
    files = RankFiles(Path(argv[0]), int(os.environ["RANK"]))
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for early in (signal.SIGUSR1, signal.SIGUSR2):  # while libraries load; the trainer listens later
        signal.signal(early, signal.SIG_IGN)
    part = files.mark.with_suffix(".part")
    part.write_text(json.dumps(asdict(Mark(os.getpid(), socket.gethostname()))), encoding="utf-8")
    part.replace(files.mark)
    os.environ[BEAT] = str(files.beat)
    os.execv(sys.executable, [sys.executable, "-m", "rlhf.launcher.verb", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
