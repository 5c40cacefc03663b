"""Who takes part: accounts, passwords, invitations, pausing people and leaving out their answers.

Nobody and nothing is ever deleted, and every change is in the log. What cannot be done raises
Refused, with a sentence for the browser; `for_command_line` makes a UserError of it.
"""

import functools
import hashlib
import itertools
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, update

from labeling_app.answer import Refused
from labeling_app.handout import ask_one_more, hold
from labeling_app.session import Session
from labeling_app.store.schema import answers, invitations, leases, log, people, tasks
from rlhf.errors import UserError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

ROLES = ("annotator", "admin")
MAX_NAME = 64
MIN_PASSWORD, MAX_PASSWORD = 8, 1000
MAX_REASON = 2000
# Unicode's Default_Ignorable_Code_Point and other blanks that `str.isprintable` lets pass.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_BLANK |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
# Each hash takes 12 MiB: however many people log in, the server takes no more.
_ONE_AT_A_TIME = threading.Semaphore()
# Of eight characters and more, those that every list of leaked passwords begins with.
_COMMON = """
    password passw0rd password1 password123 passwort motdepasse contrasena qwertyui qwertyuiop qwerty123 qwertz123
    azertyuiop asdfghjkl asdfasdf 1q2w3e4r 1q2w3e4r5t 1qaz2wsx q1w2e3r4 qazwsxedc zaq12wsx abcd1234 abc12345
    a1b2c3d4 123123123 12341234 11223344 123qweasd 123456789a iloveyou sunshine princess football baseball superman
    batman123 pokemon1 starwars michelle jennifer computer internet whatever trustno1 letmein1 letmein123 welcome1
    welcome123 admin123 administrator changeme changeme123 guest123 test1234 testtest secret123 dragon123 monkey123
    charlie1 liverpool chocolate annotator
"""


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


@dataclass(frozen=True)
class Moved:
    """How many answers began to count, ceased to, or are kept as `surplus` because their places are taken."""

    num_counted: int = 0
    num_left_out: int = 0
    num_surplus: int = 0


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
    _write_log(connection, by, "add_person", now, {"person": person_id, "name": name, "role": role})
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
    epoch = _row(connection, person_id).epoch + 1
    connection.execute(update(people).where(people.c.id == person_id).values(password_hash=password_hash, epoch=epoch))
    _write_log(connection, by, "set_password", now, {"person": person_id})
    return epoch


def rehash(connection: Connection, person_id: int, old_hash: str, new_hash: str) -> None:
    """The same password under today's parameters, unless it has been changed meanwhile."""
    unchanged = and_(people.c.id == person_id, people.c.password_hash == old_hash)
    connection.execute(update(people).where(unchanged).values(password_hash=new_hash))


# Passwords --------------------------------------------------------------------------------------


@functools.cache
def hasher() -> "PasswordHasher":
    """argon2id with 12 MiB, 6 passes and one lane: about 50 ms here.

    OWASP's password storage cheat sheet asks for 3 passes at 12 MiB, which it holds to be as strong as
    the 46 MiB and one pass beside it. RFC 9106's 64 MiB would be a third of what the whole server may take.
    """
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=6, memory_cost=12 * 1024, parallelism=1)


def check_password(password: str, name: str) -> None:
    """Raises Refused for a password that would be guessed: too short, common, a mere sequence, or the name.

    As NIST SP 800-63B (section 5.1.1.2 of revision 3) asks: length and a list, no rules of composition.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Refused(f"A password has {MIN_PASSWORD} to {MAX_PASSWORD:,} characters; a few words make a good one.")
    key = name_key(password)
    if name_key(name) in (key, key.rstrip("0123456789")):
        raise Refused("The password is your name. Please choose another one.")
    steps = {ord(after) - ord(before) for before, after in itertools.pairwise(password)}
    if key in _COMMON.split() or steps in ({0}, {1}, {-1}):
        raise Refused("This password is among those that are tried first. A few words make a good one.")


def hash_password(password: str) -> str:
    """The hash to store. Takes long (see `hasher`): not in an event loop, not in a store's job."""
    with _ONE_AT_A_TIME:
        return hasher().hash(_bytes(password))


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether it is the password; for nobody's (None) False, after as much work."""
    from argon2.exceptions import InvalidHashError, VerificationError

    argon2 = hasher()
    if password_hash is None:
        cost = f"m={argon2.memory_cost},t={argon2.time_cost},p={argon2.parallelism}"
        # Of the form of a hash, but of no password: 16 bytes of salt and 32 of hash, all zero.
        password_hash = f"$argon2id$v=19${cost}${'A' * 22}${'A' * 43}"
    try:
        with _ONE_AT_A_TIME:
            return argon2.verify(password_hash, _bytes(password))
    except (VerificationError, InvalidHashError):
        return False


