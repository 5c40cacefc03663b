"""select: which tasks to ask people about, and with what probability each was chosen.

Part of the tasks is drawn uniformly, the others are those that reward models find most worth asking.
How likely each task was to be chosen is known exactly, so what is measured on the chosen ones can be
corrected to speak for all: weigh each by 1 / probability (Horvitz and Thompson 1952; Farquhar, Gal and
Rainforth 2021, "On Statistical Bias In Active Learning", for training on what was chosen).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from rlhf import config as configuration
from rlhf.errors import UserError, nearest
from rlhf.records import RewardFunction, Run, Task, read_jsonl, write_jsonl
from rlhf.runs import open_run

BY = ("random", "variance", "small_gap", "large_gap")
LEAST_RANDOM = 0.1


@dataclass(frozen=True)
class SelectConfig:
    """Which tasks are chosen, and by what."""

    tasks: str = field(metadata={"help": "JSONL file of tasks to choose from (`sample` writes it)"})
    output_dir: str = field(metadata={"help": "run folder to make"})
    num_tasks: int = field(default=1000, metadata={"help": "how many tasks to choose"})
    by: str = field(
        default="random",
        metadata={
            "help": "random; variance: where reward models disagree most; small_gap, large_gap: where the best and "
            "the second-best response score nearest to, or farthest from, each other"
        },
    )
    reward: list[str] = field(
        default_factory=list,
        metadata={"help": "reward runs or `module:function`, one or more; two or more to choose by variance"},
    )
    random_share: float = field(default=0.2, metadata={"help": "share that is drawn uniformly whatever `by` is"})
    exclude: list[str] = field(
        default_factory=list, metadata={"help": "JSONL files of tasks that were chosen before, not to choose again"}
    )
    batch_size: int = field(default=32, metadata={"help": "responses scored at a time"})
    seed: int = field(default=0, metadata={"help": "of the draw and of the order"})
    resume: bool = field(default=False, metadata={"help": "write into an unfinished run folder again"})

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise ValueError(f"by is {self.by!r}{nearest(self.by, list(BY))}; should be one of {', '.join(BY)}")
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks is {self.num_tasks}, should be at least 1")
        if not LEAST_RANDOM <= self.random_share <= 1:
            raise ValueError(
                f"random_share is {self.random_share}, should be from {LEAST_RANDOM} to 1: without a random share "
                "nothing can be said about the tasks that were not chosen"
            )
        if self.by != "random" and len(self.reward) < (needed := 2 if self.by == "variance" else 1):
            raise ValueError(f"by {self.by} needs {needed} or more reward models; name them with --reward")


class Config(NamedTuple):
    """What `configs/select.yaml` may hold."""

    select: SelectConfig


@dataclass(frozen=True)
class Choice:
    """One chosen task: its index, whether the uniform draw chose it, and its probability of being chosen."""

    index: int
    is_random: bool
    probability: float


def run(config: Config, scorers: Mapping[str, RewardFunction] | None = None) -> Run:
    """Write the chosen tasks to tasks.jsonl, in random order, each with `chosen_by` and `probability`.

    A task that comes with a probability under 1 was chosen before from a larger pool: the two are multiplied.

    Args:
        scorers: the reward models of `reward` by name; not needed to choose by random.

    Raises UserError for fewer tasks than asked for, and for scorers that do not score.
    """
    settings = config.select
    pool, num_excluded = _pool(settings)
    scorers = scorers or {}
    if settings.by == "random":
        worth = [0.0] * len(pool)
    else:
        assert len(scorers) == len(set(settings.reward))
        worth = worth_asking(pool, scorers, settings.by)
    share = 1.0 if settings.by == "random" else settings.random_share
    choices = choose(worth, settings.num_tasks, share, settings.seed)
    chosen = [
        replace(
            pool[choice.index],
            chosen_by="random" if choice.is_random else settings.by,
            probability=pool[choice.index].probability * choice.probability,
        )
        for choice in choices
    ]
    inputs = {"tasks": settings.tasks} | {f"exclude {n}": path for n, path in enumerate(settings.exclude)}
    inputs |= {f"reward {n}": name for n, name in enumerate(settings.reward)}
    recorded = configuration.as_dict(config)
    with open_run("select", settings.output_dir, recorded, inputs, settings.resume) as folder:
        write_jsonl(folder.path / "tasks.jsonl", chosen)
        return folder.finish(
            num_tasks_in=len(pool) + num_excluded,
            num_excluded=num_excluded,
            num_chosen=len(chosen),
            num_chosen_by={"random": sum(c.is_random for c in choices), settings.by: _num_by(choices, settings.by)},
            probability={"least": min(c.probability for c in choices), "most": max(c.probability for c in choices)},
            **_spread(worth, choices, settings.by),
        )


def choose(worth: Sequence[float], num: int, random_share: float, seed: int) -> list[Choice]:
    """Choose `num` indices: a uniform draw of `random_share` of them, then of the rest those worth most.

    Equal worths are in random order, and so is what is returned: work that stops half-way has done a
    uniform draw of the chosen ones, so their probabilities still stand to each other as they should.

    The probability is over all draws. With N tasks, r of them drawn uniformly and m = num - r taken by
    worth, the task of rank j (1 is worth most) is chosen by worth where fewer than m of the j - 1 above
    it are left by the draw, so

        P(chosen) = r/N + (1 - r/N) P(X >= j - m),   X ~ Hypergeometric(N - 1, j - 1, r)

    where X counts those above it that the draw took, given that it did not take this one. Equal worths
    share the mean over their ranks.

    Args:
        worth: one finite number a task, the highest is worth most.
        num: at most as many as there are.
        random_share: over 0; so much of `num`, rounded up, is drawn uniformly.
    """
    import numpy as np
    from scipy.stats import hypergeom

    total = len(worth)
    assert 0 < num <= total and 0 < random_share <= 1
    num_random = min(num, math.ceil(random_share * num - 1e-9))
    num_best = num - num_random
    rng = Random(f"select/{seed}")
    drawn = rng.sample(range(total), num_random)
    shuffled = rng.sample(range(total), total)
    order = sorted(shuffled, key=lambda index: -worth[index])  # stable: equal worths stay shuffled
    taken = set(drawn)
    best = [index for index in order if index not in taken][:num_best]

    ranks = np.arange(1, total + 1)
    by_worth = hypergeom.sf(ranks - num_best - 1, total - 1, ranks - 1, num_random)
    in_draw = num_random / total
    by_rank = in_draw + (1 - in_draw) * np.where(num_best > 0, by_worth, 0.0)
    _, group = np.unique([-worth[index] for index in order], return_inverse=True)
    shared = np.bincount(group, by_rank) / np.bincount(group)
    probability = dict(zip(order, np.minimum(shared[group], 1.0).tolist(), strict=True))
    choices = [Choice(index, index in taken, probability[index]) for index in [*drawn, *best]]
    rng.shuffle(choices)
    return choices


def worth_asking(tasks: Sequence[Task], scorers: Mapping[str, RewardFunction], by: str) -> list[float]:
    """How much each task is worth by the scores of its responses, the highest first to ask.

    A reward model's scores mean something only as differences within a prompt, in a unit of its own:
    each model's are centred in every task and divided by their standard deviation over all tasks.

    variance: the variance over models of a response's score, the mean over the task's responses.
    large_gap: how far the best response is above the second-best, by the models' mean score.
    small_gap: the same with the sign turned.

    Raises UserError for scorers that do not give one finite number a response, or all the same.
    """
    import numpy as np

    sizes = [len(task.responses) for task in tasks]
    starts = np.cumsum([0, *sizes[:-1]])
    scores = np.stack([_standardised(name, scorer, tasks, sizes) for name, scorer in scorers.items()])
    if by == "variance":  # (models, responses) -> (tasks,)
        return (np.add.reduceat(scores.var(axis=0), starts) / sizes).tolist()
    mean = scores.mean(axis=0)
    gaps = [float(np.diff(np.sort(part)[-2:])[0]) for part in np.split(mean, starts[1:])]
    return gaps if by == "large_gap" else [-gap for gap in gaps]


def _standardised(name: str, scorer: RewardFunction, tasks: Sequence[Task], sizes: Sequence[int]) -> Any:
    """One model's scores of all responses, (responses,), centred in each task and with a mean square of 1."""
    import numpy as np

    prompts = [task.prompt.messages for task in tasks for _ in task.responses]
    responses = [response.text for task in tasks for response in task.responses]
    values = np.asarray(list(scorer(prompts, responses, **_columns(tasks))), dtype=float)
    if values.shape != (len(responses),):
        raise UserError(f"reward {name}: gave {values.size} scores for {len(responses)} responses")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        owner = np.repeat(np.arange(len(tasks)), sizes)[at]
        raise UserError(f"reward {name}: gave {values[at]} for a response of task {tasks[owner].id}")
    starts = np.cumsum([0, *sizes[:-1]])
    centred = values - np.repeat(np.add.reduceat(values, starts) / sizes, sizes)
    scale = np.sqrt((centred**2).mean())
    if scale <= 1e-12 * max(1.0, float(np.abs(values).max())):
        raise UserError(f"reward {name}: scores all responses of a task the same; it cannot tell which to ask about")
    return centred / scale


