"""report.md: the verdict, the warnings, the policies and what each section found, to paste into a pull request."""

import re
from typing import Any

from rlhf.compare.headline import headline
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sentences import judge_sentence, people_sentences, shown_mean, shown_span, warnings

_TITLES = {
    "win_rate": "Win rate against {baseline}",
    "gold": "Gold",
    "score": "Score",
    "kl": "KL, nats",
    "length": "Length, tokens",
    "finished": "Finished",
}
# What begins markup anywhere in a line, in CommonMark and GitHub's dialect; & and < and > become entities.
_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")
# What GitHub links or draws although nothing marks it: a name, an issue, a bare address, an emoji by its name.
_LINKED = re.compile(r"(@|#(?=\d)|\bGH-(?=\d)|:(?=//)|\bwww(?=\.)|:(?=[\w+-]+:))", re.IGNORECASE)
_WORD_JOINER = "\u2060"  # no width, parts no line
# Control characters, and those that turn the direction of a whole line.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def render_markdown(report: dict[str, Any]) -> str:
    """The report as GitHub's Markdown; names of policies make no markup."""
    settings = report["settings"]
    shown = [section for section in SECTIONS if section.key in report]
    found = [*warnings(report), *(line for section in shown for line in section.warnings(report))]
    parts = [
        f"## Comparison of {escaped(', '.join(settings['policies']))}",
        f"**{_sentence(headline(report))}**",
        f"{settings['num_prompts']:,} held-out prompt{'s' if settings['num_prompts'] != 1 else ''}, "
        f"{settings['num_responses']} response{'s' if settings['num_responses'] != 1 else ''} each from every policy, "
        f"temperature {settings['temperature']}, at most {settings['max_new_tokens']:,} tokens, seed "
        f"{settings['seed']}.",
    ]
    if found:
        parts += ["### Before you rely on this", _listed(escaped(warning) for warning in found)]
    parts += ["### Policies", _table(report), f"Each mean stands before its {settings['confidence']:.0%} interval."]
    said = [judge_sentence(report, judge) for judge in settings["judges"] if judge != settings["decided_by"]]
    if judges := [*said, *people_sentences(report)]:
        parts += ["### Other judges", _listed(map(_sentence, judges))]
    for section in shown:
        if sentences := section.says(report):
            parts += [f"### {escaped(section.title)}", _listed(map(_sentence, sentences))]
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    # A policy's name at the start keeps its case.
    return escaped(re.sub(r"^(undecided|at equal KL)\b", lambda word: word[0][0].upper() + word[0][1:], text)) + "."


def _listed(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(report: dict[str, Any]) -> str:
    policies, baseline = report["policies"], report["settings"]["baseline"]
    keys = [key for key in _TITLES if any(numbers[key] for numbers in policies.values())]
    head = ["Policy", *(escaped(_TITLES[key].format(baseline=baseline)) for key in keys)]
    rows = [[escaped(name), *(_cell(numbers[key], key) for key in keys)] for name, numbers in policies.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---", *("---:" for _ in keys)], *rows])


def _cell(interval: dict[str, Any] | None, key: str) -> str:
    return "" if interval is None else f"**{shown_mean(interval, key)}** ({shown_span(interval, key)})"


def escaped(text: str) -> str:
    """One line of plain text as Markdown that shows just that: no markup, no link, no mention of anyone on GitHub.

    Line ends become spaces; control characters, among them those that turn the direction of text, become U+FFFD. A
    word joiner, which has no width, stands where GitHub would link what nothing marks.
    """
    line = _CONTROLS.sub("\ufffd", " ".join(text.split()))
    line = _LINKED.sub(rf"\1{_WORD_JOINER}", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKUP.sub(r"\\\1", line)
    return re.sub(r"^(\d{0,9})(?=[-+=.)])", r"\1\\", line)
