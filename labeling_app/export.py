"""Rankings to preferences: every pair of responses that people ranked, settled by majority.

Nothing disappears: each pair and each vote that goes in comes out as a preference, as a tie, or as
left out with its reason, and `run.json` holds the sums.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rlhf import config as configuration
from rlhf.agreement import human_ceiling
from rlhf.data.split import Shares, opening, prompt_key, split_of
from rlhf.errors import UserError, nearest
from rlhf.records import Messages, Preference, Ranking, Response, Run, Task, Tie, make_id, read_jsonl, write_jsonl
from rlhf.runs import open_run


@dataclass(frozen=True)
class ExportConfig:
    """What `export` reads and writes."""

    tasks: str = field(metadata={"help": "JSONL file of the tasks that were ranked (Task rows)"})
    rankings: str = field(metadata={"help": "JSONL file of what people answered (Ranking rows)"})
    output_dir: str = field(metadata={"help": "run folder to make"})
    validation_share: float = field(
        default=0.0,
        metadata={"help": "share of the prompts that goes to preferences.validation.jsonl; 0 = none"},
    )
    seed: int = field(default=0, metadata={"help": "which prompts are for validation"})
    annotators_out: list[str] = field(
        default_factory=list, metadata={"help": "annotators whose rankings are left out (and counted)"}
    )
    resume: bool = field(default=False, metadata={"help": "write into an unfinished run folder again"})

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}, should be at least 0 and under 1")


class Config(NamedTuple):
    """The config of `rlhf export`."""

    export: ExportConfig


@dataclass
class _Pair:
    """One pair of texts of one prompt while its votes come in; a vote is a rank difference."""

    prompt: Messages
    group_id: str
    texts: tuple[str, str]
    ids: set[frozenset[str]] = field(default_factory=set)
    # annotator -> for each time: rank of the second minus rank of the first, over 0 is for the first
    differences: dict[str, list[int]] = field(default_factory=dict)
    num_votes_out: int = 0


def aggregate(
    tasks: Sequence[Task],
    rankings: Sequence[Ranking],
    annotators_out: Collection[str] = (),
    where: Sequence[str] | None = None,
) -> tuple[list[Preference], list[Tie], dict[str, int]]:
    """Every pair of responses with the majority of its voters: `(preferences, ties, counts)`.

    A pair is two different texts for one prompt; the same two texts in several tasks are one pair.
    An annotator has one vote on it: the sign of their mean rank difference. The side with more votes
    is chosen, equal sides make a Tie. `margin` is the voters' mean rank difference in favour of the
    chosen, 0 where a minority felt more strongly than the majority. `weight` is the chosen's share of
    the votes, ties half.

    The counts add up, and `tests/test_export.py` says so:

        pairs_in = preferences + ties + pairs_identical + pairs_repeated + pairs_unranked + pairs_annotator_out
        votes_in = votes + votes_identical + votes_repeated + votes_annotator_out

    Args:
        tasks: what was shown.
        rankings: what people answered.
        annotators_out: annotators whose rankings do not count.
        where: how errors name each ranking ("rankings.jsonl, line 3"); "ranking 3" if not given.

    Raises:
        UserError: a ranking of an unknown task, of other responses than the task's, or given twice
            by one annotator; tasks that contradict each other; an unknown annotator to leave out.
    """
    known = _check_tasks(tasks)
    _check_rankings(known, rankings, where or [f"ranking {number}" for number in range(1, len(rankings) + 1)])
    _check_annotators(rankings, annotators_out)
    pairs, counts = _collect(tasks, rankings, set(annotators_out))

    preferences: list[Preference] = []
    ties: list[Tie] = []
    for pair in pairs:
        if not pair.differences:
            counts["pairs_annotator_out" if pair.num_votes_out else "pairs_unranked"] += len(pair.ids)
            continue
        settled = _settle(pair)
        (preferences if isinstance(settled, Preference) else ties).append(settled)  # type: ignore[arg-type]
        counts["votes"] += len(pair.differences)
        counts["votes_repeated"] += sum(len(times) - 1 for times in pair.differences.values())
        counts["pairs_repeated"] += len(pair.ids) - 1
    counts["preferences"], counts["ties"] = len(preferences), len(ties)
    return preferences, ties, counts


def is_validation(prompt: Messages, share: float, seed: int) -> bool:
    """Whether a prompt is for validation: by its opening's hash, so it stays there when labels are added."""
    # Not prepare's own draw: among the prompts that one sent to train, it would send none to validation.
    key = f"export {prompt_key(opening(prompt))}"
    return split_of(key, Shares(train=1 - share, validation=share, test=0), seed) == "validation"


