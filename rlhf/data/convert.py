"""Rows to examples: read what the columns hold, and say why where a row cannot be used."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from rlhf.data.formats import Columns, Example
from rlhf.data.readers import Row
from rlhf.data.turns import Unusable, as_messages, is_transcript, parse_transcript
from rlhf.data.verdicts import Verdicts, from_ranks, from_scores, parse_verdict
from rlhf.records import Messages


def convert(
    rows: Sequence[Row], columns: Columns, source: str, split: str | None = None
) -> tuple[list[Example], list[tuple[str, str]]]:
    """Rows to examples, and `(reason, where)` for every row that cannot be used."""
    examples: list[Example] = []
    dropped: list[tuple[str, str]] = []
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        try:
            example = _convert(row, columns, where)
        except Unusable as reason:
            dropped.append((str(reason), where))
        else:
            examples.append(dataclasses.replace(example, meta=_meta(row, columns), split=split))
    return examples, dropped


def _convert(row: Row, columns: Columns, where: str) -> Example:
    if columns.text:
        return Example("text", where, text=_text(row, columns.text))
    if columns.messages:
        stored = _unpacked(_value(row, columns.messages))
        conversation = as_messages(stored, columns.user_role, columns.assistant_role)
        return _conversation(_with_system(row, columns, conversation), where)
    if columns.chosen and columns.rejected:
        return _preference(row, columns, where)
    prompt = _prompt(row, columns)
    if columns.responses:
        return _ranking(row, columns, prompt, where)
    if columns.response:
        if columns.label and row.get(columns.label) in (False, 0):
            raise Unusable(f"`{columns.label}` is false: not a reply to imitate")
        return _conversation([*prompt, *_side(_value(row, columns.response))], where)
    return Example("prompt", where, prompt)


def _conversation(messages: Messages, where: str) -> Example:
    """A demonstration where the assistant has the last word, a prompt where it is to speak."""
    if messages and messages[-1]["role"] == "assistant":
        return Example("demonstration", where, messages[:-1], (messages[-1]["content"],))
    return Example("prompt", where, messages)


def _preference(row: Row, columns: Columns, where: str) -> Example:
    assert columns.chosen and columns.rejected
    sides = [_value(row, columns.chosen), _value(row, columns.rejected)]
    if columns.prompt is None and all(isinstance(side, str) for side in sides):
        chosen, rejected = (parse_transcript(side) for side in sides)
    else:
        chosen, rejected = (_side(side) for side in sides)
    if not (chosen and rejected and chosen[-1]["role"] == rejected[-1]["role"] == "assistant"):
        raise Unusable("a side does not end with the assistant's turn")
    if columns.prompt and len(chosen) == len(rejected) == 1:
        prompt = _prompt(row, columns)
    elif chosen[:-1] == rejected[:-1]:
        prompt = _with_system(row, columns, chosen[:-1])
    else:
        raise Unusable("the two sides do not share their prompt")
    return Example("preference", where, prompt, (chosen[-1]["content"], rejected[-1]["content"]))


def _ranking(row: Row, columns: Columns, prompt: Messages, where: str) -> Example:
    values = _values(row, columns.responses)
    if len(values) < 2:
        raise Unusable("fewer than two responses")
    replies = []
    for value in values:
        side = _side(value)
        if len(side) != 1 or side[0]["role"] != "assistant":
            raise Unusable("a response is not one reply")
        replies.append(side[0]["content"])
    names = columns.responses if len(columns.responses) > 1 else tuple(str(n) for n in range(1, len(values) + 1))
    annotator = None if columns.annotator is None else str(_value(row, columns.annotator))
    return Example("ranking", where, prompt, tuple(replies), names, _verdicts(row, columns, len(values)), annotator)


def _verdicts(row: Row, columns: Columns, num_responses: int) -> Verdicts | None:
    if columns.pairwise:
        given = _unpacked(_value(row, columns.pairwise))
        verdicts = [parse_verdict(value) for value in (given if isinstance(given, list) else [given])]
        wanted = num_responses * (num_responses - 1) // 2
        if len(verdicts) != wanted:
            raise Unusable(
                f"`{columns.pairwise}` has {len(verdicts)} verdicts, {num_responses} responses need {wanted}"
            )
        if any(verdict is None for verdict in verdicts):
            raise Unusable(f"`{columns.pairwise}` has a verdict that is not 0 (equal), 1 (first) or 2 (second)")
        return tuple(verdict for verdict in verdicts if verdict is not None)
    names = columns.ranks or columns.scores
    if not names:
        return None
    numbers = [_number(value) for value in _values(row, names)]
    if len(numbers) != num_responses:
        raise Unusable(f"`{names[0]}` has {len(numbers)} numbers for {num_responses} responses")
    if any(number is None for number in numbers):
        raise Unusable(f"`{names[0]}` has something that is not a number")
    known = [number for number in numbers if number is not None]
    return from_ranks(known) if columns.ranks else from_scores(known)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _values(row: Row, names: tuple[str, ...]) -> list[Any]:
    """The values of several columns, or of the list in the only one."""
    values = [_value(row, name) for name in names]
    only = _unpacked(values[0]) if len(values) == 1 else None
    return only if isinstance(only, list) else values


def _prompt(row: Row, columns: Columns) -> Messages:
    if columns.prompt is None:
        raise Unusable("no column holds the prompt")
    prompt = _value(row, columns.prompt)
    if isinstance(prompt, str) and is_transcript(prompt):
        messages = parse_transcript(prompt)
        messages = messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
    elif isinstance(prompt, str):
        after = _optional_text(row, columns.input)
        before = _flat_text(_value(row, columns.context)) if columns.context else ""
        before = _cut(before, columns.context_chars)
        parts = [part for part in (before, prompt, after) if part.strip()]
        messages = [{"role": "user", "content": "\n\n".join(parts) if prompt.strip() else ""}]
    else:
        messages = as_messages(prompt, columns.user_role, columns.assistant_role)
    return _with_system(row, columns, messages)


def _with_system(row: Row, columns: Columns, messages: Messages) -> Messages:
    system = _optional_text(row, columns.system)
    if not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _side(value: Any) -> Messages:
    """What stands after a prompt: a text is one reply of the assistant's."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return as_messages([value] if isinstance(value, dict) else value)


