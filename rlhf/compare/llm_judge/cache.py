"""What a judge answered, on disk: one line a request, so that nothing is asked, or paid, twice."""

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, disk_full_as_user_error
from rlhf.records import Messages, parse_record

try:
    import fcntl
except ImportError:  # Windows: two runs on one cache are then not noticed
    fcntl = None


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered to one request; counts are None where it does not tell them."""

    text: str
    finish: str | None  # finish_reason: stop, length, ...
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class _Line(Reply):
    key: str


def request_key(model: str, messages: Messages, sampling: dict[str, Any]) -> str:
    """The SHA-256 of all that an answer depends on. Where the model is served is not part of it."""
    return hashlib.sha256(json.dumps([model, messages, sampling], sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Replies by request key, appended to a JSONL file; in memory only where `path` is None.

    A line is with the system before `put` returns, so a kill loses the requests in flight at most. A
    last line without its end, which a kill or a full disk leaves, is cut off. Raises UserError for a
    file that cannot be opened, is in use by another run, or holds a broken line before the last.
    """

    def __init__(self, path: str | None) -> None:
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._file: int | None = None
        self._path = Path(path or "")
        if path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"cache: {path} cannot be written ({error.strerror}); give another file") from None
        try:
            self._lock_file()
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> Reply | None:
        """The reply to this request, None where it was not asked yet."""
        with self._lock:
            return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. Raises UserError where the disk is full; nothing is written after that."""
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        with self._lock:
            self._replies[key] = reply
            if self._file is None:
                return
            try:
                with disk_full_as_user_error(self._path, "free some and run again; all but the last answer is kept"):
                    while line:
                        line = line[os.write(self._file, line) :]
            except BaseException:
                os.close(self._file)  # a next line would be glued to this one's torn half
                self._file = None
                raise

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _lock_file(self) -> None:
        assert self._file is not None
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
        except OSError:
            raise UserError(
                f"cache: {self._path} is in use by another run; wait for it, or give another file"
            ) from None

    def _read(self) -> None:
        assert self._file is not None
        data = self._path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            os.ftruncate(self._file, len(data) - len(torn))
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            where = f"cache: {self._path}, line {number}"
            row = parse_record(line.decode(errors="replace"), _Line, where)
            self._replies[row.key] = Reply(row.text, row.finish, row.tokens_in, row.tokens_out)