def needs_rehash(password_hash: str) -> bool:
    """Whether it was made with other parameters than today's."""
    return hasher().check_needs_rehash(password_hash)


def _bytes(password: str) -> bytes:
    # NFKC, as NIST asks: keyboards of different machines write the same letters differently.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


# Invitations ------------------------------------------------------------------------------------


def invite(connection: Connection, role: str, created_by: int | None, now: float, days: float = 7.0) -> str:
    """Make an invitation for one person, and return its secret, which is stored nowhere: only its SHA-256 is."""
    _check_role(role)
    if not 0 < days <= 365:
        raise Refused("An invitation is good for up to 365 days.")
    secret = secrets.token_urlsafe(32)
    values = {"role": role, "created_by": created_by, "created_at": now, "expires_at": now + days * 86400}
    connection.execute(insert(invitations).values(secret_sha256=_sha256(secret), **values))
    _write_log(connection, created_by, "invite", now, {"role": role, "days": days, "invitation": _sha256(secret)[:12]})
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
    _write_log(connection, person_id, "join", now, {"invitation": _sha256(secret)[:12]})
    return person_id


# Pausing, leaving out ---------------------------------------------------------------------------


def pause(connection: Connection, person_id: int, reason: str, by: int | None, now: float) -> None:
    """Give them no more tasks until `resume`; the task in hand goes back, invitations they made are void.

    Raises Refused for the last admin who can log in, and without a reason.
    """
    _check_reason(reason)
    row = _row(connection, person_id)
    others = and_(people.c.role == "admin", people.c.id != person_id, people.c.paused.is_(None))
    able = select(func.count()).select_from(people).where(others, people.c.password_hash.is_not(None))
    if row.role == "admin" and not connection.execute(able).scalar_one():
        raise Refused(f"{row.name} is the only admin who can log in. Make another one first.")
    connection.execute(update(people).where(people.c.id == person_id).values(paused=reason))
    theirs = and_(invitations.c.created_by == person_id, invitations.c.used_by.is_(None))
    connection.execute(update(invitations).where(theirs, invitations.c.expires_at > now).values(expires_at=now))
    _return_open(connection, person_id)
    _write_log(connection, by, "pause", now, {"person": person_id, "reason": reason})


def resume(connection: Connection, person_id: int, by: int | None, now: float) -> None:
    """Let them work again. Raises Refused where they are not paused."""
    if (row := _row(connection, person_id)).paused is None:
        raise Refused(f"{row.name} is not paused.")
    connection.execute(update(people).where(people.c.id == person_id).values(paused=None))
    _write_log(connection, by, "resume", now, {"person": person_id})


def leave_out(connection: Connection, person_id: int, reason: str, by: int | None, now: float) -> Moved:
    """Let none of their answers count any more. They stay what and where they are; their places are free again.

    An extra vote that was asked because of them is not asked any more, unless those that remain
    disagree too; where others' answers wait as `surplus`, the earliest takes the place. On somebody
    who is left out already only the reason changes. Raises Refused without a reason.
    """
    _check_reason(reason)
    was_left_out = _row(connection, person_id).left_out is not None
    connection.execute(update(people).where(people.c.id == person_id).values(left_out=reason))
    _return_open(connection, person_id)
    of_tasks = and_(answers.c.person_id == person_id, answers.c.kind == "task")
    theirs = [] if was_left_out else connection.execute(select(answers.c.task_id).where(of_tasks)).scalars().all()
    for task_id in theirs:
        hold(connection, task_id, 0, -1)
        ask_one_more(connection, task_id)
    waiting = (
        select(answers)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.kind == "surplus", people.c.left_out.is_(None))
        .where(answers.c.task_id.in_(select(answers.c.task_id).where(of_tasks)))
        .order_by(answers.c.at, answers.c.lease_id)
    )
    counted = [row.lease_id for row in connection.execute(waiting).all() if _take_place(connection, row)]
    body = {"person": person_id, "reason": reason, "num_left_out": len(theirs), "counted": counted}
    _write_log(connection, by, "leave_out", now, body)
    return Moved(num_counted=len(counted), num_left_out=len(theirs))


