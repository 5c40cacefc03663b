"""Whether tasks and labels fit together; what does not is named, before anything is counted."""

from collections.abc import Collection, Mapping, Sequence

from rlhf.errors import UserError, nearest
from rlhf.records import Messages, Ranking, Response, Task

ADJUDICATION = "adjudication"
KINDS = ("task", "gold", "repeat", "practice", "surplus", "left_out", ADJUDICATION)


def check_labels(tasks: Sequence[Task], rankings: Sequence[Ranking], where: Sequence[str] | None = None) -> None:
    """Raise UserError for labels that cannot be counted.

    That is: tasks that are there twice, contradict each other or have fewer than two responses;
    rankings of an unknown task or kind, of other responses than the task's, given twice by one
    annotator, or whose strength or `both_bad` contradicts their ranks.

    Args:
        where: how errors name each ranking ("rankings.jsonl, line 3"); "ranking 3" if not given.
    """
    known = _check_tasks(tasks)
    seen: dict[tuple[str, str, str], str] = {}
    places = where or [f"ranking {number}" for number in range(1, len(rankings) + 1)]
    for ranking, place in zip(rankings, places, strict=True):
        if ranking.kind not in KINDS:
            raise UserError(f"{place}: kind is {ranking.kind!r}, should be one of {', '.join(KINDS)}")
        _check_task(known, ranking, place)
        key = (ranking.task_id, ranking.annotator, ranking.kind)
        if key in seen:
            raise UserError(
                f"{place}: {ranking.annotator} ranks task {ranking.task_id} again, after {seen[key]}; "
                "keep the one that counts"
            )
        seen[key] = place
        _check_ranks(known[ranking.task_id], ranking, place)


def check_annotators(rankings: Sequence[Ranking], lists: Mapping[str, Collection[str]]) -> None:
    """Raise UserError for a name that ranked nothing, or that is in two of the lists (setting: names)."""
    annotators = sorted({ranking.annotator for ranking in rankings if ranking.kind != ADJUDICATION})
    named: dict[str, str] = {}
    for setting, names in lists.items():
        for name in names:
            if name not in annotators:
                raise UserError(
                    f"{setting}: {name} ranked nothing{nearest(name, annotators)}; "
                    f"there are {len(annotators)} annotators"
                )
            if named.setdefault(name, setting) != setting:
                raise UserError(f"{setting}: {name} is in {named[name]} too; name everybody once")


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


def _check_task(known: Mapping[str, Task], ranking: Ranking, place: str) -> None:
    if ranking.task_id not in known:
        raise UserError(
            f"{place}: ranks task {ranking.task_id}, which is not among the {len(known)} tasks; "
            "give the tasks that people were shown"
        )


def _check_ranks(task: Task, ranking: Ranking, place: str) -> None:
    shown = {response.id for response in task.responses}
    if unknown := sorted(ranking.ranks.keys() - shown):
        raise UserError(
            f"{place}: ranks response {unknown[0]}, which task {task.id} does not have; "
            f"it has {', '.join(sorted(shown))}"
        )
    if missing := sorted(shown - ranking.ranks.keys()):
        raise UserError(
            f"{place}: gives no rank to response {missing[0]} of task {task.id}; "
            "rank every response (equal ranks are ties), or remove the line"
        )
    is_tie = len(set(ranking.ranks.values())) == 1
    if ranking.both_bad and not is_tie:
        raise UserError(f"{place}: says that all are bad, yet ranks one above another; give equal ranks or no both_bad")
    strength = ranking.strength
    if strength is not None and len(shown) == 2 and (strength < 0 or is_tie != (strength == 0)):
        raise UserError(
            f"{place}: strength is {strength:g} and the ranks {'are equal' if is_tie else 'differ'}; "
            "it should be 0 for a tie and over 0 for the better one"
        )
