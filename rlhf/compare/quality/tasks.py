"""Tasks whose answers are known: policies answer greedily, and rlhf.compare.checks says who is right."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from rlhf.compare.checks import code_passes, last_number, number_matches, text_matches
from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.generate import Reply, Sampling, generate
from rlhf.models import Policy
from rlhf.records import Prompt, make_id, read_jsonl

NUMBER, TEXT, CODE = "number", "text", "code"
_CHECKS: dict[str, tuple[Callable[..., list[float]], str]] = {
    NUMBER: (number_matches, "answer"),
    TEXT: (text_matches, "answer"),
    CODE: (code_passes, "tests"),
}
_NO_WORD = re.compile(r"\\[A-Za-z]+|\d[eE][+-]?\d")  # LaTeX's commands, and the e of 1e6


@dataclass(frozen=True)
class Answered:
    """One policy's answer to one task.

    Args:
        id: made from the model, the task and how long an answer may be.
        text: the reply.
        finished: whether it ended by itself.
        correct: 1.0 or 0.0.
    """

    id: str
    text: str
    finished: bool
    correct: float


def read_tasks(path: str) -> list[Prompt]:
    """Prompts with `answer` or `tests` in their meta.

    Raises UserError for one that waits for no reply or has neither, and where this machine cannot run code apart.
    """
    rows = read_jsonl(path, Prompt)
    for row in rows:
        if not row.messages or row.messages[-1].get("role") == "assistant":
            raise UserError(
                f"{path}: task `{row.id}` does not wait for a reply; its last message must not be the assistant's"
            )
        if row.meta.get("tests") is None and row.meta.get("answer") is None:
            raise UserError(
                f"{path}: task `{row.id}` has no known answer; give its meta an `answer`, or `tests` for code"
            )
    if any(how_checked(row) == CODE for row in rows):
        code_passes([], ["pass"], tests=["pass"])  # so that a machine without a sandbox shows now
    return rows


def how_checked(task: Prompt) -> str:
    """`code` where there are tests; `number` where the answer is one (72, "3/4", GSM8K's "... #### 72"), or `text`."""
    if task.meta.get("tests") is not None:
        return CODE
    answer = task.meta["answer"]
    if isinstance(answer, list | tuple | bool) or last_number(str(answer)) is None:
        return TEXT
    plain = _NO_WORD.sub("", str(answer).rpartition("####")[2])
    return TEXT if any(letter.isalpha() for letter in plain) else NUMBER


def task_ids(model: str, tasks: Sequence[Prompt], max_new_tokens: int) -> list[str]:
    """The id of each task's answer by the model of this id."""
    return [make_id("ans", model, task.messages, task.meta, max_new_tokens) for task in tasks]


def answer_tasks(
    policy: Policy, name: str, ids: Sequence[str], tasks: Sequence[Prompt], max_new_tokens: int, batch_size: int
) -> list[Answered]:
    """A policy's likeliest answers, checked.

    Args:
        policy: the model.
        name: its name, for the screen.
        ids: from `task_ids`.
        tasks: from `read_tasks`.
        max_new_tokens: the longest answer.
        batch_size: answers at a time.
    """
    cut, replies = CutReport(), list[Reply]()
    messages = [task.messages for task in tasks]
    with tqdm(total=len(tasks), desc=f"tasks of {name}", unit=" answers") as bar:
        for _, batch in generate(policy, messages, 1, Sampling(0.0, max_new_tokens), batch_size, cut=cut):
            replies += batch
            bar.update(len(batch))
    if sentence := cut.sentence(f"tasks of {name}", policy.max_length):
        print(sentence)
    replies.sort(key=lambda reply: reply.prompt_index)
    correct = check_answers(tasks, [reply.text for reply in replies])
    return [
        Answered(one, reply.text, reply.finished, right)
        for one, reply, right in zip(ids, replies, correct, strict=True)
    ]


def check_answers(tasks: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """1.0 where an answer is right, else 0.0, each by its task's check."""
    found = [0.0] * len(tasks)
    for kind, (check, column) in _CHECKS.items():
        rows = [at for at, task in enumerate(tasks) if how_checked(task) == kind]
        if not rows:
            continue
        known: dict[str, Any] = {column: [tasks[at].meta[column] for at in rows]}
        given = check([tasks[at].messages for at in rows], [texts[at] for at in rows], **known)
        for at, right in zip(rows, given, strict=True):
            found[at] = right
    return found
