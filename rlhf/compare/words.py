"""Words of any language's text, by Unicode's categories."""

import re
import unicodedata
from functools import cache

# Scripts that put no space between words: each character is taken for one, as Unicode's rules do without a
# dictionary (UAX 29): kana, Han, and Thai, Lao, Myanmar, Khmer.
_UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1780-\u17d3"
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)


def words(text: str) -> list[str]:
    """The words, numbers and signs of a text in any script, as they stand: nothing is folded or normalised.

    Letters with their accents make a word, and so do digits; an apostrophe within a word and a point or
    comma within a number belong to it. In scripts without spaces each character is a word. Every other
    sign is one of its own, so that a reply of signs only can still repeat itself. Spaces, control
    characters and format characters (zero width, direction) are none, and the latter do not part a word.
    """
    pattern, hidden = _patterns()
    return pattern.findall(text if text.isascii() else hidden.sub("", text))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    marks = _characters(("Mn", "Mc", "Me"))
    letters = rf"(?:[^\W{_UNSPACED}][{marks}]*)+"
    word = rf"{letters}(?:['\u2019]{letters}|(?<=\d)[.,](?=\d){letters})*"
    sign = r"[^\w\s\x00-\x1f\x7f-\x9f\u200b]"
    hidden = rf"(?!\u200b)[{_characters(('Cf',))}]"  # a space of no width is a space
    return re.compile(rf"[{_UNSPACED}][{marks}]*|{word}|{sign}[{marks}]*"), re.compile(hidden)


def _characters(categories: tuple[str, ...]) -> str:
    """All characters of some Unicode categories, as ranges for a regular expression."""
    # Planes 0 and 1, and the tags and selectors of plane 14: there are none elsewhere.
    codes = [*range(0x20000), *range(0xE0000, 0xE0200)]
    found = [code for code in codes if unicodedata.category(chr(code)) in categories]
    ranges: list[list[int]] = []
    for code in found:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
