"""What the judge is asked, and how its verdict is read.

A policy's text is never an instruction to the judge: it stands between marks with a code that it cannot
know, and a verdict is read from the last line of what the judge wrote, nowhere else.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from rlhf.errors import UserError, nearest
from rlhf.records import Messages

Verdict = Literal["A", "B", "C"]  # by place: the response shown first, the one shown second, a tie

_PROMPTS = Path(__file__).parents[1] / "judge_prompts"
TEMPLATES = ("general", "reference")
_PLACES = ("prompt", "response_a", "response_b", "reference")
_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")

_NAMED: dict[str, Verdict] = {"A": "A", "B": "B", "C": "C", "TIE": "C"}
_VERDICT = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
# What may stand before the verdict in its line: markdown, and words that announce it. Anything else, quotes
# too, may be about a response: `Response B says [[B]]`, `"[[B]]" is no argument`.
_LEAD = re.compile(
    r"[\s*_`#>-]*(?:(?:so|thus|hence|therefore|overall|finally|in conclusion)[\s,:]+)?(?:(?:my|the)\s+)?"
    r"(?:(?:final|overall)\s+)?(?:(?:verdict|decision|judge?ment|choice)(?:\s+is)?[\s*_`:-]*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Template:
    """A question with places: `{{ prompt }}`, `{{ response_a }}`, `{{ response_b }}`, perhaps `{{ reference }}`."""

    name: str
    text: str

    @property
    def needs_reference(self) -> bool:
        """Whether it shows a reference answer."""
        return "reference" in _PLACE.findall(self.text)

    def messages(self, prompt: Messages, first: str, second: str, reference: str | None = None) -> Messages:
        """The question whether `first`, shown as A, or `second`, shown as B, is better: one message of the user.

        One message, because not every model's chat template has a system role.
        """
        texts = {"prompt": _conversation(prompt), "response_a": first, "response_b": second}
        if self.needs_reference:
            assert reference is not None, "judge_pairs checks that there is one"
            texts["reference"] = reference
        texts = {place: well_formed(text) for place, text in texts.items()}
        code = _code(texts)
        fenced = {place: f"<{place} {code}>\n{text}\n</{place} {code}>" for place, text in texts.items()}
        question = f"{self.text.strip()}\n\n{_read('verdict')}"
        return [{"role": "user", "content": _fill(question, fenced | {"code": code})}]


def load_template(name: str) -> Template:
    """One of TEMPLATES, or a text file with their places.

    How to end with a verdict, and that fenced text is no instruction, is added to every template.
    Raises UserError for a missing or unreadable file, a place that is missing and one that is unknown.
    """
    if name in TEMPLATES:
        return Template(name, _read(name))
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"template: `{name}` is no file and not one of {', '.join(TEMPLATES)}{nearest(name, list(TEMPLATES))}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template: {path} cannot be read ({error}); give a UTF-8 text file") from None
    places = _PLACE.findall(text)
    for place in places:
        if place not in _PLACES:
            raise UserError(
                f"template: {path} has an unknown place {{{{ {place} }}}}{nearest(place, list(_PLACES))}; "
                f"there are {', '.join(_PLACES)}"
            )
    for place in _PLACES[:3]:
        if place not in places:
            raise UserError(f"template: {path} has no place {{{{ {place} }}}}; write it where that text should stand")
    return Template(path.name, text)


def with_reminder(messages: Messages, reply: str) -> Messages:
    """The conversation that asks a judge for the verdict that its reply did not end with."""
    # Some servers refuse a message without text.
    said = {"role": "assistant", "content": reply.strip() or "(no answer)"}
    return [*messages, said, {"role": "user", "content": _read("reminder")}]


def parse_verdict(text: str) -> Verdict | None:
    """The verdict on the last line of a judge's reply that has a letter or digit; None where there is none.

    `[[A]]`, `[[B]]` or `[[C]]` (Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot
    Arena", appendix A) in either case, or `[[tie]]`, begins the line, but for markdown and words such
    as "Final verdict:"; text may follow. A line that names two different verdicts gives none.
    """
    lines = [line for line in text.splitlines() if re.search(r"[^\W_]", line)]
    if not lines:
        return None
    found = list(_VERDICT.finditer(lines[-1]))
    verdicts: set[Verdict] = {_NAMED[match[1].upper()] for match in found}
    if len(verdicts) != 1 or not _LEAD.fullmatch(lines[-1], 0, found[0].start()):
        return None
    return verdicts.pop()


def combine(first: Verdict | None, second: Verdict | None) -> float:
    """What both orders say of a: 1 it is better, 0 it is worse, 0.5 a tie.

    Args:
        first: the verdict where a was shown first.
        second: the verdict where a was shown second.

    A response wins only where it is preferred in both orders (Zheng et al. 2023, section 3.4): a flip, a
    tie in one order and a verdict that is missing make a tie.
    """
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((first or "", second or ""), 0.5)


def well_formed(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no server can take as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _code(texts: dict[str, str]) -> str:
    """A code of 64 bits that none of the texts holds.

    It is a hash of them, not a random number, so that the same question has the same key in the cache.
    A policy cannot foresee it: its text would have to hold the hash of itself.
    """
    for number in count():
        code = hashlib.sha256(json.dumps([number, texts], sort_keys=True).encode()).hexdigest()[:16]
        if not any(code in text for text in texts.values()):
            return code
    raise AssertionError


def _conversation(prompt: Messages) -> str:
    """A prompt of one user message as its text, any other with the role above each message."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt)


def _fill(text: str, values: dict[str, str]) -> str:
    # In one pass: a response that holds `{{ response_a }}` keeps it.
    return _PLACE.sub(lambda place: values[place[1]], text)


def _read(name: str) -> str:
    return (_PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()
