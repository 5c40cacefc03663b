"""LaTeX in markdown: found between its delimiters, converted to MathML, or shown as its source.

Not by mdit-py-plugins: texmath drops what follows `\\[x\\]` on its line, and its rules and dollarmath's take time
with the square of the text where a delimiter is never closed.
"""

import re
import unicodedata
from collections import Counter
from xml.etree.ElementTree import Element

from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType

from labeling_app.invisible import HIDDEN, shown_text

MAX_FORMULA, MAX_FORMULAS = 2_000, 30_000  # characters of LaTeX, in one formula and in a text
FORMULA_COST = 20  # characters that every formula counts on top of its own
MAX_FORMULA_DEPTH = 60  # elements of MathML inside one another

_CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
# As on GitHub: no space inside the dollars, no letter or digit outside; so "$5 and $6" is money.
_DOLLARS = re.compile(r"(?<![\w$\\])\$(?![\s$])(?:[^$\\]|\\.)++(?<!\s)\$(?![\w$])", re.DOTALL)
_MACRO = re.compile(r"\\(?:(?:re)?newcommand|def|let|DeclareMathOperator|newenvironment)(?![a-zA-Z])")
# What of a formula's source need not be seen again: commands, environments, colours, lengths.
_UNSEEN = re.compile(
    r"\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}(?:\{[lcr|\s]*\})?|\\(?:text)?color\s*\{[a-zA-Z]{1,15}\}|\\[a-zA-Z]+"
    r"|-?[\d.]+\s*(?:em|ex|pt|mu|mm|cm|in|px)\b"
)
MATHML = {
    "math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mroot", "mrow", "mspace", "msqrt", "mstyle",
    "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover",
}  # fmt: skip
MATHML_ATTRIBUTES = {
    "accent", "columnalign", "columnlines", "display", "displaystyle", "fence", "form", "largeop", "linethickness",
    "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowlines", "scriptlevel", "stretchy", "width",
}  # fmt: skip
# Words and small positive lengths. No colour and no negative space: either could cover what is written.
_MATHML_VALUE = re.compile(r"(?!negative)[a-z][a-z -]*|[0-3]?(?:\.\d{1,4})?em|[0-3]")


def formula_html(token: Token, env: EnvType) -> str:
    """MathML of a formula, or its source where that is better."""
    latex, is_display = token.meta["latex"], token.meta["is_display"]
    cost = FORMULA_COST + len(latex)
    is_short = len(latex) <= MAX_FORMULA and cost <= env["formulas"]
    if is_short and not _MACRO.search(latex) and not HIDDEN.search(latex):  # macros can grow without bound
        from latex2mathml.converter import convert_to_element

        env["formulas"] -= cost
        try:
            tree = convert_to_element(latex, display="block" if is_display else "inline")
            # Comments, link addresses and many an argument leave no trace in the tree.
            if _letters(_UNSEEN.sub(" ", latex)) <= _letters(_words("".join(tree.itertext()))):
                return _mathml(tree)
        except Exception:  # latex2mathml raises what it comes across, RecursionError and StopIteration too
            pass
    return f'<code class="formula" dir="ltr">{shown_text(token.content)}</code>'


def _words(text: str) -> str:
    """Text of latex2mathml, which writes symbols as references."""
    return re.sub("&#x([0-9A-Fa-f]{2,5});", lambda match: chr(int(match[1], 16)), text)


def _letters(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W_]", unicodedata.normalize("NFKC", text)))


def _mathml(element: Element, depth: int = 1) -> str:
    """Serialised by ourselves: latex2mathml leaves `<` in texts as it is. Raises ValueError for what is not listed."""
    words = _words(element.text or "")
    if element.tag not in MATHML or depth > MAX_FORMULA_DEPTH or HIDDEN.search(words):
        raise ValueError
    if re.match(r"\\[a-zA-Z]", words):
        raise ValueError  # a command that latex2mathml does not know is left as it was
    shown = "".join(
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if name in MATHML_ATTRIBUTES and element.tag != "mpadded" and _MATHML_VALUE.fullmatch(value)
    )
    inner = escapeHtml(words) + "".join(_mathml(child, depth + 1) for child in element)
    return f"<{element.tag}{shown}>{inner}</{element.tag}>"


def inline_math(state: StateInline, silent: bool) -> bool:
    text, at = state.src, state.pos
    mark = text[at : at + 2]
    if mark in _CLOSING:
        stop = text.find(_CLOSING[mark], at + 2, min(state.posMax, at + MAX_FORMULAS))
        end, latex = stop + 2, text[at + 2 : stop]
    elif text[at] == "$" and (match := _DOLLARS.match(text, at, state.posMax)):
        stop, end, latex, mark = match.end() - 1, match.end(), match[0][1:-1], "$"
    else:
        return False
    if stop < 0 or not latex.strip():
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.meta = text[at:end], {"latex": latex, "is_display": mark in ("$$", "\\[")}
    state.pos = end
    return True


def block_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Lines from `$$` or `\\[` to its end, that are nothing but a formula, without an empty line."""
    begin = state.bMarks[start] + state.tShift[start]
    mark = state.src[begin : begin + 2]
    if mark not in ("$$", "\\["):
        return False
    stop = state.src.find(_CLOSING[mark], begin + 2, begin + MAX_FORMULAS)
    line = start
    while line < end and state.eMarks[line] < stop:
        line += 1
        if line < end and (state.isEmpty(line) or state.sCount[line] < state.blkIndent):
            return False
    if stop < 0 or line >= end or state.src[stop + 2 : state.eMarks[line]].strip():
        return False
    source = state.getLines(start, line + 1, state.blkIndent, False).strip()
    if not source[2:-2].strip():
        return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.block, token.content, token.map = True, source, [start, line + 1]
        token.meta = {"latex": source[2:-2], "is_display": True}
        state.line = line + 1
    return True
