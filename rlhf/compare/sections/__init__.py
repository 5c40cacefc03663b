"""The parts of a report, in the order in which a reader asks: each is a key of report.json and a section of the page.

A part is a module of this package with a template of the same name beside it. It measures what the others have
not (policies are loaded, judges asked: slow, kept in the run folder), builds its numbers from what was measured,
and views them for its template. What it cannot say it leaves out: then it is in neither file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.compare.study import Context, Study


def _nothing(_: Any) -> Any:
    return None


def _no_warnings(_: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Args:
        key: in report.json, and the name of its template, `<key>.html.jinja`.
        title: its heading on the page.
        build: its numbers, JSON-able, from the study and the report so far; None where there is nothing to say. The
            same study gives the same numbers: nothing of the place or the time.
        view: what its template gets as `view`, from the whole report: words and charts.
        measure: what takes long, before `build` finds it in `study.measured[key]`; None where not asked for.
        warnings: what a reader must know before trusting the report, from the whole report.
    """

    key: str
    title: str
    build: Callable[[Study, dict[str, Any]], dict[str, Any] | None]
    view: Callable[[dict[str, Any]], dict[str, Any]]
    measure: Callable[[Context], Any] = _nothing
    warnings: Callable[[dict[str, Any]], list[str]] = _no_warnings


SECTIONS: tuple[Section, ...] = ()
