"""Where a server listens."""

import socket

from rlhf.errors import UserError


def choose_port(host: str, port: int) -> int:
    """The port to listen on: `port` itself if it is free, any free one for 0.

    Raises UserError where the port is in use or not allowed, or the host is not this machine.
    """
    if not 0 <= port <= 65535:  # sockets take it modulo 65536
        raise UserError(f"port: {port} is not a port; choose one from 1024 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do: a port that only waits for its last connections to time out is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener.getsockname()[1]
    except socket.gaierror as error:
        raise UserError(f"host: `{host}` is not known ({error.strerror}); 127.0.0.1 is this machine alone") from None
    except OSError as error:
        raise UserError(
            f"port: {port} on {host} cannot be used ({error.strerror}); choose another --port, or 0 for any free one"
        ) from None


def url_of(host: str, port: int) -> str:
    """The address to type on this machine, also for a host that stands for all its addresses."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