def _value(row: Row, name: str) -> Any:
    value: Any = row
    for key in [name] if name in row else name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        raise Unusable(f"`{name}` is missing")
    return value


def _text(row: Row, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise Unusable(f"`{name}` is a {type(value).__name__}, should be text")
    return value


def _unpacked(value: Any) -> Any:
    """A list that a CSV cell holds as JSON; anything else as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _cut(text: str, num_chars: int | None) -> str:
    """At most so many characters, ending with a whole word."""
    if num_chars is None or len(text) <= num_chars:
        return text
    cut = text[:num_chars]
    whole = cut if text[num_chars].isspace() else re.sub(r"\S+\Z", "", cut)
    return whole.rstrip() or cut  # one word longer than the limit is cut inside


def _optional_text(row: Row, name: str | None) -> str:
    return "" if name is None or row.get(name) is None else _text(row, name)


def _flat_text(value: Any) -> str:
    """Text from text or nested lists of it: a line an item, a paragraph a list."""
    if not isinstance(value, list):
        return str(value)
    nested = any(isinstance(item, list) for item in value)
    return ("\n\n" if nested else "\n").join(_flat_text(item) for item in value)


def _meta(row: Row, columns: Columns) -> dict[str, Any]:
    used = {name.split(".")[0] for name in columns.names()} | set(columns.names())
    return {str(key): value for key, value in row.items() if key and key not in used and _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))  # JSON has no NaN
