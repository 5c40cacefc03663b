"""Text of a model or of a person, as HTML that is harmless on an annotator's screen and hides nothing of it.

Markdown, tables, highlighted code, LaTeX as MathML, right-to-left text. Two walls: this module writes
only tags of its own and escapes all else, then nh3 lets through only what is listed here. Tags in the
text show as text; nothing is loaded; links go to http, https and mail only, and tell where. What a
text could hide is shown: invisible and bidi control characters as markers ("[U+202E]"), link
definitions and image addresses as they were written, a table with rows longer than its head as plain
lines. `$`, `{` and the backtick leave as entities: no template engine finds anything to evaluate.

Limits, all by size and never by the clock, so that everybody sees a text alike:

- above MAX_MARKDOWN characters, MAX_STEPS steps of the parser, MAX_NESTING levels or MAX_MARKERS runs of
  invisible characters, a text is shown whole but plain, in <pre>;
- above formula.MAX_FORMULA characters, or MAX_FORMULAS together in a text, LaTeX is shown as its source; so is what
  latex2mathml cannot convert, what defines macros, and what has letters that would not be seen.
"""

import re
import sys
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import islice

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.parser_inline import ParserInline
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from labeling_app.formula import MATHML, MATHML_ATTRIBUTES, MAX_FORMULAS, block_math, formula_html, inline_math
from labeling_app.highlight import highlighted
from labeling_app.invisible import HIDDEN, is_in_place, label, mark, shown_attribute, shown_text

MAX_MARKDOWN = 100_000  # characters of a text that is formatted
MAX_STEPS = 60_000  # rules of the parser; prose takes one for ten characters, dense tables one for three
MAX_NESTING = 60  # levels of lists, quotes and emphasis; a list in a list is two
MAX_MARKERS = 2_000
CACHE_BYTES = 16 * 2**20
EXCERPT = 200  # characters of a text in a list

EMPTY = "(empty)"


class TooMuch(Exception):
    """The text asks for more work, or for deeper nesting, than a text to read would."""


class _Cache:
    """The texts rendered last, with their HTML: about CACHE_BYTES together, whatever their number. For all threads."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, tuple[str, int]] = OrderedDict()  # text to HTML and the bytes of both
        self.num_bytes = 0
        self._lock = threading.Lock()

    def get(self, text: str) -> str | None:
        with self._lock:
            if text not in self.kept:
                return None
            self.kept.move_to_end(text)
            return self.kept[text][0]

    def put(self, text: str, result: str) -> None:
        size = sys.getsizeof(text) + sys.getsizeof(result) + 300  # 300: the entry itself
        if size > CACHE_BYTES // 8:
            return  # one huge text should not drive out all others
        with self._lock:
            if text in self.kept:
                return
            self.kept[text] = result, size
            self.num_bytes += size
            while self.num_bytes > CACHE_BYTES:
                self.num_bytes -= self.kept.popitem(last=False)[1][1]


_CACHE = _Cache()


def render(text: str) -> str:
    """HTML blocks that show `text`, whatever it is: always UTF-8, only listed tags, nothing cut.

    Never raises. 2,000 characters take about 1 ms (prose or code) to 3 (all lists, links and emphasis), the slowest
    text of tests/hostile.py 0.8 s; a text that was rendered lately takes none.
    """
    result = _CACHE.get(text)
    if result is None:
        result = _render(text)
        _CACHE.put(text, result)
    return result


def plain(text: str) -> str:
    """The first EXCERPT characters on one line, invisible ones as "[U+202E]". Plain text: escape it for HTML."""
    if not text.strip() and not HIDDEN.search(text):
        return EMPTY
    line = re.sub(r"\r\n|[\r\n\t]", " ", text[: EXCERPT + 1]).strip(" ")
    return HIDDEN.sub(label, line[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")


def _render(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    hidden = (match for match in HIDDEN.finditer(text) if not is_in_place(match))
    num_hidden = sum(1 for _ in islice(hidden, MAX_MARKERS + 1))
    if not text.strip() and not num_hidden:
        return f'<p class="empty">{EMPTY}</p>'
    if len(text) > MAX_MARKDOWN or num_hidden > MAX_MARKERS:
        return _as_plain(text, num_hidden)
    env = {"steps": MAX_STEPS, "depth": 0, "formulas": MAX_FORMULAS, "rtl": bool(_RTL.search(text))}
    try:
        result = _safe(_parser().render(text, env))
    except Exception:  # whatever a text does to a library's parser, people should see the text
        return _as_plain(text, num_hidden)
    if not re.sub(r"<(?!hr)[^>]*>", "", result).strip():
        return _as_plain(text, num_hidden)  # such as a lone "#": a heading without words
    return result


def _as_plain(text: str, num_hidden: int) -> str:
    escaped = escapeHtml(text)
    # A marker is a hundred times its character: a megabyte of them would be too much for a browser.
    shown = mark(escaped) if num_hidden <= MAX_MARKERS else HIDDEN.sub(label, escaped)
    # A browser drops a newline right after <pre>, and so does nh3: that should not be one of the text's.
    return _safe(f'<pre class="plain" dir="auto">\n{shown}</pre>').replace(">", ">\n", 1)


def _safe(result: str) -> str:
    """The second wall. Entities come after it, because nh3 writes the characters themselves."""
    result = _CLEANER.clean(result)
    return result.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


# Direction

_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")


def _direction(tokens: Sequence[Token], at: int) -> str | None:
    """Which way a list, quote or table goes: as the first letter in it.

    `dir="auto"` cannot tell: it passes over the paragraphs inside, which have a `dir` of their own.
    """
    for token in tokens[at : at + 20]:
        for char in token.content if token.type == "inline" else "":
            if (bidi := unicodedata.bidirectional(char)) in ("L", "R", "AL"):
                return "ltr" if bidi == "L" else "rtl"
    return None


# Markdown

_ADDRESS = re.compile(r"https?://[^\s/?#@\\]+(?:[/?#][^\s\\]*)?|mailto:[^\s\\]+", re.IGNORECASE)


class _Inline(ParserInline):
    def skipToken(self, state: StateInline) -> None:
        _count(state.env)  # unclosed brackets are looked at again and again, and no rule is asked
        super().skipToken(state)


def _count(env: EnvType, num: int = 1) -> None:
    env["steps"] -= num
    if env["steps"] < 0:
        raise TooMuch


def _count_inline(state: StateInline, silent: bool) -> bool:
    _count(state.env)
    return False


def _count_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    _count(state.env)
    if state.level > MAX_NESTING:
        raise TooMuch  # before the library's own limit, at which it drops what is inside
    return False


def _whole_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The library's table; but none where a row has more cells than the head, because those would not be shown."""
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    if silent:
        return True
    _count(state.env, len(state.tokens) - first)
    head, body = state.getLines(start, start + 1, 0, True), state.getLines(start + 2, state.line, 0, True)
    shown = "".join(token.content for token in state.tokens[first:] if token.type == "inline")
    if re.sub(r"[\s|\\]", "", head + body) == re.sub(r"[\s|\\]", "", shown):
        return True
    del state.tokens[first:]
    state.line = start
    return False


