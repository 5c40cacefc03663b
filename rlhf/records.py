"""What flows between stages: frozen records, one JSONL file each, readable and diffable.

Demonstration                     prepare -> sft
Prompt                            prepare -> sample, ppo, compare
Response -> Task                  sample  -> the labeling store
Ranking                           people  -> export
Preference, Tie                   export  -> reward, dpo
Run                               every stage, as run.json
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlhf.errors import UserError, disk_full_as_user_error

# A reward, a score or a gold rubric: (prompts, responses, **columns) -> one number a response.
# A prompt is a list of messages, a response is text; columns are lists of the same length.
RewardFunction = Callable[..., list[float]]

Messages = list[dict[str, str]]  # [{"role": "user" | "assistant" | "system", "content": text}, ...]
Record = TypeVar("Record")


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate; its last message is the assistant's."""

    id: str
    messages: Messages


@dataclass(frozen=True)
class Text:
    """A document to pretrain on."""

    text: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for a reply; `meta` goes to reward functions as columns."""

    id: str
    messages: Messages
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """One reply of one policy; `sampling` holds temperature, seed, index and how it ended."""

    id: str
    prompt_id: str
    text: str
    run_id: str
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A prompt with K >= 2 responses to rank, how it was chosen and with what probability."""

    id: str
    prompt: Prompt
    responses: list[Response]
    chosen_by: str = "all"
    probability: float = 1.0


@dataclass(frozen=True)
class Ranking:
    """One annotator's answer to a task.

    `ranks` maps response id to rank, 1 is best, equal ranks are ties. `shown` is the order of the
    response ids on screen. `strength` says how much better the first is where the annotator was
    asked (a pair): 0 a tie, 1 slightly, 2 better, 3 much better. `both_bad` goes with a tie of all:
    none of them would do. `flags` maps response id to the flags set on it, `ratings` to its marks by
    attribute, 0 to 4. `better_answer` is a reply that the annotator wrote. `kind` is task, or why it
    is no vote: gold (a known answer), repeat (the annotator's second look), practice, surplus (its
    place was taken), left_out (all of the annotator's labels are), adjudication (the lead's word: it
    settles the task, and no annotator gave it).
    """

    task_id: str
    annotator: str
    ranks: dict[str, int]
    strength: float | None = None
    flags: dict[str, list[str]] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    seconds: float | None = None
    at: str | None = None
    both_bad: bool = False
    ratings: dict[str, dict[str, int]] = field(default_factory=dict)
    reason: str | None = None
    better_answer: str | None = None
    kind: str = "task"


@dataclass(frozen=True)
class Preference:
    """A pair of one prompt after aggregation, in TRL's explicit-prompt conversational format.

    `group_id` is the prompt: all pairs of a prompt stay together. `margin` is the mean difference
    in ranks; of a vote that says how strong it is (a pair's: 1 slightly, 2 better, 3 much better),
    that strength. `weight` is the winner's share of the votes, which may be weighted by annotator
    (ties count half); `votes` is how many people voted for it, for a tie and against it.
    """

    id: str
    group_id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float = 1.0
    weight: float = 1.0
    votes: dict[str, int] = field(default_factory=lambda: {"for": 1, "tie": 0, "against": 0})


@dataclass(frozen=True)
class Tie:
    """A pair that people could not tell apart; kept beside the preferences, never trained on."""

    id: str
    group_id: str
    prompt: Messages
    responses: list[Messages]
    votes: dict[str, int]


@dataclass(frozen=True)
class Run:
    """What a stage did: enough to do it again, and to trace a policy back to its labels.

    `labels_sha256` names the labels that it learned from: an export has its own, any other run those of its inputs.
    `usage` is what it used (rlhf.usage.Usage), `seconds` the time of all its attempts.
    """

    id: str
    stage: str
    parents: list[str]
    config: dict[str, Any]
    data_sha256: dict[str, str]
    git_sha: str | None
    versions: dict[str, str]
    metrics: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    seconds: float | None = None
    finished: bool = False
    labels_sha256: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)


def make_id(kind: str, *parts: object) -> str:
    """A short id made from content, so that the same content has the same id everywhere."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return f"{kind}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


def to_json(record: object) -> str:
    """One record as one line of JSON."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False)  # type: ignore[call-overload]


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_jsonl(path: str | Path, kind: type[Record]) -> list[Record]:
    """Read every record of `kind` from a JSONL file.

    Raises UserError, with file and line, for a missing or empty file, broken JSON, missing columns
    and values of the wrong type. Columns the record does not have are ignored.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should hold {kind.__name__} rows, one JSON object a line")
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                records.append(parse_record(line, kind, f"{path}, line {number}"))
    if not records:
        raise UserError(f"{path}: is empty; it should hold {kind.__name__} rows, one JSON object a line")
    return records


def parse_record(line: str, kind: type[Record], where: str) -> Record:
    """One record from one line of JSON; `where` names the line in errors."""
    from pydantic import ValidationError

    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: broken JSON ({error}); mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: is a {type(row).__name__}, should be a JSON object with the columns of {kind.__name__}"
        )
    try:
        return _adapter(kind).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(
                f"{where}: column `{column}` of {kind.__name__} is missing; there are: {', '.join(row)}"
            ) from None
        raise UserError(
            f"{where}: column `{column}` of {kind.__name__}: {first['msg'].lower()}; there is {first['input']!r:.80}"
        ) from None


def write_jsonl(path: str | Path, records: Iterable[object]) -> int:
    """Write records, whole or not at all, and return how many."""
    lines = [to_json(record) + "\n" for record in records]
    write_whole(path, lines)
    return len(lines)


def write_whole(path: str | Path, parts: Iterable[str]) -> None:
    """Write text to a file so that a kill or a full disk leaves the old file or none, never a part.

    A lone surrogate, for which UTF-8 has no bytes, becomes `\\ud800`: in JSON that is the same text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with disk_full_as_user_error(path, "nothing was written; free some and run again"):
        try:
            with partial.open("w", encoding="utf-8", errors="backslashreplace") as out:
                for part in parts:
                    out.write(part)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
