"""demo-rank: the simulated annotators work through the label store, as people do, some tasks more than once."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

from sqlalchemy import Connection, select

from labeling_app.form import Form
from labeling_app.handout import Rules, next_turn
from labeling_app.loading import SetRules, load_tasks
from labeling_app.people import add_person
from labeling_app.store import Store
from labeling_app.store.schema import leases
from labeling_app.store.schema import tasks as task_table
from labeling_app.stored import read_labels
from labeling_app.submit import submit
from rlhf import config as configuration
from rlhf.demo.annotators import ANNOTATORS, Annotator, rank
from rlhf.errors import UserError
from rlhf.records import Prompt, Ranking, Response, Run, Task, read_jsonl, write_jsonl
from rlhf.runs import open_run
from rlhf.sample import tasks as group


@dataclass(frozen=True)
class RankConfig:
    """What is ranked, and how many see it."""

    prompts: list[str] = field(metadata={"help": "JSONL files of prompts, one or more."})
    responses: list[str] = field(metadata={"help": "The responses.jsonl of `sample`, one or more."})
    output_dir: str = field(metadata={"help": "The run's folder."})
    overlap_share: float = field(default=0.2, metadata={"help": "Share of the tasks that several annotators rank."})
    overlap: int = field(default=3, metadata={"help": "How many annotators rank each of those."})
    seed: int = field(default=0, metadata={"help": "Who ranks what, and the annotators' noise."})
    port: int = field(default=7861, metadata={"help": "Where the labeling app is, when a person ranks."})
    resume: bool = field(default=False, metadata={"help": "Write into an unfinished run folder again."})

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_share <= 1:
            raise ValueError(f"overlap_share is {self.overlap_share}, should be from 0 to 1")
        if not 2 <= self.overlap <= len(ANNOTATORS):
            raise ValueError(f"overlap is {self.overlap}, should be from 2 to {len(ANNOTATORS)}, as many as there are")


FORM = Form(strength=False, both_bad=False)
FIRST_DAY = 1767600000.0  # Monday, 5 January 2026, 8:00 UTC: simulated people have a calendar of their own


class Config(NamedTuple):
    """What the stage `demo-rank` of the demo's recipe may hold."""

    rank: RankConfig


def run(config: Config) -> Run:
    """Write `tasks.jsonl`, one task a prompt with all its responses, `labels.db` and what it holds, `rankings.jsonl`.

    Raises UserError for missing files, for responses to prompts that the files do not hold, for
    prompts that are not the demo's, and where no prompt has two responses.
    """
    settings = config.rank
    prompts, tasks = read_tasks(settings)
    recorded = configuration.as_dict(config)
    with open_run("demo-rank", settings.output_dir, recorded, inputs(settings), settings.resume) as folder:
        _remove_store(folder.path)  # of a run that was stopped
        try:
            rankings = work(tasks, settings, str(folder.path / "labels.db"))
        except UserError:
            _remove_store(folder.path)  # a folder with labels in it is taken for people's work, and kept
            raise
        write_jsonl(folder.path / "tasks.jsonl", tasks)
        write_jsonl(folder.path / "rankings.jsonl", rankings)
        names = [annotator.name for annotator in ANNOTATORS]
        return folder.finish(
            num_tasks=len(tasks),
            num_rankings=len(rankings),
            num_tasks_overlapping=sum(count > 1 for count in Counter(row.task_id for row in rankings).values()),
            num_prompts_without_task=len(prompts) - len(tasks),
            agreement=agreement(tasks, rankings),
            agreement_by_annotator={name: agreement(tasks, rankings, name) for name in names},
            rankings_by_annotator={name: sum(row.annotator == name for row in rankings) for name in names},
        )


def _remove_store(folder: Path) -> None:
    for path in folder.glob("labels.db*"):
        path.unlink()


def read_tasks(settings: RankConfig) -> tuple[list[Prompt], list[Task]]:
    """The prompts, and one task for each that has two responses or more. Raises as `run`."""
    prompts = list({row.id: row for path in settings.prompts for row in read_jsonl(path, Prompt)}.values())
    responses = _responses(settings, {prompt.id for prompt in prompts})
    tasks = group(prompts, responses)
    if not tasks:
        raise UserError(
            f"{', '.join(settings.responses)}: no prompt has two responses; run `rlhf sample` with --num_responses 4"
        )
    return prompts, tasks


def inputs(settings: RankConfig) -> dict[str, str | Path | None]:
    """The files that the stage reads, by name."""
    files: dict[str, str | Path | None] = {f"prompts {n}": path for n, path in enumerate(settings.prompts)}
    return files | {f"responses {n}": path for n, path in enumerate(settings.responses)}


