"""Work that comes in batches, on disk as it comes: what a kill leaves behind is whole, and is not done again."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rlhf.errors import UserError


class PartFile:
    """A line of JSON for each batch, in a file beside the results; open it as a context manager to add some.

    `done` is what lies there, rows by batch number; a last line that a kill cut off is taken away. Raises
    UserError for a file that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, list[dict[str, Any]]] = {}
        self._out: IO[str] | None = None
        if path.exists():
            self.done, whole = read_batches(path)
            with path.open("rb+") as file:
                file.truncate(whole)

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None

    def add(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Put a batch on disk before the next one is begun."""
        if self._out is None:  # no sooner: what fails before its first batch leaves no file
            self._out = self.path.open("a", encoding="utf-8")
        self._out.write(json.dumps({"batch": number, "rows": rows}, ensure_ascii=False) + "\n")
        self._out.flush()
        os.fsync(self._out.fileno())
        self.done[number] = rows


def read_batches(path: Path) -> tuple[dict[int, list[dict[str, Any]]], int]:
    """Rows by batch number, and how many bytes they take; the file may be written to meanwhile.

    A last line that is not whole is left out. Raises UserError for a file that holds something else.
    """
    done: dict[int, list[dict[str, Any]]] = {}
    whole = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                done[int(row["batch"])] = list(row["rows"])
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path}: holds no batches of ours; remove it and run again") from None
            whole += len(line)
    return done, whole