def run(config: Config) -> Run:
    """Write preferences.train.jsonl, preferences.validation.jsonl (if asked) and ties.jsonl."""
    settings = config.export
    tasks = read_jsonl(settings.tasks, Task)
    rankings = read_jsonl(settings.rankings, Ranking)
    where = [f"{settings.rankings}, line {number}" for number in _line_numbers(settings.rankings)]
    preferences, ties, counts = aggregate(tasks, rankings, settings.annotators_out, where)
    if not preferences:
        raise UserError(
            f"{settings.rankings}: gives no preference; of {counts['pairs_in']} pairs {counts['ties']} are ties and "
            f"{counts['pairs_in'] - counts['ties']} are left out; collect more rankings"
        )
    train, validation = _split(preferences, settings)
    ceiling = human_ceiling([*preferences, *ties])

    inputs = {"tasks": settings.tasks, "rankings": settings.rankings}
    with open_run("export", settings.output_dir, configuration.as_dict(config), inputs, settings.resume) as folder:
        write_jsonl(folder.path / "preferences.train.jsonl", train)
        if validation:
            write_jsonl(folder.path / "preferences.validation.jsonl", validation)
        write_jsonl(folder.path / "ties.jsonl", ties)
        return folder.finish(
            **{f"num_{name}": count for name, count in counts.items()},
            num_train=len(train),
            num_validation=len(validation),
            human_ceiling=ceiling and ceiling.share,
            human_ceiling_num_pairs=ceiling.num_pairs if ceiling else 0,
            human_ceiling_num_votes=ceiling.num_votes if ceiling else 0,
        )


def _collect(
    tasks: Sequence[Task], rankings: Sequence[Ranking], annotators_out: set[str]
) -> tuple[list[_Pair], dict[str, int]]:
    by_task: dict[str, list[Ranking]] = {task.id: [] for task in tasks}
    for ranking in rankings:
        by_task[ranking.task_id].append(ranking)

    pairs: dict[tuple[str, frozenset[str]], _Pair] = {}
    identical: set[tuple[str, frozenset[str]]] = set()
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    for task in tasks:
        for first, second in itertools.combinations(task.responses, 2):
            counts["votes_in"] += len(by_task[task.id])
            ids = frozenset((first.id, second.id))
            texts = first.text.strip(), second.text.strip()
            if texts[0] == texts[1]:  # a reader cannot tell them apart, so a vote on them says nothing
                identical.add((task.prompt.id, ids))
                counts["votes_identical"] += len(by_task[task.id])
                continue
            key = (task.prompt.id, frozenset(texts))
            pair = pairs.setdefault(key, _Pair(task.prompt.messages, task.prompt.id, (first.text, second.text)))
            pair.ids.add(ids)
            if texts[0] != pair.texts[0].strip():
                first, second = second, first
            for ranking in by_task[task.id]:
                if ranking.annotator in annotators_out:
                    pair.num_votes_out += 1
                    counts["votes_annotator_out"] += 1
                else:
                    difference = ranking.ranks[second.id] - ranking.ranks[first.id]
                    pair.differences.setdefault(ranking.annotator, []).append(difference)
    counts["pairs_identical"] = len(identical)
    counts["pairs_in"] = len(identical) + sum(len(pair.ids) for pair in pairs.values())
    counts["rankings_in"] = len(rankings)
    counts["annotators"] = len({ranking.annotator for ranking in rankings} - annotators_out)
    return list(pairs.values()), dict(counts)


_COUNTS = (
    *("rankings_in", "annotators", "pairs_in", "preferences", "ties"),
    *("pairs_identical", "pairs_repeated", "pairs_unranked", "pairs_annotator_out"),
    *("votes_in", "votes", "votes_identical", "votes_repeated", "votes_annotator_out"),
)


