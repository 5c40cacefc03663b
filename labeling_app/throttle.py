"""The throttle of the login: after a few failures each further one doubles the wait, by name and by address."""

import hashlib

from sqlalchemy import Connection, delete, func, insert, select, update

from labeling_app.people import name_key
from labeling_app.store.schema import attempts

# Failures that cost nothing; each one more doubles the wait. Many people may share an address.
FREE_BY_NAME, FREE_BY_ADDRESS = 5, 50
FIRST_WAIT, LONGEST_WAIT = 4.0, 900.0  # seconds
FORGET_AFTER = 3600.0  # seconds without a failure
MAX_ATTEMPTS = 10_000  # rows


def admit(connection: Connection, name: str, address: str, now: float) -> float:
    """How many seconds to wait before a try with this name, from this address; 0: go ahead, and it is counted.

    It counts as failed until `forgive`: so many tries at once are as few as one after another. A refused
    one does not count.
    """
    keys = [_name_key(name), _address_key(address)]
    until = connection.execute(select(func.max(attempts.c.until)).where(attempts.c.key.in_(keys))).scalar()
    if until is not None and until > now:
        return until - now
    _count(connection, keys[0], FREE_BY_NAME, now)
    return 0.0


def count_failure(connection: Connection, address: str, now: float) -> None:
    """A wrong name or password came from this address (`admit` has counted it for the name)."""
    _count(connection, _address_key(address), FREE_BY_ADDRESS, now)


def forgive(connection: Connection, name: str, address: str) -> None:
    """The password was right: nothing is held against the name, and one failure less against the address."""
    connection.execute(delete(attempts).where(attempts.c.key == _name_key(name)))
    there = (attempts.c.key == _address_key(address)) & (attempts.c.failures > 0)
    connection.execute(update(attempts).where(there).values(failures=attempts.c.failures - 1))


def _count(connection: Connection, key: str, num_free: int, now: float) -> None:
    connection.execute(delete(attempts).where(attempts.c.until < now - FORGET_AFTER))
    this = attempts.c.key == key
    before = connection.execute(select(attempts.c.failures).where(this)).scalar()
    failures = (before or 0) + 1
    # 2**20 times the first wait is over the longest one; more would only overflow.
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - num_free, 20)) if failures >= num_free else 0.0
    if before is not None:
        connection.execute(update(attempts).where(this).values(failures=failures, until=now + wait))
        return
    num_rows = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
    if num_rows >= MAX_ATTEMPTS:  # the least of them: few failures, long ago
        least = select(attempts.c.key).order_by(attempts.c.failures, attempts.c.until).limit(num_rows // 10)
        connection.execute(delete(attempts).where(attempts.c.key.in_(least)))
    connection.execute(insert(attempts).values(key=key, failures=failures, until=now + wait))


def _name_key(name: str) -> str:
    # Hashed: people type passwords into the wrong field.
    return "name:" + hashlib.sha256(name_key(name).encode("utf-8", "surrogatepass")).hexdigest()


def _address_key(address: str) -> str:
    return f"address:{address}"
