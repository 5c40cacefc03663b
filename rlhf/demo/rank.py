"""demo-rank: the simulated annotators rank sampled responses, some tasks more than once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

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
    resume: bool = field(default=False, metadata={"help": "Write into an unfinished run folder again."})

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_share <= 1:
            raise ValueError(f"overlap_share is {self.overlap_share}, should be from 0 to 1")
        if not 2 <= self.overlap <= len(ANNOTATORS):
            raise ValueError(f"overlap is {self.overlap}, should be from 2 to {len(ANNOTATORS)}, as many as there are")


class Config(NamedTuple):
    """What the stage `demo-rank` of the demo's recipe may hold."""

    rank: RankConfig


def run(config: Config) -> Run:
    """Write `tasks.jsonl`, one task a prompt with all its responses, and `rankings.jsonl`.

    Raises UserError for missing files, for responses to prompts that the files do not hold, for
    prompts that are not the demo's, and where no prompt has two responses.
    """
    settings = config.rank
    prompts = list({row.id: row for path in settings.prompts for row in read_jsonl(path, Prompt)}.values())
    responses = _responses(settings, {prompt.id for prompt in prompts})
    tasks = group(prompts, responses)
    if not tasks:
        raise UserError(
            f"{', '.join(settings.responses)}: no prompt has two responses; run `rlhf sample` with --num_responses 4"
        )
    who = assign(tasks, settings.overlap_share, settings.overlap, settings.seed)
    rankings = [rank(task, annotator, settings.seed) for task in tasks for annotator in who[task.id]]

    inputs = {f"prompts {n}": path for n, path in enumerate(settings.prompts)}
    inputs |= {f"responses {n}": path for n, path in enumerate(settings.responses)}
    with open_run("demo-rank", settings.output_dir, configuration.as_dict(config), inputs, settings.resume) as folder:
        write_jsonl(folder.path / "tasks.jsonl", tasks)
        write_jsonl(folder.path / "rankings.jsonl", rankings)
        names = [annotator.name for annotator in ANNOTATORS]
        return folder.finish(
            num_tasks=len(tasks),
            num_rankings=len(rankings),
            num_tasks_overlapping=sum(len(chosen) > 1 for chosen in who.values()),
            num_prompts_without_task=len(prompts) - len(tasks),
            agreement=agreement(tasks, rankings),
            agreement_by_annotator={name: agreement(tasks, rankings, name) for name in names},
            rankings_by_annotator={name: sum(row.annotator == name for row in rankings) for name in names},
        )


def assign(tasks: Sequence[Task], overlap_share: float, overlap: int, seed: int) -> dict[str, list[Annotator]]:
    """Task id to its annotators: `overlap` of them for a share of the tasks, one for each other.

    Random, and even: nobody gets two tasks more than another of those with one annotator.
    """
    rng = Random(f"{seed}/assign")
    order = rng.sample(range(len(tasks)), len(tasks))
    several = set(order[: round(len(tasks) * overlap_share)])
    turn = itertools.cycle(rng.sample(ANNOTATORS, len(ANNOTATORS)))
    return {
        task.id: rng.sample(ANNOTATORS, overlap) if number in several else [next(turn)]
        for number, task in enumerate(tasks)
    }


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
