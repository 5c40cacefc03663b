"""The run folder: run.json, metrics.jsonl, the checkpoint. A finished one is never overwritten."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, disk_full_as_user_error
from rlhf.records import Run, make_id, parse_record, write_whole
from rlhf.usage import Meter

_LIBRARIES = ["rlhf", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "gradio"]

# Where a run's files lie, how it was started and how it shows itself: none of it changes the result.
_PLACES = {"output_dir", "logging_dir", "run_name", "resume", "resume_from_checkpoint", "disable_tqdm", "report_to"}

# How the global batch is dealt to ranks: `rlhf.resume` holds that it stays as large.
_SHARES = {"per_device_train_batch_size", "gradient_accumulation_steps"}

# Work that took long: a run that holds some is not removed after an error. Of a trained model it is not
# *.safetensors that tells, which a full disk cuts off, but the tokenizer, which is written after the weights.
_KEPT = ["checkpoint-*/trainer_state.json", "*.part", "responses.*.jsonl", "tokenizer_config.json", "labels.db"]


def is_main_process() -> bool:
    """Whether this process is rank 0, by the environment that torchrun and accelerate set."""
    return int(os.environ.get("RANK", "0")) == 0


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run(folder: str | Path) -> Run:
    """The Run recorded in a folder. Raises UserError where there is none."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise UserError(f"{folder}: is not a run folder (no run.json); give the output_dir of a finished stage")
    return parse_record(path.read_text(encoding="utf-8"), Run, str(path))


def model_id(path: str) -> str:
    """What names a model in records: its run's id, else its path or Hub id."""
    return read_run(path).id if (Path(path) / "run.json").is_file() else path


@dataclasses.dataclass
class RunFolder:
    """An open run: log to it while working, then `finish` it.

    A stage that generates or trains says on how many tokens, before it finishes.
    """

    path: Path
    run: Run
    meter: Meter
    tokens_generated: int = 0
    tokens_trained: int = 0

    def log(self, **metrics: Any) -> None:
        """Append one row to metrics.jsonl (rank 0 only)."""
        if is_main_process():
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(metrics, default=float) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the rows of metrics.jsonl after a step: a run that goes on from there writes them again."""
        path = self.path / "metrics.jsonl"
        if is_main_process() and path.is_file():
            rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            write_whole(path, [f"{row}\n" for row in rows if json.loads(row).get("step", 0) <= step])

    def finish(self, **metrics: Any) -> Run:
        """Record the metrics and what was used, and mark the run as finished: a stage's last act, on all ranks."""
        used = self.meter.finish(self.tokens_generated, self.tokens_trained)
        self.run = dataclasses.replace(
            self.run, metrics=metrics, seconds=used.seconds, usage=dataclasses.asdict(used), finished=True
        )
        if is_main_process():
            self._write()
        return self.run

    def _write(self) -> None:
        text = json.dumps(dataclasses.asdict(self.run), indent=2, ensure_ascii=False, default=float)
        write_whole(self.path / "run.json", [text, "\n"])


