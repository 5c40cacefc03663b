"""Export from the label store: every label is counted once, texts come back to the letter, runs carry the hash."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from labeling_app import export
from labeling_app.aggregate import part, settle
from labeling_app.export import ExportConfig, Exported, assemble
from labeling_app.handout import Rules, next_turn
from labeling_app.standing import leave_out
from labeling_app.store import Store
from labeling_app.store.schema import answers, leases, people, tasks
from labeling_app.stored import Labels, read_labels
from labeling_app.submit import skip
from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.records import (
    Demonstration,
    Preference,
    Prompt,
    Ranking,
    Response,
    Task,
    parse_record,
    read_jsonl,
    to_json,
)
from rlhf.runs import read_run
from tests import ppo_cases, stages
from tests.postgres import postgres_server, store, store_url  # noqa: F401
from tests.stored_cases import START, adjudicate, answer, known, load, memory, person, send, task, work_at_random

# Everything that a browser, a database or a JSON reader might stumble over.
HOSTILE = [
    "null\0byte",
    "lone \ud800 surrogate \udfff",
    "bidi \u202eesrever\u202c \u2066isolate\u2069",
    "zero\u200bwidth\u200d\ufeff",
    "line\u2028separator\u2029and\u0085next\x0b\x0c\r\n\ttab",
    "\x1b[31mterminal\x07",
    "noncharacters \ufffe\uffff \U0010ffff",
    "<script>alert(1)</script> ${globalThis} {{ 7 * 7 }}",
    "\uff26\uff35\uff2c\uff2c \u00e9 e\u0301 \ufb01 \U0001f642\U0001f469\u200d\U0001f467",
    '"quotes" \\ \\u0041 \\ud800 \'',
    " leading and trailing \n",
    "x" * 40_000,
]


def export_store(url: str, out: Path, *flags: str) -> Any:
    return export.run(parse(export.Config, ["--store", url, "--output_dir", str(out), *flags]))


# --- the sums ----------------------------------------------------------------------------------


def stored_counts(connection: Any) -> Counter[tuple[str, str, str, bool]]:
    """Straight from the tables: how many answers of a set's kind, an answer's kind, an annotator."""
    from labeling_app.store.schema import sets

    rows = connection.execute(
        select(sets.c.kind, answers.c.kind, people.c.name, people.c.left_out, func.count())
        .select_from(answers)
        .join(tasks, tasks.c.id == answers.c.task_id)
        .join(sets, sets.c.id == tasks.c.set_id)
        .join(people, people.c.id == answers.c.person_id)
        .group_by(sets.c.kind, answers.c.kind, people.c.name, people.c.left_out)
    )
    return Counter({(of, kind, name, out is not None): number for of, kind, name, out, number in rows})


def check_sums(exported: Exported, labels: Labels, connection: Any, heldout: list[str], min_votes: int) -> None:
    stored = stored_counts(connection)

    def number(of: str = "ranking", kinds: tuple[str, ...] = (), names: Any = None, out: bool | None = None) -> int:
        return sum(
            n
            for (set_kind, kind, name, is_out), n in stored.items()
            if set_kind == of
            and (not kinds or kind in kinds)
            and (names is None or name in names)
            and out in (None, is_out)
        )

    metrics = exported.metrics
    left = metrics["exclusions"]["labels"]
    assert metrics["num_labels_in"] == sum(stored.values()) == metrics["num_labels"] + sum(left.values())
    assert left["comparison"] == number("comparison")
    for kind in ("practice", "gold", "repeat", "surplus"):
        assert left[kind] == number(kinds=(kind,))
    votes = ("task", "left_out")
    assert left["annotator_out"] == number(kinds=votes, out=True)
    assert left["annotator_heldout"] == number(kinds=votes, names=heldout, out=False)
    if min_votes == 1:
        assert left["too_few_votes"] == 0
    assert metrics["num_tasks_in"] == metrics["num_tasks"] + sum(metrics["exclusions"]["tasks"].values())

    def total(kind: str, *parts: str) -> int:
        return sum(metrics[f"num_{kind}_{part}"] for part in parts)

    pairs = metrics["num_preferences"] + metrics["num_ties"]
    outs = ("identical", "repeated", "annotator_out", "left_out")
    assert metrics["num_pairs_in"] == pairs + total("pairs", "unranked", *outs)
    assert metrics["num_votes_in"] == metrics["num_votes"] + total("votes", *outs)
    sizes = {row.id: len(row.responses) for row in labels.tasks}
    ids = {
        frozenset((one.id, other.id)) for row in labels.tasks for one, other in itertools.combinations(row.responses, 2)
    }
    assert metrics["num_pairs_in"] == len(ids)
    given = [sizes[row.task_id] for row in labels.rankings if row.kind != "adjudication"]
    assert metrics["num_votes_in"] == sum(size * (size - 1) // 2 for size in given)
    rows: Any = [*exported.files["preferences.train.jsonl"], *exported.files.get("preferences.validation.jsonl", [])]
    voted = [row for row in rows if not row.id.startswith("better-")]
    assert (len(voted), len(rows) - len(voted)) == (metrics["num_preferences"], metrics["num_preferences_better"])
    ties: Any = exported.files["ties.jsonl"]
    assert sum(sum(row.votes.values()) for row in [*voted, *ties]) == metrics["num_votes"]
    assert len({row.id for row in [*rows, *ties]}) == len(rows) + len(ties)
    skipped = connection.execute(
        select(func.count()).select_from(leases).where(leases.c.state == "skipped")
    ).scalar_one()
    assert sum(metrics["exclusions"]["skips"].values()) <= skipped  # those of the comparison are not among them


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sets(st.sampled_from(["ann", "bob"])), st.integers(1, 2), st.booleans())
def test_labels_in_are_labels_exported_and_labels_left_out(seed, names, min_votes, weighted):
    with memory() as connection:
        work_at_random(connection, seed)
        labels = read_labels(connection)
        heldout = sorted(names & {row.annotator for row in labels.rankings})
        config = ExportConfig(
            output_dir="x",
            annotators_heldout=heldout,
            min_votes=min_votes,
            weights="reliability" if weighted else "none",
        )
        try:
            exported = assemble(labels, config)
        except UserError as error:
            assert min_votes == 2 and "gives no preference" in str(error)
            return
        check_sums(exported, labels, connection, heldout, min_votes)

    # From what is written the same comes out again, and as if the others had never answered.
    tasks_again = [parse_record(to_json(row), Task, "") for row in labels.tasks]
    rankings_again = [parse_record(to_json(row), Ranking, "") for row in labels.rankings]
    again = assemble(Labels(tasks_again, rankings_again), config)
    assert again.files == exported.files
    assert again.labels_sha256 == exported.labels_sha256
    if not weighted and min_votes == 1:
        voters = [
            row
            for row in labels.rankings
            if row.kind == "adjudication" or (row.kind == "task" and row.annotator not in [*heldout, *labels.left_out])
        ]
        given, adjudications = part(voters)
        preferences, ties, _ = settle(labels.tasks, given, [None] * len(given), adjudications)
        rows: Any = exported.files["preferences.train.jsonl"]
        assert [row for row in rows if not row.id.startswith("better-")] == preferences
        assert exported.files["ties.jsonl"] == ties


def test_each_reason_by_hand(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    """One of everything, counted by hand; on SQLite and on PostgreSQL."""

    def job(connection):
        load(connection, "practice", [known("x", "a", "b", prompt="x")], "practice")
        load(connection, "main", [task(f"t{n}", "a", "b", prompt=f"p{n}") for n in range(4)], overlap=3)
        load(connection, "arena", [task("v", "a", "b", prompt="v")], of="comparison", overlap=3)
        ann, bob, cho = (person(connection, name) for name in ("ann", "bob", "cho"))
        for who, first in ((ann, 1), (bob, 2), (cho, 1)):
            answer(connection, who, a=1, b=2)  # practice
            answer(connection, who, a=first, b=3 - first)  # t0: ann and cho for a, bob for b
        answer(connection, bob, a=2, b=1)  # t1
        turn = next_turn(connection, ann, Rules(), START)
        assert turn is not None
        skip(connection, ann, turn.lease_id, "skip", "I do not know the subject", None, START)  # t1
        turn = next_turn(connection, cho, Rules(), START)
        assert turn is not None
        skip(connection, cho, turn.lease_id, "skip2", "It upsets me", "", START)  # t1
        turn = next_turn(connection, cho, Rules(), START)
        assert turn is not None
        skip(connection, cho, turn.lease_id, "skip3", "It upsets me", "", START)  # t2
        turn = next_turn(connection, ann, Rules(), START)
        assert turn is not None
        send(connection, ann, turn, {"a": 1, "b": 1}, both_bad=True, strength=0)  # t2
        for _ in range(2):
            answer(connection, ann, a=1, b=2)  # t3, v
        leave_out(connection, bob, "too fast", None, START)
        adjudicate(connection, person(connection, "lead", "admin"), 4, {"p2-a": 2, "p2-b": 1})  # t2

    made = Store(store_url)
    made.write(job)
    made.close()
    run = export_store(store_url, tmp_path / "out", "--annotators_heldout", "cho")
    exclusions = run.metrics["exclusions"]
    zeros = {"other_set": 0, "gold": 0, "repeat": 0, "surplus": 0, "too_few_votes": 0}
    assert exclusions["labels"] == zeros | {
        "comparison": 1,
        "practice": 3,
        "annotator_out": 2,
        "annotator_heldout": 1,
    }
    assert exclusions["tasks"] == {
        "known": 1,
        "too_few_votes": 0,
        "labels_left_out": 1,
        "skipped": 0,
        "unanswered": 0,
    }
    assert exclusions["annotators_out"] == {"bob": {"labels": 2, "reason": "too fast"}}
    assert exclusions["skips"] == {"I do not know the subject": 1, "It upsets me": 2}
    # ann on t0, t2, t3.
    assert (run.metrics["num_labels_in"], run.metrics["num_labels"]) == (10, 3)
    assert (run.metrics["num_tasks_in"], run.metrics["num_tasks"]) == (5, 3)
    assert (run.metrics["num_both_bad"], run.metrics["num_pairs_adjudicated"], run.metrics["num_adjudications"]) == (
        1,
        1,
        1,
    )
    rows = read_jsonl(tmp_path / "out" / "preferences.train.jsonl", Preference)
    assert {(row.group_id, row.chosen[0]["content"], row.weight) for row in rows} == {
        ("p0", "a", 1.0),
        ("p2", "b", 1.0),
        ("p3", "a", 1.0),
    }
    assert {row.group_id: row.votes for row in rows}["p2"] == {"for": 0, "tie": 1, "against": 0}
    assert [row.group_id for row in read_jsonl(tmp_path / "out" / "preferences.heldout.jsonl", Preference)] == ["p0"]
    assert run.metrics["annotators"]["bob"] == {"labels": 3, "votes": 0}

    # The same once more from the files.
    files = ["--tasks", str(tmp_path / "out/tasks.jsonl"), "--rankings", str(tmp_path / "out/rankings.jsonl")]
    flags = [*files, "--output_dir", str(tmp_path / "again"), "--annotators_heldout", "cho"]
    again = export.run(parse(export.Config, flags))
    assert again.labels_sha256 == run.labels_sha256
    for name in ("preferences.train.jsonl", "preferences.heldout.jsonl", "ties.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not (tmp_path / "again" / "tasks.jsonl").exists()


# --- texts -------------------------------------------------------------------------------------


def test_hostile_texts_come_back_to_the_letter(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    rows = [
        Task(
            f"t{n}",
            Prompt(f"p{n}", [{"role": "user", "content": text}], {"note": text}),
            [Response(f"{n}-a", f"p{n}", text, text), Response(f"{n}-b", f"p{n}", f"{text}!", "run", {"k": text})],
        )
        for n, text in enumerate(HOSTILE)
    ]

    def job(connection):
        load(connection, "main", rows)
        ann = person(connection, "ann")
        for text in HOSTILE:
            turn = next_turn(connection, ann, Rules(), START)
            assert turn is not None
            ranks = {text: 2, f"{text}!": 1}
            send(connection, ann, turn, ranks, reason=text, better_answer=f"?{text}")
        bob = person(connection, "bob")
        leave_out(connection, bob, HOSTILE[1], None, START)

    made = Store(store_url)
    made.write(job)
    made.close()
    run = export_store(store_url, tmp_path / "out")
    assert read_jsonl(tmp_path / "out" / "tasks.jsonl", Task) == rows
    # With nothing but a JSON reader, as a stranger would read it.
    lines = (tmp_path / "out" / "rankings.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    rankings = [json.loads(line) for line in lines]
    assert [row["reason"] for row in rankings] == HOSTILE
    assert [row["better_answer"] for row in rankings] == [f"?{text}" for text in HOSTILE]
    preferences = read_jsonl(tmp_path / "out" / "preferences.train.jsonl", Preference)
    voted = {row.chosen[0]["content"] for row in preferences if not row.id.startswith("better-")}
    assert voted == {f"{text}!" for text in HOSTILE}
    assert {row.prompt[0]["content"] for row in preferences} == set(HOSTILE)
    written = read_jsonl(tmp_path / "out" / "demonstrations.jsonl", Demonstration)
    assert [row.messages[1]["content"] for row in written] == [f"?{text}" for text in HOSTILE]
    assert len({row.id for row in preferences}) == len(preferences)
    # The files are what they were made from: the same export comes out of them.
    labels = Labels(rows, read_jsonl(tmp_path / "out" / "rankings.jsonl", Ranking))
    assert [assemble(labels, ExportConfig("x")).labels_sha256] == run.labels_sha256


def test_hostile_reasons_for_leaving_out_are_recorded(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "labels.db"))

    def job(connection):
        load(connection, "main", [task("t", "a", "b")], overlap=2)
        ann, bob = person(connection, "ann"), person(connection, "bob")
        for who in (ann, bob):
            answer(connection, who, a=1, b=2)
        leave_out(connection, bob, "lone \ud800 \0", None, START)

    made.write(job)
    made.close()
    export_store(str(tmp_path / "labels.db"), tmp_path / "out")
    recorded = read_run(tmp_path / "out").metrics["exclusions"]["annotators_out"]
    assert recorded == {"bob": {"labels": 1, "reason": "lone \ud800 \0"}}


# --- the manifest in later runs ----------------------------------------------------------------


def test_reward_dpo_and_ppo_carry_the_labels_into_their_run(tmp_path: Path, policy_folder: Path) -> None:
    made = Store(str(tmp_path / "labels.db"))

    def job(connection):
        rows = [task(f"t{n}", "Thank you.", "What", prompt=f"Hello {n}") for n in range(8)]
        load(connection, "main", rows)
        ann = person(connection, "ann")
        for _ in rows:
            answer(connection, ann, **{"Thank you.": 1, "What": 2})

    made.write(job)
    made.close()
    exported = export_store(str(tmp_path / "labels.db"), tmp_path / "export")
    (labels,) = exported.labels_sha256
    assert len(labels) == 64
    preferences = tmp_path / "export" / "preferences.train.jsonl"
    training = {**stages.TRAINING, "max_steps": 1, "save_strategy": "no", "preferences": preferences}
    training["model_name_or_path"] = policy_folder
    reward = stages.run("reward", **training, output_dir=tmp_path / "reward")
    dpo = stages.run("dpo", **training, num_kl_prompts=0, output_dir=tmp_path / "dpo")
    values = {
        key: value for key, value in ppo_cases.SETTINGS.items() if key not in ("use_cpu", "logging_nan_inf_filter")
    }
    ppo = stages.run(
        "ppo",
        **{**values, "max_steps": 1, "save_strategy": "no"},
        prompts=stages.prompts(tmp_path / "prompts.jsonl", 8),
        reward=[str(tmp_path / "reward")],
        model_name_or_path=policy_folder,
        output_dir=tmp_path / "ppo",
    )
    assert exported.id in reward.parents and exported.id in dpo.parents and reward.id in ppo.parents
    assert [run.labels_sha256 for run in (reward, dpo, ppo)] == [[labels]] * 3
    assert read_run(tmp_path / "ppo").labels_sha256 == [labels]


def test_other_labels_are_another_run(tmp_path: Path) -> None:
    """A store is no file to hash: its labels tell two exports with the same settings apart."""
    url = str(tmp_path / "labels.db")
    made = Store(url)
    ids = {}

    def first(connection):
        load(connection, "main", [task("t", "a", "b"), task("u", "a", "b", prompt="q")])
        ids["ann"] = person(connection, "ann")
        answer(connection, ids["ann"], a=1, b=2)

    made.write(first)
    runs = [export_store(url, tmp_path / "1"), export_store(url, tmp_path / "2")]
    made.write(lambda connection: answer(connection, ids["ann"], a=1, b=2))
    made.close()
    runs.append(export_store(url, tmp_path / "3"))
    assert runs[0].id == runs[1].id != runs[2].id


# --- errors ------------------------------------------------------------------------------------


def test_an_empty_store_says_so_and_writes_nothing(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "labels.db"))
    made.close()
    with pytest.raises(UserError, match=r"labels.db: holds no tasks; `rlhf label --tasks FILE` adds some"):
        export_store(str(tmp_path / "labels.db"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_without_answers_says_what_is_missing(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "labels.db"))
    made.write(lambda connection: load(connection, "main", [task("t", "a", "b")]))
    made.close()
    with pytest.raises(UserError, match=r"labels.db: gives no preference; of 1 pairs 0 are ties and 1 are left out"):
        export_store(str(tmp_path / "labels.db"), tmp_path / "out")


def test_errors_name_the_answer(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "labels.db"))

    def job(connection):
        load(connection, "one", [task("t", "a", "b")])
        other = task("u", "c", "d")
        prompt = dataclasses.replace(other.prompt, messages=[{"role": "user", "content": "other"}])
        load(connection, "two", [dataclasses.replace(other, prompt=prompt)])

    made.write(job)
    made.close()
    with pytest.raises(UserError, match="task u: prompt p reads otherwise in an earlier task"):
        export_store(str(tmp_path / "labels.db"), tmp_path / "out")
    with pytest.raises(UserError, match="gives no preference"):  # one set alone contradicts nobody
        export_store(str(tmp_path / "labels.db"), tmp_path / "out", "--sets", "two")


def test_a_database_s_password_is_not_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = Labels([task("t", "a", "b")], [Ranking("t", "ann", {"p-a": 1, "p-b": 2})])
    monkeypatch.setattr(export, "read_store", lambda url, names: labels)
    run = export_store("postgresql://label:secret@db/labels", tmp_path / "out")
    assert "secret" not in (tmp_path / "out" / "run.json").read_text()
    assert run.config["store"] == "postgresql+psycopg://label:***@db/labels"
