"""Which policies make the points of reward against KL: compared ones, their checkpoints, and sweeps' further runs."""

import filecmp
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.compare.answers import same_place
from rlhf.compare.frontier.pool import BEST_OF_N
from rlhf.compare.statistics import UNDECIDED
from rlhf.errors import UserError
from rlhf.runs import read_run

_MOST_DIFFERING = 3  # settings that a label can name; where more differ the folder's name has to tell
_NO_SETTINGS = {"resume", "overwrite", "save_strategy", "save_steps", "save_total_limit", "logging_steps"}


@dataclass(frozen=True)
class Candidate:
    """A policy that is to be a point.

    Args:
        method: what its curve is called: a policy's name, or that of a sweep.
        run: the training run's name.
        path: the model's folder or Hub id.
        step: of the checkpoint; None for the finished run.
    """

    method: str
    run: str
    path: str
    step: int | None = None

    @property
    def key(self) -> str:
        """Its name within names of files."""
        return self.run if self.step is None else f"{self.run}.checkpoint-{self.step}"

    @property
    def setting(self) -> str:
        """What it is of its run, in words."""
        return "finished" if self.step is None else f"step {self.step}"


def find_candidates(
    policies: Mapping[str, str], reference: str, sweeps: Sequence[str], with_checkpoints: bool
) -> list[Candidate]:
    """Every point that the settings ask for, but the reference: runs in their order, each with its checkpoints first.

    Args:
        policies: name to path.
        reference: the start's path.
        sweeps: further runs as `method=path`; a method of a policy's name is that policy's.
        with_checkpoints: whether the `checkpoint-*` folders of each run are points too.

    Raises UserError for a sweep that names no method, or a method or run under a name that is taken.
    """
    runs = {name: Candidate(name, name, path) for name, path in policies.items() if not same_place(path, reference)}
    for entry in sweeps:
        method, path = _sweep(entry)
        if same_place(path, reference):
            raise UserError(f"sweeps: `{entry}` is the reference, which every run starts from; leave it out")
        there = [name for name, run in runs.items() if same_place(run.path, path)]
        name = there[0] if there else _free_name(path, {*runs, *policies}, entry)
        runs[name] = Candidate(method, name, path)
    found = []
    for run in runs.values():
        steps = checkpoints(run.path) if with_checkpoints else {}
        found += [Candidate(run.method, run.run, path, step) for step, path in steps.items()]
        found.append(run)
    for candidate in found:
        taken = policies.get(candidate.key)
        if taken is not None and not same_place(taken, candidate.path):
            raise UserError(
                f"policies: `{candidate.key}` is the name that {candidate.path} has among the checkpoints; "
                "give that policy another name"
            )
    return found


def checkpoints(path: str) -> dict[int, str]:
    """A run folder's whole checkpoints by step, those left out that hold the finished model once more."""
    found = {}
    for folder in Path(path).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        whole = (folder / "trainer_state.json").is_file()  # written last: without it the checkpoint was cut off
        model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        if step.isdigit() and whole and model and not _same_weights(folder, Path(path)):
            found[int(step)] = str(folder)
    return dict(sorted(found.items()))


def differing_settings(paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By run what it was trained with that other runs of its method were not, as `{"beta": 0.03}`; else nothing.

    Args:
        paths: run to folder, of one method.
    """
    configs: dict[str, dict[str, Any]] = {}
    for run, path in paths.items():
        if not (Path(path) / "run.json").is_file():
            return {run: {} for run in paths}
        config = read_run(path).config
        configs[run] = {key: value for key, value in config.items() if _is_setting(key, value)}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differ = [key for key in keys if len({repr(config.get(key)) for config in configs.values()}) > 1]
    if len(differ) > _MOST_DIFFERING:
        differ = []
    return {run: {key: config[key] for key in differ if key in config} for run, config in configs.items()}


def _sweep(entry: str) -> tuple[str, str]:
    method, equals, path = entry.partition("=")
    wrong = not equals or not path or method != method.strip() or method.startswith(".") or os.sep in method
    if wrong or method in ("", UNDECIDED, BEST_OF_N):
        raise UserError(f"sweeps: `{entry}` names no method; write it as method=path, as in dpo=runs/dpo-beta-0.5")
    return method, path


def _free_name(path: str, taken: set[str], entry: str) -> str:
    place = Path(path).resolve() if Path(path).is_dir() else Path(path)
    for name in (place.name, f"{place.parent.name}-{place.name}"):
        if name and name not in taken and name != BEST_OF_N:
            return name
    raise UserError(f"sweeps: `{entry}` has the name of another run, `{place.name}`; rename one of the folders")


def _is_setting(key: str, value: Any) -> bool:
    return key not in _NO_SETTINGS and isinstance(value, bool | int | float)


def _same_weights(checkpoint: Path, run: Path) -> bool:
    names = [{file.name for file in folder.glob("*.safetensors")} for folder in (checkpoint, run)]
    if not names[0] or names[0] != names[1]:
        return False
    return all(filecmp.cmp(checkpoint / name, run / name, shallow=False) for name in names[0])
