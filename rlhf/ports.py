"""Where a server listens."""

import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

_LENT = Path("/proc/sys/net/ipv4/ip_local_port_range")  # what Linux gives to connections, and to servers that ask for 0
_OURS = range(15_000, 30_000)  # over most services, under Kubernetes' node ports and what Linux lends by default
_TRIES = 100


def choose_port(host: str, port: int) -> int:
    """The port to listen on: `port` itself if it is free, any free one for 0.

    Whoever asks listens only later, torchrun after seconds. So a free one is none that the kernel lends by itself:
    else any connection that is opened meanwhile may be given it.

    Raises UserError where the port is in use or not allowed, or the host is not this machine.
    """
    if not 0 <= port <= 65535:  # sockets take it modulo 65536
        raise UserError(f"port: {port} is not a port; choose one from 1024 to 65535, or 0 for any free one")
    try:
        family, _, _, _, (address, *rest) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        for candidate in [] if port else _not_lent():
            with suppress(OSError):
                return _bind(family, (address, candidate, *rest[1:]))
        return _bind(family, (address, port, *rest[1:]))
    except socket.gaierror as error:
        raise UserError(f"host: `{host}` is not known ({error.strerror}); 127.0.0.1 is this machine alone") from None
    except OSError as error:
        raise UserError(
            f"port: {port} on {host} cannot be used ({error.strerror}); choose another --port, or 0 for any free one"
        ) from None


def _bind(family: int, address: tuple[Any, ...]) -> int:
    """Listen there as servers do and stop again; the port, also where the kernel chose it. Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # A port that only waits for its last connections to time out is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return int(listener.getsockname()[1])


def _not_lent() -> list[int]:
    """Some ports in an order of chance that no seed fixes; none where what the kernel lends is not known."""
    try:
        first, last = (int(word) for word in _LENT.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return []
    kept = [port for port in _OURS if not first <= port <= last]
    return random.SystemRandom().sample(kept, min(_TRIES, len(kept)))


def url_of(host: str, port: int) -> str:
    """The address to type on this machine, also for a host that stands for all its addresses."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
