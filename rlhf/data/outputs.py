"""Clean examples of one split to the records that later stages read."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from rlhf.data.formats import Example
from rlhf.data.verdicts import weak_order
from rlhf.records import Demonstration, Messages, Preference, Prompt, Ranking, Response, Task, Tie, make_id

IMPORTED = "imported"  # the run of a response that came with the data


@dataclass(frozen=True)
class Document:
    """A text to continue pretraining on."""

    text: str


@dataclass(frozen=True)
class Records:
    """Everything one split holds; each field is one file."""

    demonstrations: list[Demonstration] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    text: list[Document] = field(default_factory=list)
    num_without_order: int = 0  # rankings whose verdicts no weak order agrees with: kept as pairs alone

    def files(self) -> dict[str, list]:
        """The records by kind, only where there are some."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: rows for name, rows in fields.items() if isinstance(rows, list) and rows}


def prompt_of(example: Example) -> Prompt:
    """The prompt of an example; the same messages have the same id everywhere."""
    return Prompt(make_id("prompt", example.prompt), example.prompt, example.meta)


def build_records(examples: Iterable[Example], demonstrations_from: str = "none") -> Records:
    """The records of one split.

    `demonstrations_from="chosen"` also makes demonstrations of the replies that were preferred to
    another and that no reply of the same prompt was preferred to.
    """
    examples = list(examples)
    prompts: dict[str, Prompt] = {}
    for example in examples:
        if example.kind != "text":
            prompt = prompt_of(example)
            prompts.setdefault(prompt.id, prompt)
    preferences = {p.id: p for p in (_preference(e) for e in examples if e.kind == "preference")}
    tasks, rankings, num_without_order = _rankings([e for e in examples if e.kind == "ranking"], prompts)
    voted, ties = _vote([e for e in examples if e.kind == "ranking"])
    for preference in voted:
        preferences.setdefault(preference.id, preference)
    demonstrations = [e.prompt + _assistant(e.replies[0]) for e in examples if e.kind == "demonstration"]
    if demonstrations_from == "chosen":
        demonstrations += _unbeaten(preferences.values())
    return Records(
        demonstrations=list({d.id: d for d in map(_demonstration, demonstrations)}.values()),
        prompts=list(prompts.values()),
        preferences=list(preferences.values()),
        ties=ties,
        tasks=tasks,
        rankings=rankings,
        text=[Document(e.text) for e in examples if e.kind == "text"],
        num_without_order=num_without_order,
    )


def _assistant(reply: str) -> Messages:
    return [{"role": "assistant", "content": reply}]


def _demonstration(messages: Messages) -> Demonstration:
    return Demonstration(make_id("demonstration", messages), messages)


def _preference(example: Example) -> Preference:
    return _pair(example.prompt, *example.replies)


def _pair(prompt: Messages, chosen: str, rejected: str) -> Preference:
    return Preference(
        id=make_id("pair", prompt, chosen, rejected),
        group_id=make_id("prompt", prompt),
        prompt=prompt,
        chosen=_assistant(chosen),
        rejected=_assistant(rejected),
    )


def _unbeaten(preferences: Iterable[Preference]) -> list[Messages]:
    pairs = list(preferences)
    beaten = {(pair.group_id, pair.rejected[0]["content"]) for pair in pairs}
    return [pair.prompt + pair.chosen for pair in pairs if (pair.group_id, pair.chosen[0]["content"]) not in beaten]


def _rankings(examples: list[Example], prompts: dict[str, Prompt]) -> tuple[list[Task], list[Ranking], int]:
    """Tasks with their rankings, and how many verdicts no ranking can hold."""
    tasks: dict[str, Task] = {}
    rankings: list[Ranking] = []
    num_without_order = 0
    num_rankings: dict[str, int] = {}
    for example in examples:
        prompt = prompts[make_id("prompt", example.prompt)]
        responses = _responses(example, prompt)
        task = Task(make_id("task", prompt.id, [r.id for r in responses]), prompt, responses)
        tasks.setdefault(task.id, task)
        if example.verdicts is None:
            continue
        ranks = weak_order(len(responses), example.verdicts)
        if ranks is None:
            num_without_order += 1
            continue
        num_rankings[task.id] = number = num_rankings.get(task.id, 0) + 1
        annotator = example.annotator or f"{IMPORTED}-{number}"  # one ranking for each task and annotator
        rankings.append(Ranking(task.id, annotator, {r.id: rank for r, rank in zip(responses, ranks, strict=True)}))
    return list(tasks.values()), rankings, num_without_order


def _responses(example: Example, prompt: Prompt) -> list[Response]:
    # The place is part of the id: two columns may hold the same text.
    return [
        Response(make_id("response", prompt.id, text, at), prompt.id, text, IMPORTED, {"column": name})
        for at, (text, name) in enumerate(zip(example.replies, example.reply_names, strict=True))
    ]


@dataclass
class _Votes:
    """The verdicts on two replies of a prompt, seen from the one that came first."""

    prompt: Messages
    first: str
    second: str
    margins: list[float] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0, 2: 0})


def _vote(examples: list[Example]) -> tuple[list[Preference], list[Tie]]:
    """Every verdict becomes a vote on its pair; the side with more votes is the chosen one.

    The pairs are counted from the verdicts and not from the ranks, so that verdicts which no
    ranking can hold count too.
    """
    pairs: dict[tuple[str, str, str], _Votes] = {}
    for example in examples:
        if example.verdicts is None:
            continue
        prompt_id = make_id("prompt", example.prompt)
        ranks = weak_order(len(example.replies), example.verdicts)
        indices = combinations(range(len(example.replies)), 2)
        for (a, b), verdict in zip(indices, example.verdicts, strict=True):
            first, second = example.replies[a], example.replies[b]
            if first == second:
                continue  # nothing to prefer
            margin = float(ranks[b] - ranks[a]) if ranks else {0: 0.0, 1: 1.0, 2: -1.0}[verdict]
            if (prompt_id, second, first) in pairs:
                first, second, margin, verdict = second, first, -margin, (0, 2, 1)[verdict]
            votes = pairs.setdefault((prompt_id, first, second), _Votes(example.prompt, first, second))
            votes.counts[verdict] += 1
            votes.margins.append(margin)
    preferences, ties = [], []
    for votes in pairs.values():
        if votes.counts[1] == votes.counts[2]:
            ties.append(_tie(votes))
        else:
            preferences.append(_won(votes))
    return preferences, ties


def _won(votes: _Votes) -> Preference:
    first_won = votes.counts[1] > votes.counts[2]
    chosen, rejected = (votes.first, votes.second) if first_won else (votes.second, votes.first)
    won, tied, lost = (votes.counts[verdict] for verdict in ((1, 0, 2) if first_won else (2, 0, 1)))
    total = won + tied + lost
    margin = sum(votes.margins) / total * (1 if first_won else -1)
    return dataclasses.replace(
        _pair(votes.prompt, chosen, rejected),
        margin=margin,
        weight=(won + tied / 2) / total,
        votes={"for": won, "tie": tied, "against": lost},
    )


def _tie(votes: _Votes) -> Tie:
    sides = [_assistant(votes.first), _assistant(votes.second)]
    return Tie(
        id=make_id("tie", votes.prompt, sides),
        group_id=make_id("prompt", votes.prompt),
        prompt=votes.prompt,
        responses=sides,
        votes={"for": votes.counts[1], "tie": votes.counts[0], "against": votes.counts[2]},
    )