def work(tasks: Sequence[Task], settings: RankConfig, url: str) -> list[Ranking]:
    """Everybody asks the store for tasks and answers them until none are left; what the store then holds.

    Several annotators rank a share of the tasks, one each other. All of it is one write: simulated
    people lose nothing when the power fails.
    """
    rng = Random(f"{settings.seed}/assign")
    several = set(rng.sample(range(len(tasks)), round(len(tasks) * settings.overlap_share)))
    parts = {
        "several": (settings.overlap, [task for number, task in enumerate(tasks) if number in several]),
        "one": (1, [task for number, task in enumerate(tasks) if number not in several]),
    }

    def job(connection: Connection) -> None:
        for name, (overlap, part) in parts.items():
            load_tasks(connection, name, part, "task", SetRules(overlap), FIRST_DAY)
        let_everybody_answer(connection, tasks, settings.seed, rng)

    store = Store(url)
    try:
        store.write(job)
        return store.read(read_labels).rankings
    finally:
        store.close()


def let_everybody_answer(
    connection: Connection, tasks: Sequence[Task], seed: int, rng: Random, most: int | None = None
) -> None:
    """The annotators ask for the tasks that the store holds and answer them, until none or `most` are answered."""
    everybody = {a: add_person(connection, a.name, "annotator", None, FIRST_DAY) for a in ANNOTATORS}
    clock = dict.fromkeys(everybody, FIRST_DAY)
    by_id = {task.id: task for task in tasks}
    answered = 0
    while everybody:
        for annotator in rng.sample(list(everybody), len(everybody)):  # who is quick to ask is chance
            if answered == most:
                return
            clock[annotator] += _answer_next(connection, annotator, everybody, by_id, seed, clock[annotator])
            answered += annotator in everybody


def _answer_next(
    connection: Connection,
    annotator: Annotator,
    everybody: dict[Annotator, int],
    tasks: dict[str, Task],
    seed: int,
    now: float,
) -> float:
    """One task asked for and answered; the seconds it took. Who gets none goes home."""
    turn = next_turn(connection, everybody[annotator], Rules(lease_seconds=1e9, seed=seed), now)
    if turn is None:
        del everybody[annotator]
        return 0.0
    task_id, shown = connection.execute(
        select(task_table.c.record_id, leases.c.shown)
        .join(leases, leases.c.task_id == task_table.c.id)
        .where(leases.c.id == turn.lease_id)
    ).one()
    said = rank(tasks[task_id], annotator, seed, shown)
    sent = {"ranks": [said.ranks[id] for id in shown]}
    assert said.seconds is not None
    submit(connection, everybody[annotator], turn.lease_id, turn.lease_id, sent, FORM, said.seconds, now + said.seconds)
    return said.seconds


def agreement(tasks: Sequence[Task], rankings: Sequence[Ranking], annotator: str | None = None) -> float | None:
    """The mean agreement of two annotators on the order of two responses, in [0, 1].

    1 where both prefer the same one or both see a tie, 0.5 where only one sees a tie, 0 where they
    prefer different ones; the mean over all pairs of different texts and of annotators that share a
    task (with `annotator`: the pairs that this one is part of). None where nobody shares a task.
    """
    texts = {response.id: response.text for task in tasks for response in task.responses}
    by_task: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_task.setdefault(ranking.task_id, []).append(ranking)
    values = [
        1 - abs(_order(one, *pair) - _order(other, *pair)) / 2
        for shared in by_task.values()
        for one, other in itertools.combinations(shared, 2)
        if annotator in (None, one.annotator, other.annotator)
        for pair in itertools.combinations(one.ranks, 2)
        if texts[pair[0]] != texts[pair[1]]
    ]
    return fmean(values) if values else None


def _order(ranking: Ranking, first: str, second: str) -> int:
    """1 where the first is preferred, -1 where the second is, 0 for a tie."""
    difference = ranking.ranks[second] - ranking.ranks[first]
    return (difference > 0) - (difference < 0)


def _responses(settings: RankConfig, known: set[str]) -> list[Response]:
    responses: dict[str, Response] = {}
    for path in settings.responses:
        for row in read_jsonl(Path(path), Response):
            if row.prompt_id not in known:
                raise UserError(
                    f"{path}: response `{row.id}` answers prompt `{row.prompt_id}`, which is not in "
                    f"{', '.join(settings.prompts)}; add the file that was sampled from to --prompts"
                )
            responses[row.id] = row
    return list(responses.values())
