"""Judges that need no opinion: the number is right, the text is right, the code passes its tests.

Each is a reward function, `rlhf compare --gold rlhf.compare.checks:number_matches`, and gives 1.0 or 0.0.
What it checks against is a key of each prompt's `meta`: `answer`, or `tests` for code.
"""

import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlhf.compare.sandbox import code_results
from rlhf.errors import UserError

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w])\.\d+)(?:[eE][+-]?\d{1,3}(?!\w))?"
_NUMBER = re.compile(
    # A minus is a sign only where no operand stands before it: "5-3" ends in 3. "H2O" holds no number.
    r"(?:(?<![\w)\]}])(?P<minus>-)[$€£¥]?)?(?<![A-Za-z_\d])"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s?/))?(?P<number>{_PLAIN})(?:\s?/\s?(?P<below>\d+(?:\.\d+)?))?"
    r"\s?(?P<percent>%|percent\b|per cent\b)?"
)
_LATEX_FRACTION = re.compile(
    r"(?P<before>\d?)\s*\\[dtc]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))"
)
_POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:\u00d7|\*|x|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?([+-]?\d{1,3})\}?")
_LONGEST_NUMBER = 200  # characters; a longer one is noise, and slow to compare exactly
_WRAPPING = " \t\r\n.,;:!?\"'`*\u2018\u2019\u201c\u201d\u00ab\u00bb"


@dataclass(frozen=True)
class Number:
    """A number as it was written: "12.5%" has the value 12.5 and is a percentage."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: "Number") -> bool:
        """Whether the two are the same; where one only is a percentage, 50% is both 50 and 0.5."""
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        percent, plain = (self, other) if self.is_percent else (other, self)
        return percent.value / 100 == plain.value


def last_number(text: str) -> Number | None:
    """The number that a text ends in, None where there is none: that of the last `\\boxed{}` if there is one.

    Understood: 1,234.5, -3, .5, 3/4, 1 1/2, ½, 50%, $7, 1e6, 1.5 x 10^6 and LaTeX's \\frac{3}{4}, {,} and \\%.
    Not understood: words ("five"), decimal commas, expressions (2^10 ends in 10), tuples.
    """
    boxed = _last_boxed(text)
    found = list(_NUMBER.finditer(_plain(text if boxed is None else boxed)))
    return _value(found[-1]) if found else None


def number_matches(prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[float]:
    """1.0 where the last number of a reply equals the one of the column `answer`, exactly: 0.33 is not 1/3.

    An answer is a number, or text that ends in one, as GSM8K's do. Raises UserError for other answers.
    """
    answers = _column("number_matches", "answer", columns, len(responses))
    scores = []
    for response, answer in zip(responses, answers, strict=True):
        wanted = last_number(str(answer))
        if wanted is None:
            raise UserError(
                f"number_matches: the answer {str(answer)[:60]!r} holds no number; mend the prompt's `answer`, or use "
                "rlhf.compare.checks:text_matches"
            )
        given = last_number(response)
        scores.append(float(given is not None and given.equals(wanted)))
    return scores


def text_matches(prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[float]:
    """1.0 where a reply is the text of the column `answer`, or one of a list of texts, after `normalised`."""
    answers = _column("text_matches", "answer", columns, len(responses))
    scores = []
    for response, answer in zip(responses, answers, strict=True):
        wanted = answer if isinstance(answer, list | tuple) else [answer]
        scores.append(float(normalised(response) in {normalised(str(text)) for text in wanted}))
    return scores


def normalised(text: str) -> str:
    """Text in Unicode's NFKC, case folded, with single spaces, without quotes, stars and stops around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_WRAPPING)


def _column(judge: str, name: str, columns: dict[str, Any], num: int) -> Sequence[Any]:
    if name not in columns:
        raise UserError(f"{judge}: the prompts have no `{name}`; give each one in its meta: {{'{name}': ...}}")
    if len(columns[name]) != num:
        raise ValueError(f"{judge}: {len(columns[name])} values of `{name}` for {num} responses")
    return columns[name]


def _last_boxed(text: str) -> str | None:
    """What stands between the braces of the last \\boxed{...}, to the end where they never close."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    inside = text[start + len("\\boxed{") :]
    depth = 1
    for at, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return inside[:at]
    return inside


def _plain(text: str) -> str:
    """Numbers in LaTeX and in signs of their own, written in ASCII."""
    text = text.replace("\u2212", "-").replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"\\[,!;:]|\\left|\\right", "", text)
    text = re.sub(r"(\d?)([¼-¾⅐-⅞])", lambda found: _after(found[1], unicodedata.normalize("NFKC", found[2])), text)
    text = _LATEX_FRACTION.sub(lambda m: _after(m["before"], f"{m[2] or m[3]}/{m[4] or m[5]}"), text)
    return _POWER_OF_TEN.sub(r"e\1", text)


def _after(digit: str, fraction: str) -> str:
    """A fraction after a digit is the rest of a mixed number."""
    return f"{digit}{' ' if digit else ''}{fraction}".replace("\u2044", "/")


def _value(found: re.Match[str]) -> Number | None:
    if len(found[0]) > _LONGEST_NUMBER:
        return None
    value = Fraction(found["number"].replace(",", ""))
    if found["below"]:
        below = Fraction(found["below"])
        if below == 0:
            return None
        value /= below
    if found["whole"] and value < 1:
        value += int(found["whole"])
    return Number(-value if found["minus"] else value, bool(found["percent"]))


def code_passes(prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[float]:
    """1.0 where the Python code of a reply passes the tests of the column `tests`; `code_results` says why not.

    The column holds Python code, or a list of lines, that raises where something is wrong (`assert`).
    Raises UserError where there is no such column, and where this machine cannot run the code apart.
    """
    tests = _column("code_passes", "tests", columns, len(responses))
    results = code_results(responses, [text if isinstance(text, str) else "\n".join(text) for text in tests])
    ran = [result.walls for result in results if result.walls is not None]
    if any("system-call filter" not in walls for walls in ran):
        network = "closed" if all("network namespace" in walls for walls in ran) else "open"
        warnings.warn(
            "code_passes: this machine allows no system-call filter, so code from the replies can reach other "
            f"processes; the network is {network} to it. Run the comparison in a container",
            stacklevel=2,
        )
    return [float(result.passed) for result in results]
