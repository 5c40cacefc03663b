"""The page as one text: its template, its style and its script, each held by the content security policy."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf.compare.headline import headline
from rlhf.compare.judges import label
from rlhf.compare.page.frontier_figure import frontier_figures
from rlhf.compare.page.measures import charts, measures
from rlhf.compare.page.side_by_side import examples
from rlhf.compare.sections import SECTIONS, Section
from rlhf.compare.sentences import judge_sentence, number, people_sentences, percent, shown_mean, shown_span, warnings
from rlhf.compare.statistics import UNDECIDED
from rlhf.compare.study import Study

_HERE = Path(__file__).parent
# What a section's template gets as `view.figures`; drawn here, as a section knows nothing of pages.
_FIGURES = {"frontier": frontier_figures}


def render_page(study: Study, report: dict[str, Any]) -> str:
    """The whole page as text; `report` is the content of report.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_HERE, _HERE.parent / "sections"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "judge": label}
    shown = [section for section in SECTIONS if section.key in report]
    found = [*warnings(report), *(line for section in shown for line in section.warnings(report))]
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        report=report,
        settings=report["settings"],
        verdict=_sentence(headline(report)),
        sentences={name: _sentence(judge_sentence(report, name)) for name in report["settings"]["judges"]},
        people=[_sentence(sentence) for sentence in people_sentences(report)],
        warnings=found,
        contents=_contents(report, shown, bool(found)),
        sections=[(section, _view(section, report)) for section in shown],
        charts=charts(report),
        measures=measures(report),
        shown_mean=shown_mean,
        shown_span=shown_span,
        undecided=UNDECIDED,
        examples=examples(study, report),
        script=Markup(script),
        script_hash=_csp_hash(script),
        style=Markup(style),
        style_hash=_csp_hash(style),
    )


def _contents(report: dict[str, Any], shown: list[Section], with_warnings: bool) -> list[tuple[str, str]]:
    """The ids and titles of the page's parts, in order."""
    return [
        *([("warnings", "Before you rely on this")] if with_warnings else []),
        ("verdicts", "What the judges say"),
        ("measures", "The measures"),
        ("policies", "Policies"),
        *([("pairs", "Pairs")] if report["pairs"] else []),
        *((section.key, section.title) for section in shown),
        ("texts", "Side by side"),
        ("how", "How this was measured"),
    ]


def _view(section: Section, report: dict[str, Any]) -> dict[str, Any]:
    figures = _FIGURES.get(section.key)
    return section.view(report) | ({} if figures is None else {"figures": figures(report)})


def _sentence(text: str) -> str:
    # A policy's name at the start keeps its case.
    return (UNDECIDED.capitalize() + text.removeprefix(UNDECIDED) if text.startswith(f"{UNDECIDED}:") else text) + "."


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
