"""demo-vote: the simulated annotators judge a compare run blind, through the label store, as people do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from sqlalchemy import Connection

from labeling_app.blind import comparison_tasks, read_votes
from labeling_app.loading import SetRules, load_tasks
from labeling_app.store import Store
from rlhf import config as configuration
from rlhf.demo.annotators import ANNOTATORS
from rlhf.demo.rank import FIRST_DAY, let_everybody_answer
from rlhf.errors import UserError
from rlhf.records import Response, Run, Task, read_jsonl
from rlhf.runs import open_run


@dataclass(frozen=True)
class VoteConfig:
    """Which comparison is judged, and how often."""

    comparison: str = field(metadata={"help": "Folder of a finished compare run on the demo's prompts."})
    output_dir: str = field(metadata={"help": "The run's folder: labels.db."})
    num_votes: int = field(default=400, metadata={"help": "Votes in all; each is on two policies' responses."})
    between: list[str] = field(
        default_factory=list, metadata={"help": "Names of two policies that alone are judged; all by default."}
    )
    overlap: int = field(default=1, metadata={"help": "How many annotators judge the same two responses."})
    seed: int = field(default=0, metadata={"help": "Who judges what, and the annotators' noise."})
    resume: bool = field(default=False, metadata={"help": "Write into an unfinished run folder again."})

    def __post_init__(self) -> None:
        if self.num_votes < 1:
            raise ValueError(f"num_votes is {self.num_votes}, should be at least 1")
        if not 1 <= self.overlap <= len(ANNOTATORS):
            raise ValueError(f"overlap is {self.overlap}, should be from 1 to {len(ANNOTATORS)}, as many as there are")
        if len(self.between) not in (0, 2):
            raise ValueError(f"between names {len(self.between)} policies, should name two or none")


class Config(NamedTuple):
    """What the stage `demo-vote` may hold."""

    vote: VoteConfig


def run(config: Config) -> Run:
    """Write `labels.db`, which `rlhf compare --people` reads.

    Raises UserError for no finished compare run, and where the texts that differ give fewer votes than asked for.
    """
    settings = config.vote
    tasks, _ = comparison_tasks(settings.comparison)
    if settings.between:
        tasks = _between(settings.comparison, tasks, settings.between)
    if len(tasks) * settings.overlap < settings.num_votes:
        raise UserError(
            f"{settings.comparison}: {len(tasks)} pairs of responses differ, which give "
            f"{len(tasks) * settings.overlap} votes of {settings.num_votes}; raise overlap, or lower num_votes"
        )
    recorded = configuration.as_dict(config)
    with open_run(
        "demo-vote", settings.output_dir, recorded, {"comparison": settings.comparison}, settings.resume
    ) as to:
        for path in to.path.glob("labels.db*"):  # of a run that was stopped
            path.unlink()
        url = str(to.path / "labels.db")
        _vote(url, tasks, settings)
        _, votes = read_votes(url)
        names = [annotator.name for annotator in ANNOTATORS]
        return to.finish(
            num_tasks=len(tasks),
            num_votes=len(votes),
            votes_by_annotator={name: sum(vote.annotator == name for vote in votes) for name in names},
        )


def _vote(url: str, tasks: Sequence[Task], settings: VoteConfig) -> None:
    def job(connection: Connection) -> None:
        rules = SetRules(settings.overlap, order="random", kind="comparison")
        load_tasks(connection, "comparison", tasks, "task", rules, FIRST_DAY)
        rng = Random(f"{settings.seed}/vote")
        let_everybody_answer(connection, tasks, settings.seed, rng, settings.num_votes)

    store = Store(url)
    try:
        store.write(job)
    finally:
        store.close()


def _between(folder: str, tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """The tasks whose two responses are of these policies."""
    ids: list[set[str]] = []
    for name in names:
        path = Path(folder) / f"responses.{name}.jsonl"
        ids.append({response.id for response in read_jsonl(path, Response)})
    first, second = ids
    found = []
    for task in tasks:
        one, other = (response.id for response in task.responses)
        if (one in first and other in second) or (one in second and other in first):
            found.append(task)
    return found