def put_back(connection: Connection, person_id: int, by: int | None, now: float) -> Moved:
    """Let their answers count again where there is a place; where others have taken it, theirs is kept as `surplus`.

    In a set with an extra vote an answer that disagrees with those that fill a task opens that place
    for itself. Raises Refused where they are not left out.
    """
    if (row := _row(connection, person_id)).left_out is None:
        raise Refused(f"{row.name}'s answers are not left out.")
    connection.execute(update(people).where(people.c.id == person_id).values(left_out=None))
    theirs = select(answers).where(answers.c.person_id == person_id, answers.c.kind.in_(["task", "surplus"]))
    counted, surplus = [], []
    for answer in connection.execute(theirs.order_by(answers.c.at, answers.c.lease_id)).all():
        if answer.kind == "task":
            ask_one_more(connection, answer.task_id)  # their vote is among the others' again
        if _take_place(connection, answer):
            counted.append(answer.lease_id)
        elif answer.kind == "task":
            _set_kind(connection, answer.lease_id, "surplus")
            surplus.append(answer.lease_id)
    _write_log(connection, by, "put_back", now, {"person": person_id, "counted": counted, "surplus": surplus})
    return Moved(num_counted=len(counted), num_surplus=len(surplus))


# Built once: of somebody's thousands of answers each is asked about.
_HAS_PLACE = select(tasks.c.num_done + tasks.c.num_held < tasks.c.num_needed).where(tasks.c.id == bindparam("task"))


def _take_place(connection: Connection, answer: Row) -> bool:
    """Let an answer count if its task has a place for it, be its set closed or not."""
    if not connection.execute(_HAS_PLACE, {"task": answer.task_id}).scalar_one():
        return False
    if answer.kind != "task":
        _set_kind(connection, answer.lease_id, "task")
    hold(connection, answer.task_id, 0, +1)
    ask_one_more(connection, answer.task_id)
    return True


def _set_kind(connection: Connection, lease_id: str, kind: str) -> None:
    connection.execute(update(answers).where(answers.c.lease_id == lease_id).values(kind=kind))


def _return_open(connection: Connection, person_id: int) -> None:
    """Give back the task in their hands; what they have begun is kept."""
    theirs = and_(leases.c.person_id == person_id, leases.c.state == "open")
    held = connection.execute(select(leases.c.task_id).where(theirs, leases.c.kind == "task")).scalars().all()
    connection.execute(update(leases).where(theirs).values(state="returned"))
    for task_id in held:
        hold(connection, task_id, -1)
        ask_one_more(connection, task_id)


def _person(row: Row | None) -> Person | None:
    if row is None:
        return None
    paused = row.paused
    if paused is None and row.left_out is not None:
        paused = "the project's lead is looking at your answers."  # the reason is not meant for them
    may_lead = row.role == "admin" and row.paused is None
    return Person(row.id, row.name, row.role, row.guidelines_sha256, paused, may_lead)


def _row(connection: Connection, person_id: int) -> Row:
    row = connection.execute(select(people).where(people.c.id == person_id)).first()
    if row is None:
        raise Refused("There is no such person.")
    return row


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise Refused(f"The role {role!r:.40} is unknown; it is {' or '.join(ROLES)}.")


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON:
        raise Refused(f"Please say why, in up to {MAX_REASON:,} characters.")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _write_log(connection: Connection, by: int | None, action: str, now: float, body: dict[str, Any]) -> None:
    connection.execute(insert(log).values(at=now, person_id=by, action=action, body=body))