@contextmanager
def open_run(
    stage: str,
    output_dir: str | Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path | None],
    resume: bool = False,
    labels_sha256: str | None = None,
) -> Iterator[RunFolder]:
    """Make (or with `resume` reopen) a run folder for one stage and yield it.

    `inputs` maps a name to a file or run folder that the stage reads; files are hashed, run folders
    become parents, and the labels that are in those are in this run too. `labels_sha256` names the labels
    of a run that makes some (`export`). The run's id is made from stage, config, inputs and such labels,
    so the same work has the same id. A UserError, a full disk among them, removes a folder that this call
    made unless long work is kept there: a whole checkpoint, the trained model, replies, labels. Raises UserError
    where the folder holds a finished run, an unfinished one without `resume`, or something else.
    """
    folder = Path(output_dir)
    run = _describe(stage, config, inputs, labels_sha256)
    if is_main_process():
        made = _claim(folder, run, resume)
    else:
        made = False
        folder.mkdir(parents=True, exist_ok=True)
    opened = RunFolder(folder, run, Meter(folder, notes=is_main_process()))
    try:
        with disk_full_as_user_error(folder, "free some, then go on with --resume true"), opened.meter.running():
            if made:
                opened._write()
            yield opened
    except UserError:
        if made and not any(any(folder.glob(kept)) for kept in _KEPT):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _describe(
    stage: str, config: Mapping[str, Any], inputs: Mapping[str, str | Path | None], labels_sha256: str | None
) -> Run:
    hashes: dict[str, str] = {}
    parents: list[str] = []
    own = [] if labels_sha256 is None else [labels_sha256]
    labels: set[str] = set()
    for name, given in inputs.items():
        if given is None:
            continue
        path = Path(given)
        source = path if path.is_dir() else path.parent
        if (source / "run.json").is_file():
            parent = read_run(source)
            parents.append(parent.id)
            labels.update(parent.labels_sha256)
        if path.is_file():
            hashes[name] = file_sha256(path)
    known = known_settings(config)
    identity = make_id("run", stage, known, hashes, sorted(set(parents)), *own)
    return Run(
        id=identity.replace("run-", f"{stage}-"),
        stage=stage,
        parents=sorted(set(parents)),
        config=dict(config),
        data_sha256=hashes,
        git_sha=_git_sha(),
        versions=versions(),
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        labels_sha256=own or sorted(labels),
    )


def settings_of(run: Run) -> dict[str, Any]:
    """A run's settings but for places: what its id is made from."""
    return {key: value for key, value in known_settings(run.config).items() if not _looks_like_path(value)}


def known_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config makes a run's id: not where its files lie."""
    return {key: value for key, value in config.items() if key not in _PLACES and not _is_path(value)}


def _looks_like_path(value: Any) -> bool:
    """Also one that is not there any more."""
    if isinstance(value, list):
        return any(_looks_like_path(item) for item in value)
    return isinstance(value, str) and os.sep in value


def _is_path(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_path(item) for item in value)
    return isinstance(value, str) and (os.sep in value) and Path(value).exists()


def check_output_dir(output_dir: str | Path, resume: bool = False) -> None:
    """Raise UserError where a run may not use this folder: known before any data is read.

    It may where it does not exist or is empty, and with `resume` where it holds an unfinished run.
    """
    folder = Path(output_dir)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --output_dir")
    if _is_empty(folder):
        return
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: exists and is not a run folder; choose another --output_dir")
    there = read_run(folder)
    if there.finished:
        raise UserError(f"{folder}: holds a finished {there.stage} run; remove it, or choose another --output_dir")
    if not resume:
        raise UserError(f"{folder}: holds an unfinished {there.stage} run; go on with --resume true, or remove it")


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in it but what a kill left of the record's very first writing."""
    return all(path.name == ".run.json.partial" for path in folder.iterdir())


def _claim(folder: Path, run: Run, resume: bool) -> bool:
    """Whether the folder was made here; raises where it may not be used."""
    check_output_dir(folder, resume)
    if not folder.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)  # another rank may just have made it
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --output_dir") from None
        return True
    if _is_empty(folder):
        return True
    there = read_run(folder)
    if there.id != run.id:
        changed = sorted(key for key in run.config if key not in _PLACES and run.config[key] != there.config.get(key))
        if _same_on_other_ranks(run, there):
            return False
        raise UserError(
            f"{folder}: was started with other settings or data ({', '.join(changed) or 'the input files changed'}); "
            "resume with the same ones, or choose another --output_dir"
        )
    return False


def _same_on_other_ranks(run: Run, there: Run) -> bool:
    """Whether only the share of a rank differs, as where fewer or more of them go on with a run."""
    ours, theirs = (
        {key: value for key, value in known_settings(config).items() if key not in _SHARES}
        for config in (run.config, there.config)
    )
    return (run.stage, ours, run.data_sha256, run.parents, run.labels_sha256) == (
        there.stage, theirs, there.data_sha256, there.parents, there.labels_sha256
    )  # fmt: skip


def _git_sha() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(libraries: Iterable[str] = _LIBRARIES) -> dict[str, str]:
    """Of Python, and of those libraries that are installed."""
    versions = {"python": platform.python_version()}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
