"""Where a run comes from: its ancestors, found on disk by their ids, back to the labels and the raw files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.records import Run
from rlhf.runs import file_sha256, read_run


@dataclass(frozen=True)
class Ancestor:
    """A run and the folder where it lies."""

    run: Run
    folder: Path


@dataclass(frozen=True)
class Lineage:
    """A run with all it was made from.

    Args:
        runs: by id, parents before children: the run itself is the last.
        missing: ids of parents that lie neither where the child's config says nor beside it: moved or removed,
            with all that was before them.
    """

    runs: dict[str, Ancestor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def data_file(self, ancestor: Ancestor, name: str) -> Path | None:
        """Where the file `name` of the run's data lies, unchanged; None where it is not to be found.

        Looked for where the config says, then under its name in the folders of the run's ancestors.
        """
        sha, given = ancestor.run.data_sha256[name], ancestor.run.config.get(name)
        if not isinstance(given, str):
            return None
        places = [Path(given), *(one.folder / Path(given).name for one in self.runs.values())]
        return next((path for path in places if path.is_file() and file_sha256(path) == sha), None)


def run_folder(path: str | Path) -> Path | None:
    """The run folder of a policy, or of the run whose checkpoint it is; None for a model from elsewhere."""
    folder = Path(path)
    return next((one for one in (folder, folder.parent) if (one / "run.json").is_file()), None)


def trace(path: str | Path) -> Lineage:
    """The lineage of the run that made the model at `path`; an empty one where no run did."""
    lineage = Lineage()
    folder = run_folder(path)
    if folder is not None:
        _add(lineage, Ancestor(read_run(folder), folder))
    return lineage


def _add(lineage: Lineage, child: Ancestor) -> None:
    if child.run.id in lineage.runs:
        return
    wanted = {parent for parent in child.run.parents if parent not in lineage.runs}
    for folder in _folders(child) if wanted else ():
        found = _run_at(folder)
        if found is not None and found.id in wanted:
            wanted.discard(found.id)
            _add(lineage, Ancestor(found, folder))
    lineage.missing.extend(sorted(wanted - set(lineage.missing)))
    lineage.runs[child.run.id] = child


def _folders(child: Ancestor) -> Iterator[Path]:
    """Where a run's parents may lie: where its config says, then beside it."""
    for path in _paths(child.run.config):
        yield from (path, path.parent) if path.is_dir() else (path.parent,)
    yield from sorted(path for path in child.folder.resolve().parent.iterdir() if path.is_dir())


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)
    elif isinstance(value, str) and value:
        path = Path(value.partition("=")[2] or value)  # compare's name=path
        if len(value) < 4096 and "\0" not in value and "\n" not in value and path.exists():
            yield path


def _run_at(folder: Path) -> Run | None:
    if not (folder / "run.json").is_file():
        return None
    try:
        return read_run(folder)
    except UserError:  # a run.json of another program, or a broken one: no parent of ours
        return None
