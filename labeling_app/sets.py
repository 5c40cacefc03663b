"""What a lead changes about a set of tasks: whether it is handed out, and when its turn comes. Both are logged."""

from math import isfinite

from sqlalchemy import Connection, Row, insert, select, update

from labeling_app.answer import Refused
from labeling_app.store.schema import log, sets, tasks


def close_set(connection: Connection, set_id: int, by: int, now: float) -> None:
    """Hand out no more of its tasks; what is in people's hands may still be answered. Raises Refused."""
    _set_closed(connection, set_id, True, by, now)


def reopen_set(connection: Connection, set_id: int, by: int, now: float) -> None:
    """Hand out its tasks again. Raises Refused."""
    _set_closed(connection, set_id, False, by, now)


def set_priority(connection: Connection, set_id: int, priority: float, by: int, now: float) -> None:
    """Let its tasks come before those of sets with a lower priority. Raises Refused for what is no number."""
    row = _row(connection, set_id)
    if not isfinite(priority) or abs(priority) > 1e9:
        raise Refused("A priority is a number; sets with a higher one come first.")
    connection.execute(update(tasks).where(tasks.c.set_id == set_id).values(priority=priority))
    _write_log(connection, by, "set_priority", now, {"set": row.name, "priority": priority})


def _set_closed(connection: Connection, set_id: int, is_closed: bool, by: int, now: float) -> None:
    row = _row(connection, set_id)
    if row.is_closed == is_closed:
        raise Refused(f"The set is {'closed' if is_closed else 'open'} already.")
    connection.execute(update(sets).where(sets.c.id == set_id).values(is_closed=is_closed))
    _write_log(connection, by, "close_set" if is_closed else "reopen_set", now, {"set": row.name})


def _row(connection: Connection, set_id: int) -> Row:
    row = connection.execute(select(sets).where(sets.c.id == set_id)).first()
    if row is None:
        raise Refused("There is no such set. Please reload the page.")
    return row


def _write_log(connection: Connection, by: int, action: str, now: float, body: dict[str, object]) -> None:
    connection.execute(insert(log).values(at=now, person_id=by, action=action, body=body))