def _settle(pair: _Pair) -> Preference | Tie:
    sums = [sum(times) for times in pair.differences.values()]
    first, second = sum(s > 0 for s in sums), sum(s < 0 for s in sums)
    tied = len(sums) - first - second
    id = make_id("pair", pair.prompt, sorted(pair.texts))
    replies = [[{"role": "assistant", "content": text}] for text in pair.texts]
    votes = {"for": max(first, second), "tie": tied, "against": min(first, second)}
    if first == second:
        return Tie(id, pair.group_id, pair.prompt, replies, votes)
    chosen, rejected = replies if first > second else reversed(replies)
    margin = fmean(fmean(times) for times in pair.differences.values()) * (1 if first > second else -1)
    weight = (votes["for"] + tied / 2) / len(sums)
    return Preference(id, pair.group_id, pair.prompt, chosen, rejected, max(0.0, margin), weight, votes)


def _split(preferences: list[Preference], settings: ExportConfig) -> tuple[list[Preference], list[Preference]]:
    share, seed = settings.validation_share, settings.seed
    train, validation = [], []
    for preference in preferences:
        (validation if is_validation(preference.prompt, share, seed) else train).append(preference)
    prompts = len({preference.group_id for preference in preferences})
    if not train or (share > 0 and not validation):
        raise UserError(
            f"validation_share {share} leaves none of {prompts} prompts for {'validation' if train else 'training'}; "
            "choose another share or seed, or 0 for no validation"
        )
    return train, validation


def _check_tasks(tasks: Sequence[Task]) -> dict[str, Task]:
    known: dict[str, Task] = {}
    prompts: dict[str, Messages] = {}
    responses: dict[str, Response] = {}
    for task in tasks:
        if task.id in known:
            raise UserError(f"task {task.id}: is there twice; keep one of them")
        known[task.id] = task
        if len({response.id for response in task.responses}) != len(task.responses) or len(task.responses) < 2:
            raise UserError(f"task {task.id}: should have two or more responses, each with an id of its own")
        if prompts.setdefault(task.prompt.id, task.prompt.messages) != task.prompt.messages:
            raise UserError(f"task {task.id}: prompt {task.prompt.id} reads otherwise in an earlier task; rename it")
        for response in task.responses:
            if responses.setdefault(response.id, response).text != response.text:
                raise UserError(f"task {task.id}: response {response.id} reads otherwise in an earlier task; rename it")
    return known


def _check_rankings(known: dict[str, Task], rankings: Sequence[Ranking], where: Sequence[str]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for ranking, place in zip(rankings, where, strict=True):
        if ranking.task_id not in known:
            raise UserError(
                f"{place}: ranks task {ranking.task_id}, which is not among the {len(known)} tasks; "
                "give the tasks that people were shown"
            )
        if (ranking.task_id, ranking.annotator) in seen:
            raise UserError(
                f"{place}: {ranking.annotator} ranks task {ranking.task_id} again, after "
                f"{seen[ranking.task_id, ranking.annotator]}; keep the one that counts"
            )
        seen[ranking.task_id, ranking.annotator] = place
        shown = {response.id for response in known[ranking.task_id].responses}
        if unknown := sorted(ranking.ranks.keys() - shown):
            raise UserError(
                f"{place}: ranks response {unknown[0]}, which task {ranking.task_id} does not have; "
                f"it has {', '.join(sorted(shown))}"
            )
        if missing := sorted(shown - ranking.ranks.keys()):
            raise UserError(
                f"{place}: gives no rank to response {missing[0]} of task {ranking.task_id}; "
                "rank every response (equal ranks are ties), or remove the line"
            )


def _check_annotators(rankings: Sequence[Ranking], annotators_out: Collection[str]) -> None:
    annotators = sorted({ranking.annotator for ranking in rankings})
    for annotator in annotators_out:
        if annotator not in annotators:
            raise UserError(
                f"annotators_out: {annotator} ranked nothing{nearest(annotator, annotators)}; "
                f"there are {len(annotators)} annotators"
            )


def _line_numbers(path: str) -> list[int]:
    # Of the lines that hold a record: read_jsonl skips empty ones.
    with Path(path).open(encoding="utf-8") as lines:
        return [number for number, line in enumerate(lines, 1) if line.strip()]
