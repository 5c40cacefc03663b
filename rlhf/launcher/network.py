"""Whether this node still reaches the first one: a cut network gives no sign by itself, all ranks just wait."""

import socket
import time
from dataclasses import dataclass

import psutil

from rlhf.launcher.rank import interface_to

CUT = 30.0  # seconds without an answer of the first node
_PROBE = 5.0  # seconds between two looks
_ANSWER = 3.0  # seconds in which the first node has to answer


@dataclass
class Network:
    """The way from this node to the first one's main port, where torchrun listens as long as the job runs."""

    address: str
    port: int
    _looked: float = 0.0
    _troubled: float | None = None  # since when

    def cut(self) -> str | None:
        """What is wrong, where that has been so for `CUT` seconds; looks every few seconds only."""
        now = time.monotonic()
        if now - self._looked < _PROBE:
            return None
        wrong = self.trouble()
        self._looked = time.monotonic()
        self._troubled = None if wrong is None else now if self._troubled is None else self._troubled
        return wrong if self._troubled is not None and self._looked - self._troubled > CUT else None

    def trouble(self) -> str | None:
        """What this node sees now of a network that is down; often nothing."""
        interface = interface_to(self.address)
        status = psutil.net_if_stats().get(interface) if interface else None
        if interface and status is not None and not status.isup:
            return f"this node's network interface {interface} is down"
        try:
            socket.create_connection((self.address, self.port), timeout=_ANSWER).close()
        except ConnectionRefusedError:  # an answer; torchrun may have ended there
            return None
        except OSError as error:
            return f"the first node cannot be reached at {self.address}:{self.port} ({error})"
        return None


def network_of(command: list[str]) -> Network | None:
    """Where several nodes meet, from torchrun's arguments; None for one node."""
    if "--node_rank" not in command:
        return None
    address, port = (command[command.index(flag) + 1] for flag in ("--master_addr", "--master_port"))
    return Network(address, int(port))
