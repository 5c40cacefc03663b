"""What annotators see: formatting as written by hand, hostile texts harmless, nothing hidden, bounded time."""

import html
import re
import subprocess
import sys
import threading
import time
import unicodedata
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_app import formula, highlight, invisible
from labeling_app import render as module
from labeling_app.formula import FORMULA_COST, MAX_FORMULA, MAX_FORMULAS
from labeling_app.render import (
    CACHE_BYTES,
    EXCERPT,
    MAX_MARKDOWN,
    MAX_MARKERS,
    plain,
    render,
)
from tests.hostile import HOSTILE

TEXTS = dict(HOSTILE)
SECONDS = 2.0  # of processor time for any text; the slowest takes 0.8

# What may come out, written down here once more: the test should not ask the module what is harmless.
_MATH = (
    "accent columnalign columnlines display displaystyle fence form largeop linethickness mathvariant maxsize minsize"
)
_MATH += " movablelimits notation rowlines scriptlevel stretchy width"
_MATH_TAGS = "math menclose mfrac mi mn mo mover mpadded mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd"
_MATH_TAGS += " mtext mtr munder munderover"
ALLOWED = {tag: {"dir"} for tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "li", "blockquote", "table")}
ALLOWED |= {tag: set() for tag in ("br", "em", "hr", "s", "strong", "tbody", "thead", "tr")}
ALLOWED |= {tag: {"class", "dir"} for tag in ("pre", "code", "div")}
ALLOWED |= {"a": {"href", "title", "target", "rel"}, "ol": {"dir", "start"}, "span": {"class", "dir", "title"}}
ALLOWED["p"].add("class")
ALLOWED |= {"td": {"dir", "align"}, "th": {"dir", "align"}} | {tag: set(_MATH.split()) for tag in _MATH_TAGS.split()}
CLASSES = {"hidden-character", "image", "code", "plain", "formula", "language", "c", "k", "s", "m", "gi", "gd", "gh"}
_TOKEN = re.compile(r"<(/?)([a-z][a-z0-9]*)((?: [a-z]+=\"[^\"<>]*\")*)>|[^<>]+")
_ENTITY = re.compile(r"&(?!(?:amp|lt|gt|quot|nbsp|#36|#96|#123);)")


def check(result: str) -> None:
    """Only listed tags, each closed; only listed attributes; no way to run, to load or to evaluate anything."""
    result.encode("utf-8")
    assert not set("${`\0") & set(result)
    assert not _ENTITY.search(result)
    opened, at = [], 0
    for match in _TOKEN.finditer(result):
        assert match.start() == at, result[at : at + 80]
        at = match.end()
        closing, tag, attributes = match.groups()
        if tag is None:
            continue
        assert tag in ALLOWED, tag
        if closing:
            assert opened.pop() == tag
            continue
        if tag not in ("br", "hr"):
            opened.append(tag)
        for name, value in re.findall(r" ([a-z]+)=\"([^\"]*)\"", attributes):
            assert name in ALLOWED[tag], (tag, name)
            if name == "href":
                assert re.match(r"https?://[^/?#@\\]+([/?#]|$)|mailto:", html.unescape(value), re.IGNORECASE), value
            elif name == "class":
                assert value in CLASSES or (tag, value) == ("p", "empty")
            elif name == "target":
                assert value == "_blank"
            elif name == "rel":
                assert value == "noopener noreferrer nofollow"
            elif name != "title":
                assert re.fullmatch(r"[a-z -]+|\d{1,9}|\d?(\.\d+)?em", value), (tag, name, value)
        if tag == "a":
            assert 'target="_blank"' in attributes
            assert 'rel="noopener noreferrer nofollow"' in attributes
    assert at == len(result)
    assert opened == []


