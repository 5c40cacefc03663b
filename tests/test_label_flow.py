"""Any mixture of what people do, against a model of it in plain Python. On both databases."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import Connection, select, update

from labeling_app.answer import Refused
from labeling_app.handout import Rules, Turn, next_turn, return_expired
from labeling_app.loading import SetRules, load_tasks
from labeling_app.store import Store
from labeling_app.store.database import write_transaction
from labeling_app.store.schema import log, sets, submissions, tasks
from labeling_app.submit import Conflict, save_draft, skip
from tests.label_cases import add_people, check_store, known, record_ids, send, task

LEASE = st.integers(0, 30)
RULES = Rules(lease_seconds=50.0, gold_share=0.25, repeat_share=0.25, repeat_after=1)


@dataclass
class Wanted:
    """A task as the model knows it. A vote is the text that somebody prefers."""

    id: str
    kind: str
    of: str  # its set
    overlap: int
    has_extra: bool
    rank: tuple[float, int]  # of handing out: the lowest first
    needed: int = 0
    votes: dict[int, str] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.needed = self.overlap

    @property
    def is_free(self) -> bool:
        return len(self.votes) + len(self.held) < self.needed

    def settle(self) -> None:
        """The extra place is there while it is used or all are in and two differ."""
        if self.has_extra:
            differ = len(self.votes) >= self.overlap and len(set(self.votes.values())) > 1
            is_used = len(self.votes) + len(self.held) > self.overlap
            self.needed = self.overlap + (differ or is_used)


@dataclass
class Held:
    """A lease as the model knows it."""

    turn: Turn
    person: int
    task: Wanted
    state: str
    expires_at: float
    touched: float  # when it was issued, or its draft saved
    said: str | None = None
    said_as: str | None = None
    at: float = 0.0


class Flow(RuleBasedStateMachine):
    """Several people at one store, in a transaction that is rolled back at the end."""

    store: Store  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.transaction = write_transaction(self.store._engine)
        self.connection: Connection = self.transaction.__enter__()
        self.people = add_people(self.connection, 3)
        self.now = 1000.0
        self.tasks: dict[str, Wanted] = {}
        self.open_sets: set[str] = set()
        self.leases: dict[str, Held] = {}
        self.sent: dict[str, tuple[str, str | None]] = {}  # submission -> its lease, what it said
        self.logged: list[Any] = []
        self.add_set(1, False, 0.0, 1, "practice")
        self.add_set(1, False, 0.0, 2, "gold")
        self.add_set(2, True, 0.0, 12, "task")
        for who in range(3):
            self.work(who, "a")

    def teardown(self) -> None:
        self.connection.rollback()
        self.transaction.__exit__(None, None, None)

    # --- what may happen --------------------------------------------------------------------

    @precondition(lambda self: len(self.open_sets) < 8)
    @rule(
        overlap=st.integers(1, 3),
        extra=st.booleans(),
        priority=st.sampled_from([-1.0, 0.0, 1.0]),
        num=st.integers(1, 3),
        kind=st.just("task"),
    )
    def add_set(self, overlap: int, extra: bool, priority: float, num: int, kind: str) -> None:
        name = f"set{len(self.open_sets)}"
        rows = [(task if kind == "task" else known)(f"{name}-{number}") for number in range(num)]
        load_tasks(self.connection, name, rows, kind, SetRules(overlap, extra, priority), self.now)
        for row in rows:
            rank = (-priority, len(self.tasks))
            self.tasks[row.id] = Wanted(row.id, kind, name, overlap, extra and kind == "task", rank)
        self.open_sets.add(name)

    @rule(number=st.integers(0, 7), is_closed=st.sampled_from([True, False, False]))
    def close_or_open_a_set(self, number: int, is_closed: bool) -> None:
        name = f"set{number}"
        if name in self.open_sets or f"closed {name}" in self.open_sets:
            self.open_sets -= {name, f"closed {name}"}
            self.open_sets.add(f"closed {name}" if is_closed else name)
            self.connection.execute(update(sets).where(sets.c.name == name).values(is_closed=is_closed))

    @rule(seconds=st.sampled_from([1.0, 20.0, 49.0, 50.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def return_what_ran_out(self) -> None:
        assert return_expired(self.connection, self.now) == self._return_expired()

    @rule(who=st.integers(0, 2), best=st.sampled_from("ab"))
    def work(self, who: int, best: str) -> None:
        """What people mostly do: ask, and answer what they have in hand."""
        self._ask(self.people[who])
        for lease, held in self.leases.items():
            if held.person == self.people[who] and held.state == "open":
                self._submit(lease, best, False, f"work-{len(self.sent)}")

    @rule(rounds=st.integers(1, 4), best=st.lists(st.sampled_from("ab"), min_size=3, max_size=3))
    def all_work(self, rounds: int, best: list[str]) -> None:
        for _ in range(rounds):
            for who in range(3):
                self.work(who, best[who])

    @rule(who=st.integers(0, 2), best=st.sampled_from("ab"), is_late=st.booleans())
    def walk_away(self, who: int, best: str, is_late: bool) -> None:
        """Somebody's time runs out, the others go on, and perhaps the answer comes after all."""
        self._ask(self.people[who])
        self.now += RULES.lease_seconds
        left = [lease for lease, held in self.leases.items() if held.state == "open"]
        for other in {0, 1, 2} - {who}:
            self.work(other, best)
        for lease in left if is_late else []:
            self._submit(lease, best, False, f"late-{len(self.sent)}")

    @rule(who=st.integers(0, 2))
    def ask(self, who: int) -> None:
        self._ask(self.people[who])

    def _ask(self, person: int) -> None:
        mine = [held for held in self.leases.values() if held.person == person]
        in_hand = [held for held in mine if held.state == "open"]
        if not in_hand:
            self._return_expired()
        turn = next_turn(self.connection, person, RULES, self.now)
        returned = [held for held in mine if held.state == "returned" and self._can_be_taken_up(held)]
        if in_hand or returned:
            assert turn is not None
            held = self.leases[turn.lease_id]
            if in_hand:
                assert held is in_hand[0]
            else:
                assert held in returned
                assert held.touched == max(other.touched for other in returned)
                if held.turn.kind == "task":
                    held.task.held.add(person)
            held.state, held.expires_at = "open", self.now + RULES.lease_seconds
            assert (turn.kind, turn.responses) == (held.turn.kind, held.turn.responses)
            return
        if turn is None:
            assert self._best(person, "practice") is None
            assert self._best(person, "task") is None
            return
        wanted = self.tasks[record_ids(self.connection)[turn.lease_id]]
        self._check_choice(person, turn.kind, wanted)
        if turn.kind == "task":
            wanted.held.add(person)
        self.leases[turn.lease_id] = Held(turn, person, wanted, "open", self.now + RULES.lease_seconds, self.now)

    @precondition(lambda self: self.leases)
    @rule(at=LEASE, best=st.sampled_from("ab"), edit=st.booleans(), id=st.integers(0, 30))
    def submit(self, at: int, best: str, edit: bool, id: int) -> None:
        self._submit(self._lease(at), best, edit, f"id-{id}")

    def _submit(self, lease: str, best: str, edit: bool, name: str) -> None:
        held = self.leases[lease]
        if self._sent_before(name, held):
            return
        if held.said is not None and not edit and held.said != best:
            with pytest.raises(Conflict):
                send(self.connection, held.person, held.turn, best, self.now, edit, name)
            return
        if held.said is not None and edit and held.turn.kind == "practice":
            with pytest.raises(Refused, match="stay as they are"):
                send(self.connection, held.person, held.turn, best, self.now, edit, name)
            return
        receipt = send(self.connection, held.person, held.turn, best, self.now, edit, name)
        self.sent[name] = (lease, best)
        if held.said is not None and not edit:
            assert (receipt.repeated, receipt.kind) == (True, held.said_as)
            return
        if held.said is None:
            held.said_as = self._counts_as(held)
            held.at = self.now
        assert (receipt.kind, receipt.repeated) == (held.said_as, False)
        held.state, held.said = "answered", best
        if held.turn.kind == "task":
            held.task.held.discard(held.person)
        if held.said_as == "task":
            held.task.votes[held.person] = best
            held.task.settle()

    @precondition(lambda self: self.leases)
    @rule(at=LEASE, id=st.integers(0, 30))
    def skip(self, at: int, id: int) -> None:
        lease, name = self._lease(at), f"id-{id}"
        held = self.leases[lease]
        if held.turn.kind == "practice" or self._sent_before(name, held, skipping=True):
            return
        skip(self.connection, held.person, lease, name, "no", None, self.now)
        self.sent[name] = (lease, None)
        if held.turn.kind == "task":
            held.task.held.discard(held.person)
            if held.said_as == "task":
                del held.task.votes[held.person]
            held.task.settle()
        held.state, held.said, held.said_as = "skipped", None, None

    @precondition(lambda self: self.leases)
    @rule(at=LEASE, version=st.integers(0, 5))
    def draft(self, at: int, version: int) -> None:
        lease = self._lease(at)
        held = self.leases[lease]
        if held.state in ("answered", "skipped"):
            return
        if save_draft(self.connection, held.person, lease, float(version), {}, RULES.lease_seconds, self.now):
            held.touched = self.now
        if held.state == "open":
            held.expires_at = self.now + RULES.lease_seconds

    # --- what must then be so ---------------------------------------------------------------

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        rows = self.connection.execute(select(tasks)).all()
        assert len(rows) == len(self.tasks)
        for row in rows:
            wanted = self.tasks[row.record_id]
            assert (row.num_done, row.num_held, row.num_needed) == (
                len(wanted.votes),
                len(wanted.held),
                wanted.needed,
            ), row.record_id
        check_store(self.connection)
        assert set(self.connection.execute(select(submissions.c.id)).scalars()) == set(self.sent)

    @invariant()
    def the_log_has_only_grown(self) -> None:
        rows = [tuple(row) for row in self.connection.execute(select(log).order_by(log.c.id))]
        assert rows[: len(self.logged)] == self.logged
        self.logged = rows

    # --- the model --------------------------------------------------------------------------

    def _lease(self, at: int) -> str:
        """One of the leases, the newest first: those are what people come back to."""
        return list(self.leases)[-1 - at % len(self.leases)]

    def _sent_before(self, name: str, held: Held, skipping: bool = False) -> bool:
        """Send an id again that was sent before; whether it was."""
        if name not in self.sent:
            return False
        lease, said = self.sent[name]
        before = self.leases[lease]
        if before is not held:
            with pytest.raises(Refused, match="sent before, for another task"):
                send(self.connection, held.person, held.turn, "a", self.now, id=name)
        elif skipping:
            skip(self.connection, held.person, lease, name, "no", None, self.now)
        elif held.said is None:
            with pytest.raises(Refused, match="skipped this task since"):
                send(self.connection, held.person, held.turn, said or "a", self.now, id=name)
        else:
            receipt = send(self.connection, held.person, held.turn, "b", self.now, id=name)
            assert (receipt.repeated, receipt.kind) == (True, held.said_as)
        return True

    def _return_expired(self) -> int:
        expired = [held for held in self.leases.values() if held.state == "open" and held.expires_at <= self.now]
        for held in expired:
            held.state = "returned"
            if held.turn.kind == "task":
                held.task.held.discard(held.person)
                held.task.settle()
        return len(expired)

    def _can_be_taken_up(self, held: Held) -> bool:
        return held.task.of in self.open_sets and (held.turn.kind != "task" or held.task.is_free)

    def _counts_as(self, held: Held) -> str:
        if held.turn.kind != "task" or held.state == "open" or held.task.is_free:
            return held.turn.kind
        return "surplus"

    def _unseen(self, person: int, kind: str) -> list[Wanted]:
        seen = {held.task.id for held in self.leases.values() if held.person == person}
        return [
            wanted
            for wanted in self.tasks.values()
            if wanted.kind == kind and wanted.is_free and wanted.of in self.open_sets and wanted.id not in seen
        ]

    def _best(self, person: int, kind: str) -> Wanted | None:
        return min(self._unseen(person, kind), key=lambda wanted: wanted.rank, default=None)

    def _check_choice(self, person: int, kind: str, wanted: Wanted) -> None:
        if kind == "practice":
            assert wanted is self._best(person, "practice")
            return
        assert self._best(person, "practice") is None
        if kind == "task":
            assert wanted is self._best(person, "task")
        elif kind == "gold":
            assert wanted in self._unseen(person, "gold")
        else:
            assert kind == "repeat"
            mine = [held for held in self.leases.values() if held.person == person]
            (first,) = [held for held in mine if held.task is wanted]  # not repeated before
            assert first.said_as == "task"
            assert wanted.of in self.open_sets
            later = [held for held in mine if held.said_as not in (None, "practice") and held is not first]
            assert sum(held.at >= first.at for held in later) >= RULES.repeat_after


def test_any_mixture_is_as_the_model_says(shared_store: Store) -> None:
    flow = type("FlowOn", (Flow,), {"store": shared_store})
    num_examples = 20 if shared_store.url.drivername == "sqlite" else 6
    run(
        flow,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
