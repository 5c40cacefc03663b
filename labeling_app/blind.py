"""Blind comparison of policies: a finished compare run becomes tasks in which no text says whose it is."""

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from labeling_app.store import open_store
from labeling_app.stored import read_labels
from rlhf.errors import UserError
from rlhf.records import Prompt, Ranking, Response, Run, Task, make_id, read_jsonl
from rlhf.runs import file_sha256, read_run

_APART = r"[\s_-]+"  # `dpo_v2`, `DPO-v2` and `dpo v2` are one name
_METHOD = r"(?:sft|dpo|ppo|ipo|kto|orpo|grpo|rloo|rlhf|baseline|(?:instruction|preference|fine)[\s-]?tuned)"
_MODEL = r"(?:model|policy|checkpoint|version|assistant)"
# What tells of itself whose text this is, whatever the policies are called.
_STATEMENTS = [
    re.compile(pattern)
    for pattern in (
        r"\b(?i:as (?:the )?(?:policy|model|checkpoint|assistant)) (?:[A-HJ-Zb-h]|\d{1,2})\b",  # not I
        r"\b(?i:policy|model) [A-H]\b",  # model B; "the model I use", "a model a day" name none
        rf"(?i:\b(?:as|i am|i['\u2019]m|i was|this is) (?:the |an? |your )?{_METHOD}[\s-](?:\w+ )?{_MODEL}\b)",
        rf"(?i:\bi(?: am| was|['\u2019]m|(?: ha|['\u2019])ve been) (?:fine[\s-]?)?(?:tuned|trained) \w+ {_METHOD}\b)",
    )
]


@dataclass(frozen=True)
class Leak:
    """A task that is left out because the text of `policy` says whose it is, with the words that do."""

    task_id: str
    policy: str
    words: list[str]


