"""What a part of a report is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.compare.study import Context, Study


def _nothing(*_: Any) -> Any:
    return None


def _no_sentences(_: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Args:
        key: in report.json, and the name of its template, `<key>.html.jinja`.
        title: its heading on the page.
        build: its numbers, JSON-able, from the study and the report so far; None where there is nothing to say. The
            same study gives the same numbers, nothing of the place or the time, but where `varies` is set.
        view: what its template gets as `view`, from the whole report: words and charts.
        measure: what takes long, before `build` finds it in `study.measured[key]`; None where not asked for.
        warnings: what a reader must know before trusting the report, from the whole report.
        check: looks at all settings (`Config` of rlhf.compare.run) and the policies (name to path) before the run
            folder is made; raises UserError for what cannot be.
        says: what was found, as plain sentences without a full stop, from the whole report: for the terminal.
        varies: its numbers are of time and memory, no two runs' alike: they go to `<key>.json`, not to report.json.
    """

    key: str
    title: str
    build: Callable[[Study, dict[str, Any]], dict[str, Any] | None]
    view: Callable[[dict[str, Any]], dict[str, Any]]
    measure: Callable[[Context], Any] = _nothing
    warnings: Callable[[dict[str, Any]], list[str]] = _no_sentences
    check: Callable[[Any, Mapping[str, Any]], None] = _nothing
    says: Callable[[dict[str, Any]], list[str]] = _no_sentences
    varies: bool = False
