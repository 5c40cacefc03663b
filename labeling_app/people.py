"""Who takes part: names, accounts and invitations.

Nobody and nothing is ever deleted, and every change is in the log. What cannot be done raises
Refused, with a sentence for the browser; `for_command_line` makes a UserError of it.
"""

import hashlib
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, select, update

from labeling_app.answer import Refused
from labeling_app.session import Session
from labeling_app.store.schema import answers, invitations, log, people
from rlhf.errors import UserError

ROLES = ("annotator", "admin")
MAX_NAME = 64
# Unicode's Default_Ignorable_Code_Point and other blanks that `str.isprintable` lets pass.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_BLANK |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}


@dataclass(frozen=True)
class Person:
    """Somebody who is logged in.

    `paused` says why they may not work now: a reason, or that their answers are left out (what they
    did would not count either). `may_lead` is for the admin's pages: an admin who was not paused.
    """

    id: int
    name: str
    role: str
    guidelines_sha256: str | None
    paused: str | None
    may_lead: bool


@contextmanager
def for_command_line(where: str) -> Iterator[None]:
    """Turn a refusal into a UserError that begins with `where`."""
    try:
        yield
    except Refused as error:
        raise UserError(f"{where}: {error}") from None


# Names ------------------------------------------------------------------------------------------


def tidy_name(typed: str) -> str:
    """A name as a browser's field may hold it, without the edges' spaces and in Unicode's NFC, as names are kept."""
    return unicodedata.normalize("NFC", typed).strip()


def check_name(name: str) -> None:
    """Raises Refused for a name that could be mistaken for another, or that would disturb a page."""
    if not 1 <= len(name) <= MAX_NAME:
        raise Refused(f"A name has 1 to {MAX_NAME} characters, this one has {len(name)}.")
    for character in name:
        if not character.isprintable() or ord(character) in _BLANK:
            raise Refused(f"The name holds a character that cannot be seen (U+{ord(character):04X}). Leave it out.")
    if name != name.strip():
        raise Refused("The name begins or ends with a space. Leave it out.")
    if name != unicodedata.normalize("NFC", name):
        raise Refused("The name is not in Unicode's form NFC. Type it anew.")
    if unicodedata.combining(name[0]) or not any(character.isalnum() for character in name):
        raise Refused("A name needs a letter or a digit, and cannot begin with an accent alone.")


def name_key(name: str) -> str:
    """Equal for names that read alike: case, compatibility forms and doubled spaces aside (Unicode's D146)."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return " ".join(unicodedata.normalize("NFKD", folded.casefold()).split())


# Accounts ---------------------------------------------------------------------------------------


def add_person(
    connection: Connection, name: str, role: str, password_hash: str | None, now: float, by: int | None = None
) -> int:
    """Add somebody, and return their id; without a password they cannot log in (a simulated annotator).

    Raises Refused for a name that is none or is taken, and for an unknown role.
    """
    check_free(connection, name)
    _check_role(role)
    values = {"name": name, "role": role, "password_hash": password_hash, "epoch": 0, "created_at": now}
    done = connection.execute(insert(people).values(values))
    assert done.inserted_primary_key is not None
    person_id = done.inserted_primary_key[0]
    write_log(connection, by, "add_person", now, {"person": person_id, "name": name, "role": role})
    return person_id


def check_free(connection: Connection, name: str) -> None:
    """Raises Refused for a name that is none, or that reads like somebody's."""
    check_name(name)
    if (there := find(connection, name)) is not None:
        raise Refused(f"The name {there.name} is taken. Please choose another one.")


def find(connection: Connection, name: str) -> Row | None:
    """The row of the person whose name reads like this one, else None."""
    if not name.isprintable():
        return None  # PostgreSQL takes no null byte, and nobody has such a name
    row = connection.execute(select(people).where(people.c.name == name)).first()
    if row is not None:
        return row
    key = name_key(name)
    for person_id, other in connection.execute(select(people.c.id, people.c.name)).all():
        if name_key(other) == key:
            return connection.execute(select(people).where(people.c.id == person_id)).one()
    return None


def person_by_name(connection: Connection, name: str) -> Person | None:
    """Who has this name."""
    return _person(find(connection, name))


def person_by_id(connection: Connection, person_id: int) -> Person | None:
    """Who has this id."""
    return _person(connection.execute(select(people).where(people.c.id == person_id)).first())


def person_of(connection: Connection, session: Session) -> Person | None:
    """Whose session it is; None where it is over. One read by primary key."""
    mine = and_(people.c.id == session.person_id, people.c.epoch == session.epoch)
    return _person(connection.execute(select(people).where(mine)).first())


