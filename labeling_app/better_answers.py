"""What annotators wrote themselves: demonstrations, and preferences over the responses they wrote them for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from labeling_app.aggregate import difference
from rlhf.records import Demonstration, Messages, Preference, Ranking, Task, make_id


@dataclass
class _Better:
    """One text that somebody wrote for a prompt, and what it is better than: text -> annotator -> margins."""

    prompt: Messages
    group_id: str
    text: str
    others: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def has_better_answer(label: Ranking) -> bool:
    """Whether there is more than white space in it."""
    return bool(label.better_answer and label.better_answer.strip())


def better_answers(
    tasks: Sequence[Task], votes: Sequence[Ranking]
) -> tuple[list[Demonstration], list[Preference], dict[str, int]]:
    """Better answers as demonstrations and as preferences over each response of their task, with counts.

    A better answer stands one step above the best response, so its margin over a response is 1 and
    the response's distance from the best (in ranks, or in strength where a pair was answered with
    one), the mean where several wrote the same. `weight` is 1, `votes` how many wrote it. Where it is
    a response's text again it is a demonstration only: on that pair people have voted already.

    Args:
        votes: the labels that count; their tasks are among `tasks`.
    """
    by_id = {task.id: task for task in tasks}
    responses: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        responses[task.prompt.id] |= {response.text.strip() for response in task.responses}
    written: dict[tuple[str, str], _Better] = {}
    num_copied = 0
    labels = [vote for vote in votes if has_better_answer(vote)]
    for label in labels:
        task, text = by_id[label.task_id], label.better_answer or ""
        key = (task.prompt.id, text.strip())
        better = written.setdefault(key, _Better(task.prompt.messages, task.prompt.id, text))
        if key[1] in responses[task.prompt.id]:
            num_copied += 1
            continue
        best = min(label.ranks, key=lambda id: label.ranks[id])
        for response in task.responses:
            margin = 1 + difference(label, best, response.id)
            better.others[response.text.strip()][label.annotator].append(margin)
    preferences = [_preference(better, other) for better in written.values() for other in better.others]
    demonstrations = [_demonstration(better) for better in written.values()]
    counts = {"better_answers": len(labels), "better_answers_copied": num_copied}
    return demonstrations, preferences, counts


def _demonstration(better: _Better) -> Demonstration:
    messages = [*better.prompt, {"role": "assistant", "content": better.text}]
    return Demonstration(make_id("demonstration", messages), messages)


def _preference(better: _Better, other: str) -> Preference:
    writers = better.others[other]
    margin = fmean(fmean(margins) for margins in writers.values())
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (better.text, other))
    votes = {"for": len(writers), "tie": 0, "against": 0}
    # An id of its own kind: whoever wants to train on the votes alone can tell them apart.
    id = make_id("better", better.prompt, better.text, other)
    return Preference(id, better.group_id, better.prompt, chosen, rejected, margin, 1.0, votes)
