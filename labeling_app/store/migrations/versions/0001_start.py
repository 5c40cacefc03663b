"""The first tables, and a log that can only grow."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    _people()
    _tasks()
    _work()
    op.create_table(
        "log",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id")),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.String(256)),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("guidelines_sha256", sa.String(64)),
        sa.Column("paused", sa.Text),
        sa.Column("left_out", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("secret_sha256", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_by", sa.Integer, sa.ForeignKey("people.id")),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("used_by", sa.Integer, sa.ForeignKey("people.id")),
    )
    op.create_table(
        "attempts",
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _tasks() -> None:
    op.create_table(
        "sets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(512), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("extra_vote", sa.Boolean, nullable=False),
        sa.Column("is_closed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("set_id", sa.Integer, sa.ForeignKey("sets.id"), nullable=False),
        sa.Column("record_id", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("num_needed", sa.Integer, nullable=False),
        sa.Column("num_done", sa.Integer, nullable=False),
        sa.Column("num_held", sa.Integer, nullable=False),
        sa.Column("is_free", sa.Boolean, nullable=False),
        sa.Column("known", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.CheckConstraint(
            "num_done >= 0 AND num_held >= 0 AND num_done + num_held <= num_needed", name="tasks_places"
        ),
        sa.UniqueConstraint("set_id", "record_id", name="tasks_record"),
    )
    op.create_index("tasks_next", "tasks", ["kind", "is_free", sa.text("priority DESC"), "position", "set_id"])
    op.create_table(
        "adjudications",
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("ranks", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("at", sa.Float, nullable=False),
    )


def _work() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("issued_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("skipped", sa.Text),
        sa.UniqueConstraint("task_id", "person_id", "turn", name="leases_turn"),
    )
    op.create_index("leases_of_person", "leases", ["person_id", "state"])
    op.create_index("leases_expiring", "leases", ["state", "expires_at"])
    is_open = sa.text("state = 'open'")
    op.create_index("leases_open", "leases", ["person_id"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_table(
        "answers",
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id"), primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.UniqueConstraint("task_id", "person_id", "turn", name="answers_turn"),
    )
    op.create_index("answers_of_person", "answers", ["person_id", "at", "kind"])
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("person_id", sa.Integer, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "drafts",
        sa.Column("lease_id", sa.String(32), sa.ForeignKey("leases.id"), primary_key=True),
        sa.Column("version", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


# INSERT OR REPLACE deletes without a delete trigger, so an id that is there is refused too.
_SQLITE = [
    f"""CREATE TRIGGER log_no_{event.split()[0].lower()} BEFORE {event} ON log {condition}
        BEGIN SELECT RAISE(ABORT, 'the log only grows'); END"""
    for event, condition in [
        ("UPDATE", ""),
        ("DELETE", ""),
        ("INSERT", "WHEN EXISTS (SELECT 1 FROM log WHERE id = NEW.id)"),
    ]
]
_POSTGRESQL = [
    """CREATE FUNCTION log_only_grows() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION 'the log only grows' USING ERRCODE = 'restrict_violation'; END $$""",
    """CREATE TRIGGER log_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON log
       FOR EACH STATEMENT EXECUTE FUNCTION log_only_grows()""",
]
