"""The tables, the same on SQLite and PostgreSQL. migrations/versions makes them; a test holds the two together.

Free text lives in `Json` columns only: ASCII JSON keeps every character of it, null bytes and lone
surrogates included, which PostgreSQL's own text cannot. Times are seconds since 1970, UTC.
"""

import json
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

metadata = MetaData()


class Json(TypeDecorator):
    """Any JSON value, as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=True, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


# Who may come in. Nobody is ever deleted: `paused` and `left_out` hold the reason, else null.
people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # annotator, admin
    Column("password_hash", String(256)),  # null: cannot log in (a simulated annotator)
    Column("epoch", Integer, nullable=False, default=0),  # sessions of an earlier epoch are over
    Column("guidelines_sha256", String(64)),  # the guidelines that they said they have read
    Column("paused", Json),
    Column("left_out", Json),
    Column("created_at", Float, nullable=False),
)

# An invitation is a link; only the hash of its secret is kept.
invitations = Table(
    "invitations",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("created_by", Integer, ForeignKey("people.id")),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_by", Integer, ForeignKey("people.id")),
)

# Failed logins, by name and by address: in the database, so that a restart or a second process forgives none.
attempts = Table(
    "attempts",
    metadata,
    Column("key", String(128), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("until", Float, nullable=False),  # no try before this
)

# The key that signs cookies, the form (flags, attributes, guidelines), and the like.
settings = Table(
    "settings", metadata, Column("name", String(64), primary_key=True), Column("value", Json, nullable=False)
)

# A batch of tasks that were loaded together, and how they are handed out.
sets = Table(
    "sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # ranking, comparison (policy against policy)
    Column("overlap", Integer, nullable=False),  # annotators a task
    Column("extra_vote", Boolean, nullable=False),  # one more where they disagree
    Column("is_closed", Boolean, nullable=False, default=False),
    Column("created_at", Float, nullable=False),
)

# Places: `num_needed` people are wanted, `num_done` answers count (of kind task, and of nobody who is
# left out), `num_held` leases are open. The database itself refuses one more than that. What is small
# comes first: SQLite finds it without reading the texts.
tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("set_id", Integer, ForeignKey("sets.id"), nullable=False),
    Column("record_id", String(128), nullable=False),  # Task.id in the file
    Column("kind", String(16), nullable=False),  # task, gold, practice
    Column("priority", Float, nullable=False),  # the highest first
    Column("position", Integer, nullable=False),  # then the lowest
    Column("num_needed", Integer, nullable=False),
    Column("num_done", Integer, nullable=False, default=0),
    Column("num_held", Integer, nullable=False, default=0),
    Column("is_free", Boolean, nullable=False, default=True),  # num_done + num_held < num_needed
    Column("known", Json),  # of gold and practice: {"ranks": {response id: rank}, "explanation": text}
    Column("body", Json, nullable=False),  # the Task record
    CheckConstraint("num_done >= 0 AND num_held >= 0 AND num_done + num_held <= num_needed", name="tasks_places"),
    UniqueConstraint("set_id", "record_id", name="tasks_record"),
)
# In the order of handing out: the next one is found without a look at all the others.
Index("tasks_next", tasks.c.kind, tasks.c.is_free, tasks.c.priority.desc(), tasks.c.position, tasks.c.set_id)

_IS_OPEN = text("state = 'open'")

# A task in one person's hands. `turn` 1 is the same task asked once more, for self-consistency.
leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),  # random: all that a browser gets to know of a task
    Column("task_id", Integer, ForeignKey("tasks.id"), nullable=False),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # task, gold, practice, repeat
    Column("shown", Json, nullable=False),  # response ids in the order on screen
    Column("state", String(16), nullable=False),  # open, returned (expired), answered, skipped
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("skipped", Json),  # {"reason": ..., "note": ...}
    UniqueConstraint("task_id", "person_id", "turn", name="leases_turn"),
    Index("leases_of_person", "person_id", "state"),
    Index("leases_expiring", "state", "expires_at"),
    # One task in a person's hands at a time.
    Index("leases_open", "person_id", unique=True, sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN),
)

# What stands now, one row a lease; `log` has what stood before.
answers = Table(
    "answers",
    metadata,
    Column("lease_id", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("task_id", Integer, ForeignKey("tasks.id"), nullable=False),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # the lease's, or `surplus`: its place was taken meanwhile
    Column("body", Json, nullable=False),  # Answer, by response id
    Column("seconds", Float),
    Column("revision", Integer, nullable=False),  # 1, then one more with each edit
    Column("at", Float, nullable=False),
    UniqueConstraint("task_id", "person_id", "turn", name="answers_turn"),
    Index("answers_of_person", "person_id", "at", "kind"),
)

# Every submission that was ever acknowledged: the same id again is the same submission.
submissions = Table(
    "submissions",
    metadata,
    Column("id", String(64), primary_key=True),  # made by the client
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("lease_id", String(32), ForeignKey("leases.id"), nullable=False),
    Column("at", Float, nullable=False),
)

# What somebody has begun; the newest version wins.
drafts = Table(
    "drafts",
    metadata,
    Column("lease_id", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("version", Float, nullable=False),
    Column("body", Json, nullable=False),
    Column("at", Float, nullable=False),
)

# The lead's word on a disputed task: it settles the export, the votes stay.
adjudications = Table(
    "adjudications",
    metadata,
    Column("task_id", Integer, ForeignKey("tasks.id"), primary_key=True),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("ranks", Json, nullable=False),
    Column("reason", Json),
    Column("at", Float, nullable=False),
)

# Append-only, held by triggers (migrations/versions/0001_start.py): who did what, when, with all of its content.
log = Table(
    "log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("person_id", Integer, ForeignKey("people.id")),
    Column("action", String(32), nullable=False),
    Column("body", Json, nullable=False),
)