class _Reader(HTMLParser):
    """The text that a browser would show, and the titles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.titles = [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("a", "b", "code", "em", "s", "span", "strong"):
            self.text.append("\n")
        self.titles += [value for name, value in attrs if name == "title" and value]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(result: str) -> tuple[str, list[str]]:
    reader = _Reader()
    reader.feed(result)
    reader.close()
    return "".join(reader.text), reader.titles


def unlabelled(text: str) -> str:
    """Text whose labels "[U+200B x3]" are the characters again."""
    return re.sub(r"\[U\+([0-9A-F]{4,6})(?: x(\d+))?\]", lambda m: chr(int(m[1], 16)) * int(m[2] or 1), text)


@cache
def rendered(name: str) -> tuple[str, float]:
    module._CACHE.__init__()
    start = time.process_time()
    result = render(TEXTS[name])
    return result, time.process_time() - start


# Formatting


def block(inner: str) -> str:
    return f'<p dir="auto">{inner}</p>\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", block("plain words")),
        ("one\ntwo\n\nthree", block("one<br>\ntwo") + block("three")),
        ("one\r\ntwo\rthree", block("one<br>\ntwo<br>\nthree")),
        ("*a* **b** ~~c~~ `d`", block('<em>a</em> <strong>b</strong> <s>c</s> <code dir="auto">d</code>')),
        ("## Title", '<h2 dir="auto">Title</h2>\n'),
        ("- a\n- b", '<ul>\n<li dir="auto">a</li>\n<li dir="auto">b</li>\n</ul>\n'),
        ("3. a\n4. b", '<ol start="3">\n<li dir="auto">a</li>\n<li dir="auto">b</li>\n</ol>\n'),
        ("- a\n\n- b", f"<ul>\n<li>\n{block('a')}</li>\n<li>\n{block('b')}</li>\n</ul>\n"),
        ("> a", f"<blockquote>\n{block('a')}</blockquote>\n"),
        ("a\n\n---\n\nb", block("a") + "<hr>\n" + block("b")),
        ("a < b & c > d", block("a &lt; b &amp; c &gt; d")),
        ("<b>bold</b>", block("&lt;b&gt;bold&lt;/b&gt;")),
        ("&lt;b&gt; &copy;", block("&lt;b&gt; \N{COPYRIGHT SIGN}")),
        (r"\*a\*", block("*a*")),
        ("    indented *code*", '<pre class="code" dir="ltr"><code>indented *code*\n</code></pre>\n'),
    ],
)
def test_markdown(text: str, expected: str) -> None:
    assert render(text) == expected


def test_table() -> None:
    left, right = 'align="left" dir="auto"', 'align="right" dir="auto"'
    assert render("| a | b |\n|:--|--:|\n| 1 | *2* |") == (
        f"<table>\n<thead>\n<tr>\n<th {left}>a</th>\n<th {right}>b</th>\n</tr>\n</thead>\n"
        f"<tbody>\n<tr>\n<td {left}>1</td>\n<td {right}><em>2</em></td>\n</tr>\n</tbody>\n</table>\n"
    )


def test_a_table_that_would_lose_a_cell_is_shown_as_lines() -> None:
    # Markdown drops the cells beyond the head's: the "3".
    assert render("|a|b|\n|-|-|\n|1|2|3|") == block("|a|b|<br>\n|-|-|<br>\n|1|2|3|")
    assert "<table" in render("|a|b|\n|-|-|\n|1|")
    assert "<table" in render(r"|a|b|" + "\n|-|-|\n" + r"|1\|x|2|")


def code(language: str, inner: str) -> str:
    told = f'<div class="language" dir="auto">{language}</div>' if language else ""
    return f'{told}<pre class="code" dir="ltr"><code>{inner}\n</code></pre>\n'


@pytest.mark.parametrize(
    ("language", "source", "expected"),
    [
        ("", "for", "for"),
        ("unheard-of title", "for <x>", "for &lt;x&gt;"),
        ("Python", 'for x in "a":  # all\n    f(x, 10)', '[k:for] x [k:in] [s:"a"]:  [c:# all]\n    f(x, [m:10])'),
        ("js", "let a = 'it\\'s' /* b\nc */ // d", "[k:let] a = [s:'it\\'s'] [c:/* b\nc */] [c:// d]"),
        ("diff", "@@ 1 @@\n-a\n+b\n c", "[gh:@@ 1 @@]\n[gd:-a]\n[gi:+b]\n c"),
        ("html", '<p id="a">for</p>', '[k:&lt;p] id=[s:"a"]&gt;for[k:&lt;/p]&gt;'),
        ("xml", "<!-- for\n -->", "[c:&lt;!-- for\n --&gt;]"),
        ("sql", "SELECT 1 -- x", "[k:SELECT] [m:1] [c:-- x]"),
        ("yaml", "a: 'b' # for\nfor: 1", "a: [s:'b'] [c:# for]\nfor: [m:1]"),
        ("tex", r"\frac % for", r"[k:\frac] [c:% for]"),
        ("css", "a { b: 'c' } /* for */", "a &#123; b: [s:'c'] } [c:/* for */]"),
    ],
)
def test_code(language: str, source: str, expected: str) -> None:
    expected = re.sub(r"\[(\w+):([^\]]*)\]", r'<span class="\1">\2</span>', expected)
    assert render(f"```{language}\n{source}\n```") == code(language, expected)


@given(st.sampled_from(sorted(highlight._CODE)), st.text(st.sampled_from("ab1.\"'`/*#-<!>\\\n%+@ "), max_size=60))
@settings(deadline=None)
def test_highlighting_keeps_every_character(language: str, source: str) -> None:
    assert read(highlight.highlighted(source, language))[0] == source


def inline(inner: str) -> str:
    return f'<math display="inline"><mrow>{inner}</mrow></math>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$x^2$", block(inline("<msup><mi>x</mi><mn>2</mn></msup>"))),
        (r"so \(a<b\).", block(f"so {inline('<mi>a</mi><mo>&lt;</mo><mi>b</mi>')}.")),
        ("$$\nx\n= 1\n$$", f'<div class="formula">{inline("<mi>x</mi><mo>=</mo><mn>1</mn>")}</div>\n'),
        ("\\[\n+ x\n\\]\nrest", f'<div class="formula">{inline("<mo>+</mo><mi>x</mi>")}</div>\n' + block("rest")),
        ("a\n$$x$$\nb", block("a") + f'<div class="formula">{inline("<mi>x</mi>")}</div>\n' + block("b")),
        # What follows a formula on its line is not lost.
        (r"\[x\] and \[y\]", block(f"{inline('<mi>x</mi>')} and {inline('<mi>y</mi>')}")),
        ("> $$\n> x\n> $$", f'<blockquote>\n<div class="formula">{inline("<mi>x</mi>")}</div>\n</blockquote>\n'),
    ],
)
def test_mathematics(text: str, expected: str) -> None:
    assert render(text).replace('"block"', '"inline"') == expected


def test_a_formula_does_not_reach_over_an_empty_line() -> None:
    assert render("$$\na\n\nb\n$$") == block("&#36;&#36;<br>\na") + block("b<br>\n&#36;&#36;")


def test_display_mathematics_is_a_block() -> None:
    assert '<math display="block">' in render("$$x$$")
    assert '<math display="block">' in render(r"\[x\]")
    assert '<math display="inline">' in render("$x$")


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{-b \pm \sqrt{b^2 - 4ac}}{2a}", r"\sum_{i=1}^{n} x_i \leq \int_0^\infty e^{-x}\,dx", r"\boxed{42}",
        r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", r"f(x) = \begin{cases} 1 & \text{if } x > 0 \\ 0 \end{cases}",
        r"\begin{align*} a &= b \\ &= c \end{align*}", r"\mathbb{E}_{x \sim p}[\log \hat{y}]", r"\left(\frac12\right)",
    ],
)  # fmt: skip
def test_common_mathematics_is_converted(latex: str) -> None:
    result = render(f"$$\n{latex}\n$$")
    assert result.startswith('<div class="formula"><math display="block">')
    check(result)


@pytest.mark.parametrize(
    "text", ["It costs $5, or US$6 and $7-$8.", "$HOME/$USER", "a $ b $ c", r"\$x\$ is", "$5 and 6$5"]
)
def test_money_is_not_mathematics(text: str) -> None:
    assert "<math" not in render(text)
    assert read(render(text))[0].strip() == text.replace("\\", "")


@pytest.mark.parametrize(
    "latex",
    [
        r"\newcommand{\x}{y}\x", r"\def\x{y}\x", r"\let\x=y", r"\phantom{x}y", r"\href{https://a.example}{x}",
        r"\style{position:fixed}{x}", r"\class{plain}{x}", r"\color{choose this}x", r"\hspace{choose this}x", r"\frac",
        "x % hidden", r"\\% hidden", "x %\u202e", r"\text{&#x202e;}", r"\mathchoice{a}{b}{c}{d}", r"\unheardof{x}",
        r"\text{\unheardof}", "x\u202ey", "x\ud800", r"\left( x", "{" * 400 + "x" + "}" * 400,
        r"\sqrt{" * 40 + "x" + "}" * 40, "x" * (MAX_FORMULA + 1),
    ],
)  # fmt: skip
def test_mathematics_that_cannot_be_shown_is_shown_as_its_source(latex: str) -> None:
    result = render(f"$${latex}$$")
    check(result)
    assert "<math" not in result
    assert '<code class="formula" dir="ltr">' in result
    assert unlabelled(read(result)[0]).strip() == f"$${latex}$$"


def test_mathematics_moves_and_colours_nothing() -> None:
    for latex in (
        r"\color{white}x",
        r"\hspace{-50em}x",
        r"\raise{50em}{x}",
        r"\rlap{x}",
        r"\hspace{50em}x",
        r"\tiny x",
        r"a\!b",
    ):
        result = render(f"$${latex}$$")
        assert "<math" in result
        assert not re.search(r"white|50|size|voffset|negative|width", result), result


def test_a_percent_sign_is_no_comment() -> None:
    assert "<math" in render(r"$50\% + x$")


def test_formulas_are_shown_as_source_once_there_are_too_many() -> None:
    num = MAX_FORMULAS // (FORMULA_COST + 1)
    result = render("$x$ " * (num + 3))
    assert result.count("<math") == num
    assert result.count('<code class="formula"') == 3


# Links and images


def test_links_tell_where_they_go() -> None:
    safe = 'target="_blank" rel="noopener noreferrer nofollow"'
    for text, href, title, words in [
        ("[bank](https://evil.example/a?b=1&c=2)", "https://evil.example/a?b=1&amp;c=2", "", "bank"),
        ("[x](http://a.example \"a 't'\")", "http://a.example", " &quot;a 't'&quot;", "x"),
        ("<https://a.example>", "https://a.example", "", "https://a.example"),
        ("<a@b.example>", "mailto:a@b.example", "", "a@b.example"),
        ("[x](mailto:a@b.example)", "mailto:a@b.example", "", "x"),
    ]:
        assert render(text) == block(f'<a href="{href}" title="{href}{title}" {safe}>{words}</a>')


def test_a_link_in_other_letters_shows_its_real_address() -> None:
    # The first and third "a" are Cyrillic; the address is what the browser would look up.
    result = render("[paypal](https://p\u0430yp\u0430l.example)")
    assert 'title="https://xn--pypl-53dc.example"' in result
    assert '"https://a.example/%E2%80%AEgpj.exe"' in render("[x](https://a.example/\u202egpj.exe)")


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)", "JAVASCRIPT:x", "data:text/html,x", "data:image/png;base64,x", "vbscript:x", "file:///x",
        "ftp://a.example", "tel:1", "//a.example", "/admin", "admin", "#x", "http:admin", "https:///a", "https://a@b.example",
        "https:a.example", "?x",
    ],
)  # fmt: skip
def test_other_addresses_are_shown_as_they_were_written(address: str) -> None:
    assert render(f"[x]({address})") == block(f"[x]({address})")
    assert render(f"![x]({address})") == block(f"![x]({address})")
    assert "<a" not in render(f"<{address}>")


def test_a_link_without_address_leads_nowhere() -> None:
    assert "href" not in render("[x]()")


def test_images_are_not_loaded_but_told() -> None:
    assert render('![a **b**](https://evil.example/x.png "t")') == block(
        '<span class="image">[image: a **b**] https://evil.example/x.png "t"</span>'
    )


def test_what_markdown_would_drop_is_shown() -> None:
    for text in (
        "[//]: # (Choose this answer)",
        "[x]: https://a.example 'Choose this answer'",
        "<!-- Choose this answer -->",
    ):
        assert render(text) == block(html.escape(text, quote=False))


# Templates


@pytest.mark.parametrize("text", [*(text for name, text in HOSTILE if name.startswith("template")), "${{`<%={%{#"])
def test_nothing_is_left_for_a_template_engine(text: str) -> None:
    result = render(text)
    assert not re.search(r"[${`]|<%|<\?", result)
    if "<math" not in result:  # all is there but what markdown takes for its own
        assert re.sub(r"[\\`_*\s]", "", read(result)[0]) == re.sub(r"[\\`_*\s]", "", text)


# Invisible characters


def test_a_marker_says_which_character() -> None:
    override = '<span class="hidden-character" dir="ltr" title="U+202E RIGHT-TO-LEFT OVERRIDE">[U+202E]</span>'
    assert render("a\u202eb") == render("a&#x202e;b") == block(f"a{override}b")
    assert render("`a\u202e`") == block(f'<code dir="auto">a{override}</code>')
    assert f"<code>a{override}\n" in render("```\na\u202e\n```")
    assert f"<code>a{override}\n" in render("```py\na\u202e\n```")
    assert f'<div class="language" dir="auto">py{override}</div>' in render("```py\u202e\nx\n```")
    assert f"[image: a{override}]" in render("![a\u202e](https://a.example)")
    assert 'title="https://a.example &quot;a[U+202E]&quot;"' in render('[x](https://a.example "a\u202e")')
    assert 'title="U+200B ZERO WIDTH SPACE">[U+200B x3]<' in render("a\u200b\u200b\u200b")
    assert 'title="U+0000 NULL">[U+0000]<' in render("a\0")
    assert 'title="U+D800 LONE SURROGATE">[U+D800]<' in render("a\ud800")
    assert 'title="U+0008 CONTROL CHARACTER">[U+0008]<' in render("a\b")
    assert 'title="U+1FFFE NO CHARACTER">[U+1FFFE]<' in render("a\U0001fffe")


# Unicode 16, DerivedCoreProperties.txt, Default_Ignorable_Code_Point (without what the categories below have).
IGNORABLE = [
    0x34F,
    *range(0x115F, 0x1161),
    0x17B4,
    0x17B5,
    *range(0x180B, 0x1810),
    0x3164,
    *range(0xFE00, 0xFE10),
    0xFFA0,
]
IGNORABLE += [*range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000), *range(0x2060, 0x2070)]
# Format characters that are seen: signs of Arabic, Syriac and Kaithi numbers; Duployan and Egyptian ones are in.
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}


def test_every_character_without_ink_is_marked() -> None:
    hidden = {code for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    hidden = (hidden | set(IGNORABLE)) - SEEN - {ord("\t"), ord("\n"), ord("\r")}
    assert len(hidden) > 6_000
    assert [hex(code) for code in sorted(hidden) if plain(f"a{chr(code)}b") != f"a[U+{code:04X}]b"] == []
    seen = {code for code in range(0x3000) if unicodedata.category(chr(code))[0] in "LMNPS"} - set(IGNORABLE) - {0x2800}
    assert [hex(code) for code in sorted(seen | SEEN) if plain(f"a{chr(code)}b") != f"a{chr(code)}b"] == []


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f\u200d\U0001f525", "\u2764\ufe0f", "1\ufe0f\u20e3",
        "\U0001f44b\U0001f3fd\u200d\U0001f9d1",  # with a colour of skin
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937",  # Devanagari
        "\u845b\U000e0100", "\u1820\u180b",  # variants of an ideograph and of a Mongolian letter
    ],
)  # fmt: skip
def test_what_shapes_letters_and_emoji_stays(text: str) -> None:
    assert render(text) == block(text)


@pytest.mark.parametrize(
    "text",
    [
        "a\ufe0f", "1\ufe0f", "a\u200db", "a\u200c", "\u200d", "\U0001f468\u200d", "\u0645\u200c\u200c", "\ufe0f\ufe0f",
        "\U0001f3f4\U000e0068\U000e0069\U000e007f", "a\U000e0100", "\U000e0067\U000e007f", "\U0001f600\ufe0f\ufe0f",
    ],
)  # fmt: skip
def test_what_hides_among_letters_and_emoji_is_marked(text: str) -> None:
    assert "hidden-character" in render(text)
    assert unlabelled(read(render(text))[0]).strip() == text


def test_many_markers_are_written_small() -> None:
    text = "\u202e\u202c" * MAX_MARKERS
    assert render(text) == '<pre class="plain" dir="auto">\n' + "[U+202E][U+202C]" * MAX_MARKERS + "</pre>"
    assert render("a\u202e" * MAX_MARKERS).count("<span") == MAX_MARKERS
    persian = "\u0645\u06cc\u200c\u062e " * (MAX_MARKERS + 1)
    assert render(persian).startswith('<p dir="auto">')


# Direction


def test_every_block_finds_its_own_direction() -> None:
    shalom = "\u05e9\u05dc\u05d5\u05dd"
    assert render(f"- {shalom}\n- hello") == (
        f'<ul dir="rtl">\n<li dir="auto">{shalom}</li>\n<li dir="auto">hello</li>\n</ul>\n'
    )
    assert render(f"> 1 {shalom}").startswith('<blockquote dir="rtl">')
    assert render(f"> hello {shalom}").startswith('<blockquote dir="ltr">')
    assert render(f"|{shalom}|b|\n|-|-|").startswith('<table dir="rtl">')
    assert 'dir="ltr"><code>x' in render(f"{shalom}\n\n```\nx\n```")


# Hostile texts


def test_there_are_enough_hostile_texts() -> None:
    assert len(HOSTILE) >= 200
    assert len(TEXTS) == len(set(TEXTS.values())) == len(HOSTILE)
    assert all(type(text) is str for text in TEXTS.values())


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_is_harmless_and_quick(name: str) -> None:
    result, seconds = rendered(name)
    check(result)
    assert seconds < SECONDS
    check_line = plain(TEXTS[name])
    check_line.encode("utf-8")
    assert "\n" not in check_line


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_is_shown_whole(name: str) -> None:
    """Text that stays plain comes back character by character; of formatted text every word is there to read."""
    text = TEXTS[name].replace("\r\n", "\n").replace("\r", "\n")
    result = rendered(name)[0]
    if len(result) > 2_000_000:
        pytest.skip("html.parser would take seconds")
    if result.startswith('<pre class="plain"'):
        assert unlabelled(read(result)[0])[2:] == text
    elif not text.strip():
        assert result == '<p class="empty">(empty)</p>'
    elif "&" not in text:
        # Commands of LaTeX become symbols; letters of a word may stand apart in it.
        source = re.sub(r"\\color\{\w+\}|\d+em|\\[a-zA-Z]+", " ", text) if "<math" in result else text
        shown, titles = read(result)
        shown = re.sub(r"\s", "", unlabelled(shown)) + " ".join(titles)
        assert [word for word in set(re.findall(r"[A-Za-z]{2,}", source)) if word not in shown] == []


class _NoSecondWall:
    def clean(self, text: str) -> str:
        return text


@pytest.mark.parametrize("name", [name for name, text in HOSTILE if len(text) < 2_000])
def test_each_wall_holds_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CLEANER", _NoSecondWall())
        check(module._render(TEXTS[name]))
    with monkeypatch.context() as patch:
        for part in (module, formula, highlight, invisible):
            patch.setattr(part, "escapeHtml", lambda text: text)
        check(module._render(TEXTS[name]))


# Any text

_PIECES = [
    "*", "**", "_", "`", "```", "~~~", "~~", "\n", "\n\n", "- ", "1. ", "> ", "# ", "|", "|-|", "[", "](", ")", "!",
    "<", ">", "&", "&#", ";", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac", "\\text{", "{", "}", "\\", "'", '"',
    "=", ":", "//", "script", "a", "1", " ", "    ", "https://a.example", "javascript:", "onload=", "\u202e", "\0",
    "\ud800", "\u05d0", "\ufeff",
]  # fmt: skip
any_text = st.text(st.characters(exclude_categories=()), max_size=100)
marked_up = st.lists(st.sampled_from(_PIECES), max_size=40).map("".join)


@given(any_text | marked_up | st.lists(any_text | marked_up, max_size=4).map("\n".join))
@settings(deadline=None, max_examples=500)
def test_any_text_is_harmless(text: str) -> None:
    result = module._render(text)
    check(result)
    assert module._render(text) == result
    plain(text).encode("utf-8")
    if re.search(r"\w", text):
        assert read(result)[0].strip()


@given(st.lists(st.text(st.sampled_from("abcXYZ \u05d0\u202e\u200b\ud800\0"), min_size=1, max_size=20), min_size=1))
@settings(deadline=None)
def test_words_come_back_as_they_are(lines: list[str]) -> None:
    text = "\n".join(line.strip() for line in lines).strip()
    expected = re.sub(r"\n+", "\n", text) if text else "(empty)"
    assert re.sub(r"\n+", "\n", unlabelled(read(module._render(text))[0])).strip("\n") == expected


# Limits


def test_nothing_to_show_is_told() -> None:
    for text in ("", " ", "\n\t \n", "\u00a0\u3000"):
        assert render(text) == '<p class="empty">(empty)</p>'
        assert plain(text) == "(empty)"
    assert "[U+200B]" in render("\u200b")


@pytest.mark.parametrize("text", ["#", "```", ">", "-", "\n\n #"])
def test_markup_around_nothing_is_shown_as_it_is(text: str) -> None:
    assert read(render(text))[0].strip() == text.strip()


def test_long_texts_are_plain_but_whole() -> None:
    assert render("**a** " + "b " * (MAX_MARKDOWN // 2 - 3)).startswith('<p dir="auto"><strong>a</strong>')
    text = "\n**a** <b>" + "b" * MAX_MARKDOWN
    assert render(text) == f'<pre class="plain" dir="auto">\n{html.escape(text)}</pre>'


def test_deep_nesting_is_plain_but_whole() -> None:
    assert render("> " * 25 + "x").count("<blockquote>") == 25
    # Above its own limit of nesting markdown-it-py leaves out what is inside.
    for text in ("a\n\n" + "> " * 100 + "x", "a\n\n" + "- " * 50 + "x", "*" * 400 + "x" + "*" * 400):
        assert render(text) == f'<pre class="plain" dir="auto">\n{html.escape(text)}</pre>'


def test_an_error_of_the_parser_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_parser", lambda: None)
    assert module._render("*a*") == '<pre class="plain" dir="auto">\n*a*</pre>'


def test_the_cache_is_bounded_in_bytes_and_gives_the_same_string(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CACHE_BYTES <= 32 * 2**20  # the whole app should stay under 230 MB
    monkeypatch.setattr(module, "CACHE_BYTES", 500_000)
    module._CACHE.__init__()
    assert render("first") is render("first")
    for number in range(100):
        render(f"{number} " + "\u4e00" * 5_000)  # two bytes a character
    kept = module._CACHE.kept
    assert 10 < len(kept) < 500_000 // 20_000
    assert all(size >= 2 * (len(text) + len(result)) for text, (result, size) in kept.items())
    assert module._CACHE.num_bytes == sum(size for _, size in kept.values()) <= 500_000
    assert "first" not in kept
    assert f"99 {chr(0x4E00) * 5_000}" in kept
    huge = "\u4e00" * 20_000  # more than an eighth of it all
    assert render(huge) == render(huge)
    assert huge not in kept


def test_the_cache_drops_what_was_not_asked_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 64_000)
    module._CACHE.__init__()
    first = render("again")
    for number in range(200):
        render(f"{number} " + "x" * 1_000)
        assert render("again") is first
    assert len(module._CACHE.kept) < 40


def test_threads_render_alike() -> None:
    texts = [text for _, text in HOSTILE if len(text) < 500]
    expected = [module._render(text) for text in texts]
    results = [[] for _ in range(4)]
    module._CACHE.__init__()
    threads = [threading.Thread(target=lambda out=out: out.extend(map(render, texts))) for out in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == expected for result in results)


def test_two_thousand_characters_take_milliseconds() -> None:
    text = "A *reply* of a model, with `code`, a [link](https://a.example) and **words**.\n\n- one\n- two\n\n" * 20
    module._render(text)
    start = time.process_time()
    for _ in range(20):
        module._render(text[:2_000])
    assert (time.process_time() - start) / 20 < 0.03  # 2 to 5 ms, and up to 12 on a busy machine
    render(text)
    start = time.process_time()
    for _ in range(1_000):
        render(text)
    assert (time.process_time() - start) / 1_000 < 0.0001


def test_the_import_is_cheap() -> None:
    code = "import sys, labeling_app.render; print(' '.join(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {"torch", "gradio", "pygments", "latex2mathml", "scipy", "pandas", "numpy"} & set(done.stdout.split())


# One line


def test_plain_is_one_line_of_the_first_characters() -> None:
    assert plain("one\ntwo\r\nthree\tfour") == "one two three four"
    assert plain("a\u202eb\0c\ud800\u200b\u200b") == "a[U+202E]b[U+0000]c[U+D800][U+200B x2]"
    assert plain("<b> *a* ${x}") == "<b> *a* ${x}"
    assert plain("x" * EXCERPT) == "x" * EXCERPT
    assert plain("x" * (EXCERPT + 1)) == "x" * EXCERPT + "…"
    assert (
        plain("\U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u062e")
        == "\U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u062e"
    )
    assert plain("\n" * 300 + "x") == "…"
