"""The quality report of what is stored now, computed once for everybody who looks at it."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, select

from labeling_app.overview import last_change
from labeling_app.store import Store
from labeling_app.store.schema import sets, tasks
from labeling_app.stored import Labels, read_labels
from rlhf.records import Ranking, Task

KEEP_SECONDS = 5.0  # while people work every report is old at once; this old it is still shown


def read_judged(connection: Connection) -> tuple[list[Task], list[Ranking], dict[str, dict[str, int]]]:
    """`(tasks, rankings, golds)` for `quality_report`: sets of every kind, and the known ranks by task id."""
    ranking, comparison = (read_labels(connection, kind=kind) for kind in ("ranking", "comparison"))
    taken = {task.id for task in ranking.tasks}
    renamed = _renamed(comparison, {task.id: f"comparison/{task.id}" for task in comparison.tasks if task.id in taken})
    found, rankings = ranking.tasks + renamed.tasks, ranking.rankings + renamed.rankings
    return found, rankings, _known(connection, found)


def _renamed(labels: Labels, names: dict[str, str]) -> Labels:
    return Labels(
        [replace(task, id=names.get(task.id, task.id)) for task in labels.tasks],
        [replace(row, task_id=names.get(row.task_id, row.task_id)) for row in labels.rankings],
    )


def _known(connection: Connection, found: list[Task]) -> dict[str, dict[str, int]]:
    rows = connection.execute(
        select(sets.c.name, tasks.c.record_id, tasks.c.known)
        .join(sets, sets.c.id == tasks.c.set_id)
        .where(tasks.c.known.is_not(None))
    ).all()
    # `read_labels` puts its set's name before an id that another set has too.
    by_id = [(id, row.known["ranks"]) for row in rows for id in (row.record_id, f"{row.name}/{row.record_id}")]
    responses = {task.id: {response.id for response in task.responses} for task in found}
    return {id: ranks for id, ranks in by_id if responses.get(id) == set(ranks)}


@dataclass
class Judged:
    """Holds the last report; for all threads.

    A report is as good as new while nothing has been done since (the log's last entry is the same),
    and for KEEP_SECONDS: a page that ten leads reload does not compute ten of them.
    """

    store: Store
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _report: dict[str, Any] | None = None
    _change: int = -1
    _at: float = 0.0

    def report(self, is_new: bool = False) -> dict[str, Any]:
        """`quality_report` of the store; with `is_new` of what it holds at this moment."""
        from labeling_app.quality.report import quality_report

        with self._lock:
            is_young = time.monotonic() - self._at < KEEP_SECONDS
            if self._report is None or is_new or not is_young:
                change = self.store.read(last_change)
                if self._report is None or change != self._change:
                    self._report = quality_report(*self.store.read(read_judged))
                self._change, self._at = change, time.monotonic()
            return self._report
