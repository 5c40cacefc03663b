"""Nodes meet before each attempt: in the launch folder, by files, and at the main port.

Each node writes what it is; node 0 compares and writes the verdict. Node 0's file has a word of this meeting's own,
which the others answer with, and its verdict names theirs: so no file of an earlier launch counts, and each node has
seen what another wrote, which proves that the folder is shared.
"""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

_POLL = 0.2  # seconds
_CONNECT = 5.0  # seconds for one try to reach node 0
_REACH = 30.0  # seconds of such tries
_LINGER = 15.0  # seconds longer than node 0 that others wait, whose verdict says who did not come

Facts = dict[str, Any]


class EndedElsewhere(Exception):
    """Another node has ended for good while this one waited for it."""


@dataclass
class Meeting:
    """One meeting of all nodes.

    Args:
        folder: the launch folder, on a disk that all see.
        node: this node's number. Node 0 presides.
        num_nodes: how many there are.
        attempt: which attempt is to begin.
        address, port: where node 0 listens for the ranks, and meanwhile for the other nodes.
        seconds: how long to wait for all.
        has_ended: whether another node says that it will not come.
    """

    folder: Path
    node: int
    num_nodes: int
    attempt: int
    address: str
    port: int
    seconds: float
    has_ended: Callable[[], bool] = field(default=lambda: False)

    def file(self, node: int) -> Path:
        """Where a node writes."""
        return self.folder / "ranks" / f"node-{node}-{self.attempt}.json"

    def hold(self, facts: Facts, decide: Callable[[list[Facts]], Facts]) -> Facts:
        """Meet, and return the verdict: what `decide`, called on node 0 with all nodes' facts, made of them.

        Raises UserError where a node does not come in time, cannot reach the main port, or has another's number,
        and EndedElsewhere where one has given up.
        """
        me = {"host": socket.gethostname(), "word": uuid.uuid4().hex, "facts": facts}
        return self._preside(me, decide) if self.node == 0 else self._attend(me)

    def began(self) -> int:
        """When the last node came, in the shared disk's own time: what was written before is of an earlier attempt."""
        times = [path.stat().st_mtime_ns for node in range(1, self.num_nodes) if (path := self.file(node)).exists()]
        return max(times, default=0)

    def _preside(self, me: Facts, decide: Callable[[list[Facts]], Facts]) -> Facts:
        with _listener(self.address, self.port, me["word"]) as busy:
            self._write(me)
            came: dict[int, Facts] = {}
            for _ in self._waiting(self.seconds):
                told = {node: self._read(node) for node in range(1, self.num_nodes)}
                came = {node: one for node, one in told.items() if one and one.get("answers") == me["word"]}
                if len(came) == self.num_nodes - 1:
                    break
        missing = [str(node) for node in range(1, self.num_nodes) if node not in came]
        if missing:
            error = self._did_not_come(missing)
        elif busy:
            error = busy
        elif unreached := [node for node, one in came.items() if one["unreached"]]:
            error = self._cannot_reach(unreached[0], came[unreached[0]])
        else:
            error = ""
        verdict = {} if error else decide([me["facts"], *[came[node]["facts"] for node in sorted(came)]])
        words = {str(node): one["word"] for node, one in came.items()}
        self._write({**me, "words": words, "error": error, "verdict": verdict})
        if error:
            raise UserError(error)
        return verdict

    def _attend(self, me: Facts) -> Facts:
        answered, unreached, since = "", "", 0.0
        for _ in self._waiting(self.seconds + _LINGER):
            first = self._read(0)
            mine = self._read(self.node)
            if answered and mine and mine["word"] != me["word"]:
                raise UserError(
                    f"node_rank: {self.node} is this node's and {mine['host']}'s; give each node a number of its own"
                )
            if not first:
                continue
            if first.get("words", {}).get(str(self.node)) == me["word"]:
                if first["error"]:
                    raise UserError(first["error"])
                return first["verdict"]
            if first["word"] != answered:
                unreached = _try_to_reach(self.address, self.port, first["word"])
                since = since or time.monotonic()
                if unreached and time.monotonic() - since < min(_REACH, self.seconds / 2):
                    continue  # an old file, or node 0 does not listen yet
                answered = first["word"]
                self._write({**me, "answers": answered, "unreached": unreached})
        raise UserError(
            f"nodes: node 0 did not come within {self.seconds:g} s (--meet_seconds); start the same command there with "
            f"--node_rank 0. If it runs, {self.folder} is not the same folder on both: put --output_dir on a disk that "
            "all nodes share"
        )

    def _waiting(self, seconds: float) -> Iterator[None]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield
            if self.has_ended():
                raise EndedElsewhere
            time.sleep(_POLL)  # files of other hosts: a shared disk tells nobody of them

    def _did_not_come(self, missing: list[str]) -> str:
        who = f"node {missing[0]}" if len(missing) == 1 else f"nodes {', '.join(missing)}"
        there = "there with --node_rank " + missing[0] if len(missing) == 1 else "there, each with its --node_rank"
        return (
            f"nodes: {who} did not come within {self.seconds:g} s (--meet_seconds); start the same command {there}. If "
            f"it runs, {self.folder} is not the same folder on all: put --output_dir on a disk that all nodes share"
        )

    def _cannot_reach(self, node: int, told: Facts) -> str:
        return (
            f"main_address or main_port: node {node} on {told['host']} cannot reach {self.address}:{self.port} "
            f"({told['unreached']}); open that port on node 0's firewall, or choose another "
            "--main_address or --main_port"
        )

    def _write(self, content: Facts) -> None:
        path = self.file(self.node)
        part = path.with_name(f".{path.name}.{content['word']}")
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(path)

    def _read(self, node: int) -> Facts | None:
        try:
            found = json.loads(self.file(node).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "word" in found else None


@contextmanager
def _listener(address: str, port: int, word: str) -> Iterator[str]:
    """Meanwhile say a word to whoever connects; yields what is wrong where the port cannot be used, else nothing.

    The other side hangs up first: else the port would stay occupied for a while, where the ranks are to meet.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(where)
        except OSError as error:
            yield f"main_port: {port} on {address} cannot be used ({error.strerror}); choose another --main_port"
            return
        server.listen()
        server.settimeout(_POLL)
        done = threading.Event()
        thread = threading.Thread(target=_serve, args=(server, word, done), daemon=True)
        thread.start()
        try:
            yield ""
        finally:
            done.set()
            thread.join()


def _serve(server: socket.socket, word: str, done: threading.Event) -> None:
    while not done.is_set():
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_CONNECT)
                connection.sendall(word.encode())
                connection.recv(1)  # until it hangs up


def _try_to_reach(address: str, port: int, word: str) -> str:
    """Connect to node 0 and hear its word; empty where that went well, else what did not."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT) as connection:
            heard = b""
            while len(heard) < len(word) and (more := connection.recv(64)):
                heard += more
    except OSError as error:
        return error.strerror or str(error)
    return "" if heard.decode(errors="replace") == word else "something else answers there"