class _Renderer(RendererHTML):
    """Tokens to HTML; methods are named after the tokens, as markdown-it-py wants it."""

    def renderToken(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        env["depth"] += token.nesting
        if env["depth"] > 2 * MAX_NESTING:
            raise TooMuch
        if token.nesting == 1:
            if align := token.attrs.pop("style", None):
                token.attrSet("align", str(align).removeprefix("text-align:"))
            is_tight_item = token.tag == "li" and tokens[idx + 1].hidden
            if is_tight_item or token.tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6", "td", "th"):
                token.attrSet("dir", "auto")
            elif env["rtl"] and token.tag in ("ul", "ol", "blockquote", "table"):
                token.attrSet("dir", _direction(tokens, idx) or "auto")
        return super().renderToken(tokens, idx, options, env)

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return shown_text(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<code dir="auto">{shown_text(tokens[idx].content)}</code>'

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<pre class="code" dir="ltr"><code>{shown_text(tokens[idx].content)}</code></pre>\n'

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        info = tokens[idx].info.strip()
        told = f'<div class="language" dir="auto">{shown_text(info)}</div>' if info else ""
        code = highlighted(tokens[idx].content, info.split(maxsplit=1)[0].lower() if info else "")
        return f'{told}<pre class="code" dir="ltr"><code>{code}</code></pre>\n'

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return formula_html(tokens[idx], env)

    def formula_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<div class="formula">{formula_html(tokens[idx], env)}</div>\n'

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Never loaded: that would tell its server who reads, and it could be another picture tomorrow."""
        token = tokens[idx]
        title = f' "{token.attrs["title"]}"' if "title" in token.attrs else ""
        told = f"[image: {token.content}] {token.attrs['src']}{title}"
        return f'<span class="image">{shown_text(told)}</span>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        env["depth"] += 1
        href, safe = str(token.attrs["href"]), 'target="_blank" rel="noopener noreferrer nofollow"'
        if not href:
            return f"<a {safe}>"  # without an address it is no link
        title = f'{href} "{token.attrs["title"]}"' if "title" in token.attrs else href
        return f'<a href="{escapeHtml(href)}" title="{shown_attribute(title)}" {safe}>'


@cache
def _parser() -> MarkdownIt:
    options = {"breaks": True, "maxNesting": MAX_NESTING + 10}
    parser = MarkdownIt("default", options, renderer_cls=_Renderer)
    parser.inline = _Inline()
    # "reference" takes the lines that define links away; "normalize" makes null bytes look like any broken character.
    parser.disable(["reference", "normalize", "linkify"])
    ends = RuleOptionsType(alt=["paragraph", "blockquote", "list"])
    parser.block.ruler.before("table", "count", _count_block, ends)
    parser.block.ruler.at("table", _whole_table, RuleOptionsType(alt=["paragraph"]))
    parser.block.ruler.before("fence", "formula_block", block_math, ends)
    parser.inline.ruler.before("text", "count", _count_inline)
    parser.inline.ruler.before("escape", "formula", inline_math)
    parser.validateLink = lambda url: _ADDRESS.fullmatch(url) is not None
    return parser


_ATTRIBUTES = {
    "a": {"href", "title"}, "ol": {"start", "dir"}, "td": {"dir", "align"}, "th": {"dir", "align"},
    "span": {"dir", "title"}, "p": {"dir"}, "h1": {"dir"}, "h2": {"dir"}, "h3": {"dir"}, "h4": {"dir"}, "h5": {"dir"},
    "h6": {"dir"}, "ul": {"dir"}, "li": {"dir"}, "blockquote": {"dir"}, "table": {"dir"}, "div": {"dir"},
    "pre": {"dir"}, "code": {"dir"}, **dict.fromkeys(MATHML, MATHML_ATTRIBUTES),
}  # fmt: skip
_CLASSES = {
    "span": {"hidden-character", "image", "c", "k", "s", "m", "gi", "gd", "gh"},
    "pre": {"code", "plain"},
    "code": {"formula"},
    "div": {"formula", "language"},
}
TAGS = set(_ATTRIBUTES) | {"br", "em", "hr", "s", "strong", "tbody", "thead", "tr"}
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes=_ATTRIBUTES,
    allowed_classes=_CLASSES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)
