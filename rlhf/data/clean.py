"""Cleaning: a list of steps, each a pure function from examples to the kept ones and why others went.

A later step (near-duplicates, personal data, contamination) is one more function in `STEPS`.
"""

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlhf.data.formats import Example
from rlhf.records import Messages

Dropped = list[tuple[str, str]]  # (reason, where)
Step = Callable[[list[Example]], tuple[list[Example], Dropped]]

_SPACES = "\u00a0\u2007\u202f" + "".join(map(chr, range(0x2000, 0x200B))) + "\u205f"
_BREAKS = "\u000b\u000c\u0085\u2028\u2029"
# Zero width space, word joiner, byte order mark, soft hyphen. The zero width joiner and non-joiner
# stay: emoji, Persian and Indic scripts are spelt with them.
_INVISIBLE = "\u200b\u2060\ufeff\u00ad"
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
_SURROGATES = range(0xD800, 0xE000)  # halves of a broken pair: no file can hold them
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(_CONTROLS, None),
    **dict.fromkeys(_SURROGATES, None),
    **dict.fromkeys(map(ord, _INVISIBLE), None),
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _BREAKS), "\n"),
}
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_MANY_BREAKS = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class StepReport:
    """What one step kept, changed and dropped, and the first example of each reason."""

    step: str
    kept: int
    changed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)


def report(step: str, kept: int, dropped: Dropped, changed: int = 0) -> StepReport:
    """Count the reasons of one step, the most frequent first."""
    counts = dict(Counter(reason for reason, _ in dropped).most_common())
    first = dict(reversed(dropped))  # the earliest one stays
    return StepReport(step, kept, changed, counts, {reason: first[reason] for reason in counts})


def clean(examples: list[Example], steps: Sequence[tuple[str, Step]]) -> tuple[list[Example], list[StepReport]]:
    """Run the steps in order and report each. A step drops examples or changes them, not both."""
    from tqdm import tqdm

    reports = []
    for name, step in tqdm(steps, desc="cleaning", unit=" steps", delay=1, leave=False):
        kept, dropped = step(examples)
        changed = 0 if dropped else sum(a != b for a, b in zip(examples, kept, strict=True))
        reports.append(report(name, len(kept), dropped, changed))
        examples = kept
    return examples, reports


def tidy_text(text: str) -> str:
    """Text in NFC with uniform white space; idempotent.

    CRLF and every other line break become one line feed, three or more of them two. Non-breaking
    and thin spaces become spaces, blanks at the end of a line, zero-width and control characters
    go. Blanks at the start of a line stay: they are the indentation of code.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_TABLE)
    text = _TRAILING.sub("", unicodedata.normalize("NFC", text))
    return _MANY_BREAKS.sub("\n\n", text)


def tidy(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """`tidy_text` everywhere, and no blanks around a turn; drops nothing.

    An empty system message goes. The turns that one side has in a row become one, as chat templates
    want them to alternate.
    """
    return [_tidy_example(example) for example in examples], []


def _tidy_example(example: Example) -> Example:
    prompt = _tidy_messages(example.prompt)
    replies = tuple(tidy_text(reply).strip() for reply in example.replies)
    if example.kind == "demonstration" and len(prompt) > 1 and prompt[-1]["role"] == "assistant" and replies[0]:
        replies = (f"{prompt[-1]['content']}\n\n{replies[0]}",)
        prompt = prompt[:-1]
    return dataclasses.replace(
        example,
        prompt=prompt,
        replies=replies,
        text=tidy_text(example.text).lstrip("\n").rstrip(),  # the first line may be indented
        meta={tidy_text(k): tidy_text(v) if isinstance(v, str) else v for k, v in example.meta.items()},
        annotator=None if example.annotator is None else tidy_text(example.annotator).strip(),
    )


def _tidy_messages(messages: Messages) -> Messages:
    tidied: Messages = []
    for message in messages:
        role, content = message["role"], tidy_text(message["content"]).strip()
        if role == "system" and not content:
            continue
        if tidied and tidied[-1]["role"] == role and content and tidied[-1]["content"]:
            tidied[-1] = {"role": role, "content": f"{tidied[-1]['content']}\n\n{content}"}
        else:
            tidied.append({"role": role, "content": content})
    return tidied


def drop_empty(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """Drop what has an empty prompt, turn, reply or text."""
    return _keep(examples, _emptiness)


def _emptiness(example: Example) -> str | None:
    if example.kind == "text":
        return None if example.text else "empty text"
    if not any(message["content"] for message in example.prompt):
        return "empty prompt"
    if not all(message["content"] for message in example.prompt):
        return "an empty turn in the prompt"
    return None if all(example.replies) else "empty reply"


def drop_unanswerable(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """Drop prompts that do not end with the user's turn: there is nothing to reply to."""
    return _keep(examples, _unanswerable)


def _unanswerable(example: Example) -> str | None:
    if example.kind == "text" or example.prompt[-1]["role"] == "user":
        return None
    return f"the prompt ends with the {example.prompt[-1]['role']}'s turn"


def drop_equal_sides(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """Drop pairs whose two sides are the same text, and rankings whose replies all are."""
    return _keep(
        examples, lambda e: "all replies are equal" if len(e.replies) > 1 and len(set(e.replies)) == 1 else None
    )


def drop_contradictions(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """Drop preferences that are also there the other way round: nobody knows which one is meant."""
    pairs = {_identity(e.prompt, *e.replies) for e in examples if e.kind == "preference"}
    return _keep(
        examples,
        lambda e: (
            "the same pair is also there the other way round"
            if e.kind == "preference" and _identity(e.prompt, *reversed(e.replies)) in pairs
            else None
        ),
    )


def drop_duplicates(examples: list[Example]) -> tuple[list[Example], Dropped]:
    """Drop exact copies of an earlier example; what is not a text, a turn, a reply or a verdict may differ."""
    seen: set[bytes] = set()

    def reason(example: Example) -> str | None:
        e = example
        identity = _identity(e.kind, e.split, e.prompt, e.replies, e.verdicts, e.annotator, e.text)
        if identity in seen:
            return "exact duplicate"
        seen.add(identity)
        return None

    return _keep(examples, reason)


def keep_max_rows(examples: list[Example], max_rows: int | None, seed: int) -> tuple[list[Example], Dropped]:
    """Keep a random sample of `max_rows`, in the order they had; the seed and the rows fix which."""
    if max_rows is None or len(examples) <= max_rows:
        return examples, []

    def draw(at: int) -> bytes:
        example = examples[at]
        return _identity("max_rows", seed, example.prompt, example.replies, example.text)

    kept = set(sorted(range(len(examples)), key=draw)[:max_rows])
    dropped = [(f"over max_rows {max_rows}", e.where) for at, e in enumerate(examples) if at not in kept]
    return [examples[at] for at in sorted(kept)], dropped


# In this order: what the later steps compare must be tidy.
STEPS: list[tuple[str, Step]] = [
    ("tidy the text", tidy),
    ("drop what is empty", drop_empty),
    ("drop unanswerable prompts", drop_unanswerable),
    ("drop equal sides", drop_equal_sides),
    ("drop exact duplicates", drop_duplicates),
    ("drop contradictions", drop_contradictions),
]


def _keep(examples: list[Example], reason_to_drop: Callable[[Example], str | None]) -> tuple[list[Example], Dropped]:
    kept: list[Example] = []
    dropped: Dropped = []
    for example in examples:
        reason = reason_to_drop(example)
        if reason is None:
            kept.append(example)
        else:
            dropped.append((reason, example.where))
    return kept, dropped


def _identity(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).digest()