def _columns(tasks: Sequence[Task]) -> dict[str, list[Any]]:
    """What every prompt's `meta` holds, one value a response, as reward functions take it."""
    first = tasks[0].prompt.meta
    names = [name for name in first if all(name in task.prompt.meta for task in tasks)]
    return {
        name: [task.prompt.meta[name] for task in tasks for _ in task.responses]
        for name in names
        if name not in ("prompts", "responses")
    }


def _pool(settings: SelectConfig) -> tuple[list[Task], int]:
    """The tasks to choose from, and how many were chosen before."""
    tasks = read_jsonl(settings.tasks, Task)
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"{settings.tasks}: task {twice} is there twice; keep one of them")
    for task in tasks:
        if len(task.responses) < 2:
            raise UserError(f"{settings.tasks}: task {task.id} should have two or more responses")
    before = {task.id for path in settings.exclude for task in read_jsonl(path, Task)}
    pool = [task for task in tasks if task.id not in before]
    if len(pool) < settings.num_tasks:
        raise UserError(
            f"num_tasks is {settings.num_tasks}; {settings.tasks} has {len(pool)} tasks"
            f"{' that were not chosen before' if before else ''}; ask for as many at most"
        )
    return pool, len(tasks) - len(pool)


def _num_by(choices: Sequence[Choice], by: str) -> int:
    return sum(choice.is_random == (by == "random") for choice in choices)


def _spread(worth: Sequence[float], choices: Sequence[Choice], by: str) -> dict[str, float]:
    """The mean worth of all and of the chosen: whether choosing was worth the trouble."""
    if by == "random":
        return {}
    sign = -1 if by == "small_gap" else 1  # as it reads: no gap is under 0
    chosen = [worth[choice.index] for choice in choices]
    return {name: sign * math.fsum(w) / len(w) for name, w in (("worth_of_all", worth), ("worth_of_chosen", chosen))}