def list_people(connection: Connection) -> list[dict[str, Any]]:
    """Everybody by name: id, name, role, paused, left_out (reasons or None), can_log_in, created_at,
    last_at (of their last answer, or None) and `answers`, how many of each kind."""
    counts: dict[int, dict[str, int]] = {}
    last_at: dict[int, float] = {}
    by_kind = select(answers.c.person_id, answers.c.kind, func.count(), func.max(answers.c.at))
    for person_id, kind, count, at in connection.execute(by_kind.group_by(answers.c.person_id, answers.c.kind)):
        counts.setdefault(person_id, {})[kind] = count
        last_at[person_id] = max(at, last_at.get(person_id, at))
    return [
        {
            "id": row.id,
            "name": row.name,
            "role": row.role,
            "paused": row.paused,
            "left_out": row.left_out,
            "can_log_in": row.password_hash is not None,
            "created_at": row.created_at,
            "last_at": last_at.get(row.id),
            "answers": counts.get(row.id, {}),
        }
        for row in connection.execute(select(people).order_by(people.c.name))
    ]


def set_password(connection: Connection, person_id: int, password_hash: str, now: float, by: int | None = None) -> int:
    """Give a new password and end all sessions; returns the new epoch, for a session that is to go on."""
    epoch = row_of(connection, person_id).epoch + 1
    connection.execute(update(people).where(people.c.id == person_id).values(password_hash=password_hash, epoch=epoch))
    write_log(connection, by, "set_password", now, {"person": person_id})
    return epoch


def rehash(connection: Connection, person_id: int, old_hash: str, new_hash: str) -> None:
    """The same password under today's parameters, unless it has been changed meanwhile."""
    unchanged = and_(people.c.id == person_id, people.c.password_hash == old_hash)
    connection.execute(update(people).where(unchanged).values(password_hash=new_hash))


# Invitations ------------------------------------------------------------------------------------


def invite(connection: Connection, role: str, created_by: int | None, now: float, days: float = 7.0) -> str:
    """Make an invitation for one person, and return its secret, which is stored nowhere: only its SHA-256 is."""
    _check_role(role)
    if not 0 < days <= 365:
        raise Refused("An invitation is good for up to 365 days.")
    secret = secrets.token_urlsafe(32)
    values = {"role": role, "created_by": created_by, "created_at": now, "expires_at": now + days * 86400}
    connection.execute(insert(invitations).values(secret_sha256=_sha256(secret), **values))
    write_log(connection, created_by, "invite", now, {"role": role, "days": days, "invitation": _sha256(secret)[:12]})
    return secret


def open_invitation(connection: Connection, secret: str, now: float) -> str:
    """The role that an invitation gives. Raises Refused where there is none, or no more."""
    row = connection.execute(select(invitations).where(invitations.c.secret_sha256 == _sha256(secret))).first()
    if row is None:
        raise Refused("There is no such invitation. Please check that the link is whole.")
    if row.used_by is not None:
        raise Refused("This invitation has been used. Please log in, or ask for another one.")
    if row.expires_at <= now:
        raise Refused("This invitation has expired. Please ask for another one.")
    return row.role


def accept_invitation(connection: Connection, secret: str, name: str, password_hash: str, now: float) -> int:
    """Add the person who was invited, and return their id; writes come one by one, so only one can. Raises Refused."""
    role = open_invitation(connection, secret, now)
    person_id = add_person(connection, name, role, password_hash, now)
    used = invitations.c.secret_sha256 == _sha256(secret)
    connection.execute(update(invitations).where(used).values(used_by=person_id))
    write_log(connection, person_id, "join", now, {"invitation": _sha256(secret)[:12]})
    return person_id


def _person(row: Row | None) -> Person | None:
    if row is None:
        return None
    paused = row.paused
    if paused is None and row.left_out is not None:
        paused = "the project's lead is looking at your answers."  # the reason is not meant for them
    may_lead = row.role == "admin" and row.paused is None
    return Person(row.id, row.name, row.role, row.guidelines_sha256, paused, may_lead)


def row_of(connection: Connection, person_id: int) -> Row:
    """The row of the person of this id. Raises Refused where there is none."""
    row = connection.execute(select(people).where(people.c.id == person_id)).first()
    if row is None:
        raise Refused("There is no such person.")
    return row


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise Refused(f"The role {role!r:.40} is unknown; it is {' or '.join(ROLES)}.")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def write_log(connection: Connection, by: int | None, action: str, now: float, body: dict[str, Any]) -> None:
    """Write down who (None: the command line) did what to whom."""
    connection.execute(insert(log).values(at=now, person_id=by, action=action, body=body))
