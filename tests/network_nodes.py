"""Two machines on this one: network namespaces with a cable (a veth pair) between them, and host names of their own.

They share the disk, as the nodes of a cluster do. It takes Linux, root, `ip` (iproute2) and `unshare` (util-linux).
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One of them.

    Args:
        name: its namespace and host name.
        address: its own, on its only interface beside `lo`.
        interface: that interface.
    """

    name: str
    address: str
    interface: str

    def command(self, words: list[str]) -> list[str]:
        """The command that runs `words` on this node."""
        named = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named, self.name, *words]

    def set_link(self, state: str) -> None:
        """Plug its cable (`up`) or pull it (`down`)."""
        _ip("-n", self.name, "link", "set", self.interface, state)


class NotAllowed(Exception):
    """This process may make no namespaces; says why."""


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """The nodes, gone afterwards. Raises NotAllowed where they cannot be made."""
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            raise NotAllowed(f"the program {program} is missing")
    tag = secrets.token_hex(3)  # an interface's name has 15 characters at most
    subnet = f"10.{os.getpid() % 200 + 20}.{secrets.randbelow(250)}"
    nodes = Node(f"rl{tag}a", f"{subnet}.1", f"ve{tag}a"), Node(f"rl{tag}b", f"{subnet}.2", f"ve{tag}b")
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        ends = [("name", node.interface, "netns", node.name) for node in nodes]
        _ip("link", "add", *ends[0][1:], "type", "veth", "peer", *ends[1])
        for node in nodes:
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.name, "link", "set", "lo", "up")
            node.set_link("up")
        tried = subprocess.run(nodes[0].command(["true"]), capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            raise NotAllowed(tried.stderr.strip())
        yield nodes
    finally:
        for node in nodes:  # with a namespace go its interfaces
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotAllowed(f"ip {' '.join(words)}: {done.stderr.strip()}")
