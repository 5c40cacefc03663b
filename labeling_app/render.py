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
- above MAX_FORMULA characters, or MAX_FORMULAS together in a text, LaTeX is shown as its source; so is what
  latex2mathml cannot convert, what defines macros, and what has letters that would not be seen.

Two libraries that are not used, and why. mdit-py-plugins' math rules: texmath drops what follows `\\[x\\]`
on its line, and both take time with the square of the text where a delimiter is never closed. Pygments:
its lexers take 1 s for 4,000 characters of the wrong kind ("\\n" in Java, "a." in TypeScript), so long code
would have to stay plain, and of two responses the highlighted one looks better. The classes are Pygments' own.
"""

import re
import sys
import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import islice
from xml.etree.ElementTree import Element

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

MAX_MARKDOWN = 100_000  # characters of a text that is formatted
MAX_STEPS = 60_000  # rules of the parser; prose takes one for ten characters, dense tables one for three
MAX_NESTING = 60  # levels of lists, quotes and emphasis; a list in a list is two
MAX_MARKERS = 2_000
MAX_FORMULA, MAX_FORMULAS = 2_000, 30_000  # characters of LaTeX, in one formula and in a text
FORMULA_COST = 20  # characters that every formula counts on top of its own
MAX_FORMULA_DEPTH = 60  # elements of MathML inside one another
CACHE_BYTES = 16 * 2**20
EXCERPT = 200  # characters of a text in a list

EMPTY = "(empty)"


class _TooMuch(Exception):
    """The text asks for more work, or for deeper nesting, than a text to read would."""


class _Cache:
    """The texts rendered last, with their HTML: CACHE_BYTES together, whatever their number. For all threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, text: str) -> str | None:
        with self._lock:
            if (found := self._kept.get(text)) is not None:
                self._kept.move_to_end(text)
            return found

    def put(self, text: str, result: str) -> None:
        if (size := _size(text, result)) > CACHE_BYTES // 8:
            return  # one huge text should not drive out all others
        with self._lock:
            if text in self._kept:
                return
            self._kept[text] = result
            self.num_bytes += size
            while self.num_bytes > CACHE_BYTES:
                self.num_bytes -= _size(*self._kept.popitem(last=False))


def _size(text: str, result: str) -> int:
    return sys.getsizeof(text) + sys.getsizeof(result) + 200  # 200: the entry itself


_CACHE = _Cache()


def render(text: str) -> str:
    """HTML blocks that show `text`, whatever it is: always UTF-8, only listed tags, nothing cut.

    Never raises. Takes about 1 ms for 2,000 characters, and no time when it was rendered lately.
    """
    result = _CACHE.get(text)
    if result is None:
        result = _render(text)
        _CACHE.put(text, result)
    return result


