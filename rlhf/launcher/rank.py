"""One rank's process: its log, its mark in the launch folder, and then the verb in its place.

python -m rlhf.launcher.rank FOLDER VERB ...
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

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
    def said(self) -> Path:
        """The exit code that it chose, written before anything of it was torn down."""
        return self.folder / "ranks" / f"rank-{self.rank}.said"

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
        self.said.unlink(missing_ok=True)
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


def own_address(address: str, port: int = 9) -> str | None:
    """This machine's own address on the way to another; None where there is no way, or no such name."""
    with suppress(OSError):
        for family, kind, _, _, place in socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(place)  # of UDP: looks up the way and sends nothing
                return str(probe.getsockname()[0])
    return None


def interface_to(address: str) -> str | None:
    """The network interface that leads to an address, or that has it; None where that cannot be told."""
    own = own_address(address)
    for name, entries in psutil.net_if_addrs().items():
        if own is not None and any(entry.address.split("%")[0] == own for entry in entries):
            return name
    return None


def choose_interface(environment: MutableMapping[str, str]) -> None:
    """Have gloo and NCCL use the interface that leads to the first node, unless the user has chosen one.

    Without it gloo takes the address that the host's name stands for: often another network's, or 127.0.1.1,
    which no other node can reach. One node needs none of this.
    """
    address = environment.get("MASTER_ADDR", "")
    if int(environment.get("GROUP_WORLD_SIZE", "1")) == 1 or not address:
        return
    interface = interface_to(address)
    if interface is None or (_is_loopback(own_address(address)) and not _is_loopback(address)):
        return  # a name that stands for 127.0.1.1 on its own host
    environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    environment.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")


def _is_loopback(address: str | None) -> bool:
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False


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
    choose_interface(os.environ)
    os.execv(sys.executable, [sys.executable, "-m", "rlhf.launcher.verb", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