@dataclass(frozen=True)
class _Compared:
    """A compare run as its folder has it: each policy's first response by prompt, and the names that tell."""

    prompts: list[Prompt]
    responses: dict[str, dict[str, Response]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def comparison_tasks(folder: str) -> tuple[list[Task], list[Leak]]:
    """A task for each prompt and each two policies of a finished compare run whose texts differ.

    Of several responses a prompt, each policy's first stands for it. A text that names a policy of the
    run, its folder or its run, or says such things as "as policy A" or "I am the DPO model", makes a
    Leak, and its tasks are not among those returned. Ids are made from what is compared, so that
    loading a run twice adds nothing.

    Raises UserError where the folder holds no finished compare run of two policies or more, where its
    files or its prompts are missing, changed or do not fit, and where nothing is left to judge.
    """
    run = _finished(folder)
    compared = _read(folder, run)
    telling = [_pattern(name) for name in sorted(compared.names) if len(name) > 1 and not name.isdigit()]
    tasks: dict[str, Task] = {}
    leaks: dict[tuple[str, str], Leak] = {}
    for prompt in compared.prompts:
        for a, b in combinations(compared.responses, 2):
            sides = {name: compared.responses[name][prompt.id] for name in (a, b)}
            if len({response.text for response in sides.values()}) < 2:
                continue
            task = _task(prompt, list(sides.values()))
            found = {name: _words(response.text, telling) for name, response in sides.items()}
            if any(found.values()):
                leaks |= {(task.id, name): Leak(task.id, name, words) for name, words in found.items() if words}
            else:
                tasks[task.id] = task
    if not tasks:
        raise UserError(
            f"{folder}: leaves nothing to judge: {len({leak.task_id for leak in leaks.values()})} pairs of responses "
            "say whose they are, the others read the same; compare other policies, or on more prompts"
        )
    return list(tasks.values()), list(leaks.values())


def leaks_sentence(leaks: list[Leak]) -> str | None:
    """What the lead is told of the tasks that were left out; None where there are none."""
    if not leaks:
        return None
    number = len({leak.task_id for leak in leaks})
    first = leaks[0]
    return (
        f"{number:,} comparison{'s are' if number > 1 else ' is'} left out: a response says whose it is "
        f"({first.policy}: {', '.join(repr(word) for word in first.words)})"
    )


def read_votes(url: str) -> tuple[list[Task], list[Ranking]]:
    """The comparisons in a label store, by path or URL, and every answer to one. Raises UserError for no store."""
    with open_store(url, "`rlhf label --comparison RUN` makes one") as store:
        labels = store.read(lambda connection: read_labels(connection, kind="comparison"))
    return labels.tasks, labels.rankings


def _finished(folder: str) -> Run:
    run = read_run(folder)
    if run.stage != "compare":
        raise UserError(f"{folder}: is a {run.stage} run; give the output_dir of `rlhf compare`")
    if not run.finished:
        raise UserError(f"{folder}: is not finished; go on with `rlhf compare ... --resume true` first")
    return run


def _read(folder: str, run: Run) -> _Compared:
    policies = _policies(folder)
    if len(policies) < 2:
        raise UserError(f"{folder}: compares {len(policies)} policy; give a run of two or more")
    compared = _Compared(_prompts(folder, run))
    known = {prompt.id for prompt in compared.prompts}
    for name in policies:
        path = Path(folder) / f"responses.{name}.jsonl"
        firsts: dict[str, Response] = {}
        for response in read_jsonl(path, Response):
            firsts.setdefault(response.prompt_id, response)
            compared.names.add(response.run_id)
        if firsts.keys() != known:
            odd = sorted(firsts.keys() ^ known)[0]
            raise UserError(
                f"{path}: does not fit the prompts, prompt `{odd}` is in one of them only; run compare again"
            )
        compared.responses[name] = firsts
    compared.names.update(policies, _folders(policies, run.config.get("policies", [])))
    return compared


def _policies(folder: str) -> list[str]:
    """The names of the policies, the baseline first, as report.json has them."""
    path = Path(folder) / "report.json"
    try:
        names: Any = json.loads(path.read_text(encoding="utf-8"))["settings"]["policies"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: is missing or names no policies; run compare again into another folder")


def _prompts(folder: str, run: Run) -> list[Prompt]:
    """The prompts that were compared. They must be those of the run: a text is judged as an answer to them."""
    path = str(run.config.get("prompts"))
    if not Path(path).is_file():
        raise UserError(
            f"{folder}: its prompts {path} are not there; put them back, or start from the folder where compare ran"
        )
    if file_sha256(path) != run.data_sha256.get("prompts"):
        raise UserError(f"{folder}: its prompts {path} have changed since; put them back, or run compare again")
    return read_jsonl(path, Prompt)[: run.config.get("num_prompts")]


def _folders(policies: list[str], given: list[str]) -> Iterable[str]:
    """The paths that compare was given, and their last folders."""
    for name, entry in zip(policies, given, strict=False):
        path = Path(entry.removeprefix(f"{name}="))
        yield str(path)
        yield path.name
        if path.name.startswith("checkpoint-"):
            yield path.parent.name


def _task(prompt: Prompt, responses: list[Response]) -> Task:
    # Response ids do not follow from the texts, so these are in it: a text that changed is another task.
    content = [[response.id, response.text] for response in responses]
    return Task(make_id("cmp", prompt.id, prompt.messages, content), prompt, responses)


def _pattern(name: str) -> re.Pattern[str]:
    """Finds a name as a word of its own, whatever its case and its separators."""
    words = [re.escape(word) for word in re.split(_APART, unicodedata.normalize("NFKC", name)) if word]
    return re.compile(rf"(?i)(?<![^\W_]){_APART.join(words)}(?![^\W_])")


def _words(text: str, names: list[re.Pattern[str]]) -> list[str]:
    """The words of a text that tell whose it is: each once, and none that is within another."""
    plain = unicodedata.normalize("NFKC", text)
    found = dict.fromkeys(one.group() for pattern in [*_STATEMENTS, *names] for one in pattern.finditer(plain))
    return [words for words in found if not any(words != other and words in other for other in found)]
