"""Splits by prompt: a conversation is in one split, with all its replies, pairs and rankings."""

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.formats import Example
from rlhf.errors import UserError
from rlhf.records import Messages

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Shares:
    """How much of the prompts each split gets; they sum to 1.

    Raises UserError where they do not, or where one is not between 0 and 1.
    """

    train: float
    validation: float
    test: float

    def __post_init__(self) -> None:
        for name, share in dataclasses.asdict(self).items():
            if not 0 <= share <= 1:
                raise UserError(f"{name}_share: is {share:g}, should be between 0 and 1")
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise UserError(
                f"train_share + validation_share + test_share: is {self.train:g} + {self.validation:g} + "
                f"{self.test:g} = {total:g}, should be 1"
            )


def prompt_key(messages: Messages) -> str:
    """What makes two prompts the same: their turns without regard to case and white space."""
    turns = [[message["role"], _plain(message["content"])] for message in messages]
    return json.dumps(turns, ensure_ascii=False)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def opening(messages: Messages) -> Messages:
    """A conversation up to its first user turn: what it shares with all its continuations."""
    for end, message in enumerate(messages, 1):
        if message["role"] == "user":
            return messages[:end]
    return messages


def split_of(key: str, shares: Shares, seed: int) -> str:
    """The split of a key, by its hash and the seed alone: the rows beside it do not matter."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode(errors="replace")).digest()
    draw = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if draw < shares.train:
        return "train"
    return "validation" if draw < shares.train + shares.validation else last_split(shares)


def last_split(shares: Shares) -> str:
    """The last split that gets anything: rounding must not send a draw of 0.99... to an empty one."""
    return next(name for name in reversed(SPLITS) if getattr(shares, name) > 0)


def assign_splits(
    examples: Iterable[Example], shares: Shares, seed: int, split_by: str = "conversation"
) -> dict[str, list[Example]]:
    """Examples by split; one that came with a split keeps it.

    `split_by` is `conversation` (all prompts with the same opening stay together, so that no prompt
    of one split is the start of one in another) or `prompt` (only equal prompts do).
    """
    by_split: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        if example.kind == "text":
            key = _plain(example.text)
        else:
            key = prompt_key(opening(example.prompt) if split_by == "conversation" else example.prompt)
        by_split[example.split or split_of(key, shares, seed)].append(example)
    return {name: there for name, there in by_split.items() if there}


def assert_disjoint(prompts: Iterable[tuple[str, str, Messages]]) -> None:
    """Raise UserError where a prompt is in two splits.

    Args:
        prompts: `(split, file, messages)` of every prompt; the error names the files.
    """
    seen: dict[str, tuple[str, str]] = {}
    shared: dict[str, str] = {}
    first = ""
    for split, file, messages in prompts:
        key = prompt_key(messages)
        split_before, file_before = seen.setdefault(key, (split, file))
        if split_before != split:
            if not shared:
                text = " ".join(messages[-1]["content"].split()) if messages else ""
                first = f"{text[:60] + ('...' if len(text) > 60 else '')!r} is in {file_before} and in {file}"
            shared[key] = file
    if shared:
        raise UserError(
            f"a prompt in two splits: {first} ({len(shared):,} such prompts); remove it from one of them, "
            "or give all files as --input of `rlhf prepare`, which splits by prompt"
        )


def check_splits(paths: Sequence[str | Path]) -> None:
    """Check that no two of these JSONL files of records share a prompt.

    Reads Demonstration, Prompt, Preference, Tie, Task and text rows.
    Raises UserError that names the prompt and both files, and for files that hold no prompts.
    """
    assert_disjoint(
        (str(number), str(path), messages) for number, path in enumerate(paths) for messages in prompts_of(Path(path))
    )


def prompts_of(path: Path) -> Iterator[Messages]:
    """The prompt of each row of a JSONL file of records; a text is one message of the role `text`.

    Raises UserError for a file that is not there or a row without a prompt.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should hold records of `rlhf prepare`, one JSON object a line")
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _prompt_of(json.loads(line))
                except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                    raise UserError(
                        f"{path}, line {number}: holds no prompt (no `messages`, `prompt` or `text` of the records "
                        "that `rlhf prepare` writes)"
                    ) from None


def _prompt_of(row: dict[str, Any]) -> Messages:
    if "text" in row:
        messages = [{"role": "text", "content": row["text"]}]
    elif "messages" in row:
        messages = row["messages"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
    else:
        prompt = row["prompt"]
        messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    if not all(isinstance(message["content"], str) for message in messages):
        raise TypeError
    return [{"role": message["role"], "content": message["content"]} for message in messages]