def plain(text: str) -> str:
    """The first EXCERPT characters on one line, invisible ones as "[U+202E]". Plain text: escape it for HTML."""
    if not text.strip() and not _HIDDEN.search(text):
        return EMPTY
    line = re.sub(r"\r\n|[\r\n\t]", " ", text[: EXCERPT + 1]).strip(" ")
    return _HIDDEN.sub(_label, line[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")


def _render(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    hidden = (match for match in _HIDDEN.finditer(text) if not _is_in_place(match))
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
    shown = _mark(escaped) if num_hidden <= MAX_MARKERS else _HIDDEN.sub(_label, escaped)
    # A browser drops a newline right after <pre>, and so does nh3: that should not be one of the text's.
    return _safe(f'<pre class="plain" dir="auto">\n{shown}</pre>').replace(">", ">\n", 1)


def _safe(result: str) -> str:
    """The second wall. Entities come after it, because nh3 writes the characters themselves."""
    result = _CLEANER.clean(result)
    return result.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


# Invisible characters

# Controls, format characters, bidi controls, line separators, blank letters, variation selectors, tags,
# surrogates and non-characters: what takes no ink, or moves other characters. Spaces are not in it.
_HIDDEN = re.compile(
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


def _is_in_place(match: re.Match[str]) -> bool:
    run, at, text = match[0], match.start(), match.string
    if run not in _SHAPING or not at:
        return False
    found = _IN_PLACE.match(text, at - 1)
    return found is not None or any(f.start() < at < f.end() for f in _FLAG.finditer(text, max(at - 6, 0), at + 6))


@lru_cache(1000)
def _label_of(run: str) -> str:
    return f"[U+{ord(run[0]):04X} x{len(run)}]" if len(run) > 1 else f"[U+{ord(run):04X}]"


def _label(match: re.Match[str]) -> str:
    """A run of one invisible character as "[U+200B x3]"."""
    run = match[0]
    return run if run in _SHAPING and _is_in_place(match) else _label_of(run)


def _marker(match: re.Match[str]) -> str:
    if _is_in_place(match):
        return match[0]
    char = match[1]
    name = _NAMES.get(char) or unicodedata.name(char, "") or _UNNAMED.get(unicodedata.category(char), "UNNAMED")
    return f'<span class="hidden-character" dir="ltr" title="U+{ord(char):04X} {name}">{_label(match)}</span>'


def _mark(escaped: str) -> str:
    """HTML whose invisible characters are markers; none may be inside a tag."""
    return _HIDDEN.sub(_marker, escaped)


def _text(text: str) -> str:
    return _mark(escapeHtml(text))


def _attribute(text: str) -> str:
    return escapeHtml(_HIDDEN.sub(_label, text))


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


# Code

# Every pattern takes time in proportion to the code, whatever it is: "++" never goes back, and what is
# opened and not closed goes on to the end. Groups are named with Pygments' short names.
_BLOCK = r"/\*(?:.*?\*/|.*)"
_STRING = (
    r"""|(?P<s>\"""(?:.*?\"""|.*)|'{3}(?:.*?'{3}|.*)|"(?:[^"\\\n]|\\.)*+"?|'(?:[^'\\\n]|\\.){0,200}+')"""
    r"|(?P<m>\b\d[\w.]*+)"
)
_WORD = r"|(?P<word>\w++)"
_LANGUAGES = {
    rf"(?P<c>//[^\n]*|{_BLOCK}){_STRING}{_WORD}": "c c++ cpp c# cs csharp dart go java javascript js json jsonc jsx "
    "kotlin kt objc php rs rust scala swift ts tsx typescript zig",
    rf"(?P<c>#[^\n]*){_STRING}{_WORD}": "bash dockerfile elixir julia makefile perl py python python3 r rb ruby sh "
    "shell zsh",
    rf"(?P<c>--[^\n]*|{_BLOCK}){_STRING}{_WORD}": "haskell lua mysql postgresql sql sqlite",
    rf"(?P<c>[#;][^\n]*){_STRING}": "conf ini toml yaml yml",
    rf"(?P<c>{_BLOCK}){_STRING}": "css less scss",
    rf"(?P<c><!--(?:.*?-->|.*))|(?P<k></?[A-Za-z][\w:.-]*+){_STRING}": "html svg vue xml",
    r"(?P<c>%[^\n]*)|(?P<k>\\[a-zA-Z]++)": "latex tex",
    r"^(?:(?P<gi>\+[^\n]*)|(?P<gd>-[^\n]*)|(?P<gh>@@[^\n]*))": "diff patch",
}
_CODE = {name: pattern for pattern, names in _LANGUAGES.items() for name in names.split()}
_KEYWORDS = (
    "abstract and as assert async await begin bool boolean break case catch char class const constexpr continue "
    "create data def default defer del delete do done double elif else elsif end enum esac except export extends "
    "extern false fi final finally float fn for foreach from fun func function global go goto group having if impl "
    "implements import in include inner insert instanceof int interface into is join lambda left let limit local "
    "long loop match mod module mut namespace new nil none nonlocal not null nullptr object on operator or order "
    "override package pass private protected protocol pub public raise range require rescue return select self set "
    "short signed sizeof static string struct super switch table template then this throw throws trait true try "
    "type typedef typeof union unless unsafe unsigned until update use using val values var virtual void volatile "
    "when where while with yield"
)
_KEYWORD = frozenset(_KEYWORDS.split())


def _highlighted(code: str, language: str) -> str:
    """Comments, strings, numbers and words of programming languages in spans; unknown languages plain."""
    if language not in _CODE:
        return _text(code)
    parts, at = [], 0
    for match in re.compile(_CODE[language], re.DOTALL | re.MULTILINE).finditer(code):
        kind = match.lastgroup
        if kind == "word":
            kind = "k" if match[0].lower() in _KEYWORD else None
        if kind and match[0]:
            parts += escapeHtml(code[at : match.start()]), f'<span class="{kind}">{escapeHtml(match[0])}</span>'
            at = match.end()
    return _mark("".join(parts) + escapeHtml(code[at:]))


# LaTeX

_CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
# As on GitHub: no space inside the dollars, no letter or digit outside; so "$5 and $6" is money.
_DOLLARS = re.compile(r"(?<![\w$\\])\$(?![\s$])(?:[^$\\]|\\.)++(?<!\s)\$(?![\w$])", re.DOTALL)
_MACRO = re.compile(r"\\(?:(?:re)?newcommand|def|let|DeclareMathOperator|newenvironment)(?![a-zA-Z])")
# What of a formula's source need not be seen again: commands, environments, colours, lengths.
_UNSEEN = re.compile(
    r"\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}(?:\{[lcr|\s]*\})?|\\(?:text)?color\s*\{[a-zA-Z]{1,15}\}|\\[a-zA-Z]+"
    r"|-?[\d.]+\s*(?:em|ex|pt|mu|mm|cm|in|px)\b"
)
_MATHML = {
    "math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mroot", "mrow", "mspace", "msqrt", "mstyle",
    "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover",
}  # fmt: skip
_MATHML_ATTRIBUTES = {
    "accent", "columnalign", "columnlines", "display", "displaystyle", "fence", "form", "largeop", "linethickness",
    "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowlines", "scriptlevel", "stretchy", "width",
}  # fmt: skip
# Words and small positive lengths. No colour and no negative space: either could cover what is written.
_MATHML_VALUE = re.compile(r"(?!negative)[a-z][a-z -]*|[0-3]?(?:\.\d{1,4})?em|[0-3]")


def _formula(token: Token, env: EnvType) -> str:
    """MathML of a formula, or its source where that is better."""
    latex, is_display = token.meta["latex"], token.meta["is_display"]
    cost = FORMULA_COST + len(latex)
    is_short = len(latex) <= MAX_FORMULA and cost <= env["formulas"]
    if is_short and not _MACRO.search(latex) and not _HIDDEN.search(latex):  # macros can grow without bound
        from latex2mathml.converter import convert_to_element

        env["formulas"] -= cost
        try:
            tree = convert_to_element(latex, display="block" if is_display else "inline")
            # Comments, link addresses and many an argument leave no trace in the tree.
            if _letters(_UNSEEN.sub(" ", latex)) <= _letters(_words("".join(tree.itertext()))):
                return _mathml(tree)
        except Exception:  # latex2mathml raises what it comes across, RecursionError and StopIteration too
            pass
    return f'<code class="formula" dir="ltr">{_text(token.content)}</code>'


def _words(text: str) -> str:
    """Text of latex2mathml, which writes symbols as references."""
    return re.sub("&#x([0-9A-Fa-f]{2,5});", lambda match: chr(int(match[1], 16)), text)


def _letters(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W_]", unicodedata.normalize("NFKC", text)))


def _mathml(element: Element, depth: int = 1) -> str:
    """Serialised by ourselves: latex2mathml leaves `<` in texts as it is. Raises _TooMuch for what is not listed."""
    words = _words(element.text or "")
    if element.tag not in _MATHML or depth > MAX_FORMULA_DEPTH or _HIDDEN.search(words):
        raise _TooMuch
    if re.match(r"\\[a-zA-Z]", words):
        raise _TooMuch  # a command that latex2mathml does not know is left as it was
    shown = "".join(
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if name in _MATHML_ATTRIBUTES and element.tag != "mpadded" and _MATHML_VALUE.fullmatch(value)
    )
    inner = escapeHtml(words) + "".join(_mathml(child, depth + 1) for child in element)
    return f"<{element.tag}{shown}>{inner}</{element.tag}>"


def _inline_math(state: StateInline, silent: bool) -> bool:
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


def _block_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
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


# Markdown

_ADDRESS = re.compile(r"https?://[^\s/?#@\\]+(?:[/?#][^\s\\]*)?|mailto:[^\s\\]+", re.IGNORECASE)


class _Inline(ParserInline):
    def skipToken(self, state: StateInline) -> None:
        _count(state.env)  # unclosed brackets are looked at again and again, and no rule is asked
        super().skipToken(state)


def _count(env: EnvType, num: int = 1) -> None:
    env["steps"] -= num
    if env["steps"] < 0:
        raise _TooMuch


def _count_inline(state: StateInline, silent: bool) -> bool:
    _count(state.env)
    return False


def _count_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    _count(state.env)
    if state.level > MAX_NESTING:
        raise _TooMuch  # before the library's own limit, at which it drops what is inside
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
            raise _TooMuch
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
        return _text(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<code dir="auto">{_text(tokens[idx].content)}</code>'

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<pre class="code" dir="ltr"><code>{_text(tokens[idx].content)}</code></pre>\n'

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        info = tokens[idx].info.strip()
        told = f'<div class="language" dir="auto">{_text(info)}</div>' if info else ""
        code = _highlighted(tokens[idx].content, info.split(maxsplit=1)[0].lower() if info else "")
        return f'{told}<pre class="code" dir="ltr"><code>{code}</code></pre>\n'

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _formula(tokens[idx], env)

    def formula_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<div class="formula">{_formula(tokens[idx], env)}</div>\n'

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """Never loaded: that would tell its server who reads, and it could be another picture tomorrow."""
        token = tokens[idx]
        title = f' "{token.attrs["title"]}"' if "title" in token.attrs else ""
        told = f"[image: {token.content}] {token.attrs['src']}{title}"
        return f'<span class="image">{_text(told)}</span>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        env["depth"] += 1
        href, safe = str(token.attrs["href"]), 'target="_blank" rel="noopener noreferrer nofollow"'
        if not href:
            return f"<a {safe}>"  # without an address it is no link
        title = f'{href} "{token.attrs["title"]}"' if "title" in token.attrs else href
        return f'<a href="{escapeHtml(href)}" title="{_attribute(title)}" {safe}>'


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("default", {"breaks": True}, renderer_cls=_Renderer)
    parser.inline = _Inline()
    # "reference" takes the lines that define links away; "normalize" makes null bytes look like any broken character.
    parser.disable(["reference", "normalize", "linkify"])
    ends = RuleOptionsType(alt=["paragraph", "blockquote", "list"])
    parser.block.ruler.before("table", "count", _count_block, ends)
    parser.block.ruler.at("table", _whole_table, RuleOptionsType(alt=["paragraph"]))
    parser.block.ruler.before("fence", "formula_block", _block_math, ends)
    parser.inline.ruler.before("text", "count", _count_inline)
    parser.inline.ruler.before("escape", "formula", _inline_math)
    parser.validateLink = lambda url: _ADDRESS.fullmatch(url) is not None
    return parser


_ATTRIBUTES = {
    "a": {"href", "title"}, "ol": {"start", "dir"}, "td": {"dir", "align"}, "th": {"dir", "align"},
    "span": {"dir", "title"}, "p": {"dir"}, "h1": {"dir"}, "h2": {"dir"}, "h3": {"dir"}, "h4": {"dir"}, "h5": {"dir"},
    "h6": {"dir"}, "ul": {"dir"}, "li": {"dir"}, "blockquote": {"dir"}, "table": {"dir"}, "div": {"dir"},
    "pre": {"dir"}, "code": {"dir"}, **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES),
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
