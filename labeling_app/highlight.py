"""Code with its comments, strings, numbers and keywords in spans, whose classes are Pygments' short names.

Not by Pygments: its lexers take 1 s for 4,000 characters of the wrong kind ("\\n" in Java, "a." in TypeScript), so
long code would have to stay plain, and of two responses the highlighted one looks better.
"""

import re

from markdown_it.common.utils import escapeHtml

from labeling_app.invisible import mark, shown_text

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


def highlighted(code: str, language: str) -> str:
    """Comments, strings, numbers and words of programming languages in spans; unknown languages plain."""
    if language not in _CODE:
        return shown_text(code)
    parts, at = [], 0
    for match in re.compile(_CODE[language], re.DOTALL | re.MULTILINE).finditer(code):
        kind = match.lastgroup
        if kind == "word":
            kind = "k" if match[0].lower() in _KEYWORD else None
        if kind and match[0]:
            parts += escapeHtml(code[at : match.start()]), f'<span class="{kind}">{escapeHtml(match[0])}</span>'
            at = match.end()
    return mark("".join(parts) + escapeHtml(code[at:]))
