"""What a launch has to do with a run's record: whether it is finished, and other settings for one that is not.

A run may be resumed with its own settings only. Those that `--auto true` changes leave the result as it is.
"""

import dataclasses
import json
from pathlib import Path

from rlhf.errors import UserError
from rlhf.records import Run, make_id, write_whole
from rlhf.runs import known_settings, read_run

_CHANGED = "auto.json"


def take_settings(output_dir: Path, changes: dict[str, int]) -> None:
    """Write them into run.json, and the id that a run with them has. Nothing where no run was begun.

    Raises UserError where the record is not this version's, whose ids are made otherwise.
    """
    if not (output_dir / "run.json").is_file():
        return
    run = read_run(output_dir)
    if _id(run) != run.id:
        raise UserError(
            f"{output_dir}: its run.json was written by another version, or edited, so that --auto cannot change "
            "its settings; start again in another --output_dir"
        )
    changed = dataclasses.replace(run, config={**run.config, **changes})
    changed = dataclasses.replace(changed, id=_id(changed))
    text = json.dumps(dataclasses.asdict(changed), indent=2, ensure_ascii=False)
    write_whole(output_dir / "run.json", [text, "\n"])


def is_finished(output_dir: Path) -> bool:
    """Whether the run in a folder has come to its end: a rank that dies later has nothing left to do."""
    try:
        return read_run(output_dir).finished
    except UserError:  # none there, or one that starting again will tell of
        return False


def _id(run: Run) -> str:
    identity = make_id("run", run.stage, known_settings(run.config), run.data_sha256, sorted(set(run.parents)))
    return identity.replace("run-", f"{run.stage}-")


def remember(folder: Path, changes: dict[str, int]) -> None:
    """Note in the launch folder what `--auto true` has set, for a later `--resume true`."""
    write_whole(folder / _CHANGED, [json.dumps({**remembered(folder), **changes}), "\n"])


def remembered(folder: Path) -> dict[str, int]:
    """What was noted; empty where nothing was."""
    try:
        return {str(key): int(value) for key, value in json.loads((folder / _CHANGED).read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def forget(folder: Path) -> None:
    """A run that begins anew has the settings that it was given."""
    (folder / _CHANGED).unlink(missing_ok=True)
