"""Characters that take no ink or turn others around: found, and shown as markers such as "[U+202E]"."""

import re
import unicodedata
from functools import lru_cache

from markdown_it.common.utils import escapeHtml

# Controls, format characters, bidi controls, line separators, blank letters, variation selectors, tags,
# surrogates and non-characters: what takes no ink, or moves other characters. Spaces are not in it.
HIDDEN = re.compile(
    "([\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff"
    "\U00013430-\U00013440\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane * 0x10000 + 0xFFFE)}{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(1, 17))
    + "])\\1*"
)
_EMOJI = (
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u27bf\u2934-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
# Where one of these does what it is for, it stays: it shapes letters and emoji, and shows by that.
_SHAPING = {"\u200c", "\u200d"} | {
    chr(code) for first, last in ((0xFE00, 0xFE0F), (0x180B, 0x180F), (0xE0100, 0xE01EF), (0xE0020, 0xE007F))
    for code in range(first, last + 1)
}  # fmt: skip
_IN_PLACE = re.compile(
    f"{_EMOJI}[\\ufe0e\\ufe0f]|[0-9#*]\\ufe0f(?=\\u20e3)"  # text or emoji style
    f"|(?:{_EMOJI}|\\ufe0f)\\u200d(?={_EMOJI})"  # a family, a profession
    "|[\u0620-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff][\u200c\u200d]"  # joined or not: Persian, Indic scripts
    "|[\u1820-\u18aa][\u180b-\u180f]"  # Mongolian
    "|[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff][\ufe00-\ufe02\U000e0100-\U000e01ef]"  # variants of ideographs
)
# England, Scotland, Wales: a black flag, and letters written in tags.
_FLAG = re.compile(
    "\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074"
    "|\U000e0077\U000e006c\U000e0073)\U000e007f"
)
_NAMES = {"\0": "NULL", "\x1b": "ESCAPE", "\x7f": "DELETE", "\ufeff": "ZERO WIDTH NO-BREAK SPACE (BYTE ORDER MARK)"}
_UNNAMED = {"Cc": "CONTROL CHARACTER", "Cs": "LONE SURROGATE", "Cn": "NO CHARACTER"}


def is_in_place(match: re.Match[str]) -> bool:
    run, at, text = match[0], match.start(), match.string
    if run not in _SHAPING or not at:
        return False
    found = _IN_PLACE.match(text, at - 1)
    return found is not None or any(f.start() < at < f.end() for f in _FLAG.finditer(text, max(at - 6, 0), at + 6))


@lru_cache(1000)
def _label_of(run: str) -> str:
    return f"[U+{ord(run[0]):04X} x{len(run)}]" if len(run) > 1 else f"[U+{ord(run):04X}]"


def label(match: re.Match[str]) -> str:
    """A run of one invisible character as "[U+200B x3]"."""
    run = match[0]
    return run if run in _SHAPING and is_in_place(match) else _label_of(run)


def _marker(match: re.Match[str]) -> str:
    if is_in_place(match):
        return match[0]
    char = match[1]
    name = _NAMES.get(char) or unicodedata.name(char, "") or _UNNAMED.get(unicodedata.category(char), "UNNAMED")
    return f'<span class="hidden-character" dir="ltr" title="U+{ord(char):04X} {name}">{label(match)}</span>'


def mark(escaped: str) -> str:
    """HTML whose invisible characters are markers; none may be inside a tag."""
    return HIDDEN.sub(_marker, escaped)


def shown_text(text: str) -> str:
    return mark(escapeHtml(text))


def shown_attribute(text: str) -> str:
    return escapeHtml(HIDDEN.sub(label, text))
