"""Rows of any usual format to examples: one shape for everything that comes after.

A format is no more than the columns it keeps things in, so a format of yours is the same thing
with the columns you name.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf.data.readers import Row
from rlhf.data.verdicts import Verdicts
from rlhf.errors import UserError, nearest
from rlhf.records import Messages

Kind = Literal["text", "prompt", "demonstration", "preference", "ranking"]


@dataclass(frozen=True)
class Example:
    """One row, whatever its format was.

    `replies` holds nothing for a prompt, one reply for a demonstration, (chosen, rejected) for a
    preference and K for a ranking, whose `verdicts` are on its pairs (None where nobody ranked it).
    """

    kind: Kind
    where: str  # the file and row, for reports
    prompt: Messages = field(default_factory=list)
    replies: tuple[str, ...] = ()
    reply_names: tuple[str, ...] = ()
    verdicts: Verdicts | None = None
    annotator: str | None = None
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    split: str | None = None  # where the input already had splits


@dataclass(frozen=True)
class Columns:
    """Which column holds what. `a.b` is the key `b` inside column `a`."""

    prompt: str | None = None
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    responses: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    pairwise: str | None = None
    annotator: str | None = None
    messages: str | None = None
    system: str | None = None
    context: str | None = None
    input: str | None = None
    label: str | None = None
    text: str | None = None
    context_chars: int | None = None
    user_role: str | None = None
    assistant_role: str | None = None

    def names(self) -> list[str]:
        """Every column named here."""
        values = [
            getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("user_role", "assistant_role")
        ]
        flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        return [name for name in flat if isinstance(name, str)]


# In the order in which they are tried: what has more columns comes first.
FORMATS: dict[str, Columns] = {
    "preference": Columns(prompt="prompt", chosen="chosen", rejected="rejected"),
    "implicit_preference": Columns(chosen="chosen", rejected="rejected"),  # TRL: lists of messages
    "hh": Columns(chosen="chosen", rejected="rejected"),  # Anthropic: texts with Human: and Assistant:
    "messages": Columns(messages="messages"),  # OpenAI chat, TRL language modelling
    "sharegpt": Columns(messages="conversations", system="system"),
    "alpaca": Columns(prompt="instruction", input="input", response="output", system="system"),
    "prompt_completion": Columns(prompt="prompt", response="completion", label="label"),
    "prompt": Columns(prompt="prompt"),
    "text": Columns(text="text"),
}
_OPTIONAL = {"system", "input", "label"}  # columns that a known format may lack


def check_columns(columns: Columns) -> None:
    """Raise UserError where the named columns do not make a format."""
    c = columns
    if c.context_chars is not None and c.context_chars < 1:
        raise UserError(f"context_chars: is {c.context_chars}, should be at least 1, or left out for no limit")
    if not c.names():
        return
    if bool(c.chosen) != bool(c.rejected):
        raise UserError("chosen_column and rejected_column: name both or none")
    replies = {
        "text_column": c.text,
        "messages_column": c.messages,
        "response_column": c.response,
        "chosen_column": c.chosen,
        "response_columns": c.responses,
    }
    given = [name for name, value in replies.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: name only one of them; run prepare once for each")
    if not c.prompt and given in ([], ["response_column"], ["response_columns"]):
        raise UserError("prompt_column: is missing; name the column that holds the prompt")
    if c.prompt and given in (["text_column"], ["messages_column"]):
        raise UserError(f"prompt_column and {given[0]}: name only one of them")
    verdicts = {"rank_columns": c.ranks, "score_columns": c.scores, "pairwise_column": c.pairwise}
    ranked = [name for name, value in verdicts.items() if value]
    if len(ranked) > 1:
        raise UserError(f"{' and '.join(ranked)}: name only one of them")
    if (ranked or c.annotator) and not c.responses:
        raise UserError(f"{(ranked or ['annotator_column'])[0]}: needs response_columns, which name what was ranked")


def choose_columns(rows: Sequence[Row], format_name: str, named: Columns, source: str) -> tuple[str, Columns]:
    """The name of the format of these rows and where it keeps things.

    `named` wins where it names a column, then a format forced by name, then what the columns say.
    Raises UserError, with the columns that are there, where a column is missing or nothing fits.
    """
    there = sorted({str(key) for row in rows for key in row if key})
    if named.names():
        _require(named.names(), there, source)
        return "named columns", named
    if format_name != "auto":
        columns = FORMATS[format_name]
        _require([name for name in columns.names() if name not in _OPTIONAL], there, source, format_name)
        return format_name, columns
    for name, columns in FORMATS.items():
        if set(columns.names()) - _OPTIONAL <= set(there):
            if name == "implicit_preference" and isinstance(rows[0].get("chosen"), str):
                continue  # texts, not messages: hh
            return name, columns
    raise UserError(
        f"{source}: no known format has the columns {', '.join(there)}; name yours, for example "
        "--prompt_column question --response_column answer"
    )


def _require(wanted: list[str], there: list[str], source: str, format_name: str = "") -> None:
    for name in wanted:
        if name not in there and name.split(".")[0] not in there:
            needs = f"; the format {format_name} needs {', '.join(wanted)}" if format_name else ""
            raise UserError(
                f"{source}: there is no column `{name}`{needs}; there are: {', '.join(there)}{nearest(name, there)}"
            )
