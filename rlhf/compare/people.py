"""What people said who judged the policies blind, in the labeling app: a judge that scores no text, but has voted."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.answers import Answers
from rlhf.compare.judges import PEOPLE, label
from rlhf.compare.statistics import UNDECIDED, Bootstrap, Pair
from rlhf.errors import UserError
from rlhf.records import Ranking, Task, to_json


@dataclass(frozen=True)
class Votes:
    """The comparisons of a label store and the votes on them.

    Args:
        tasks: the comparisons, by id.
        rankings: the votes: answers of the kind `task`.
        others: how many answers are no votes, by their kind (gold, repeat, left_out, ...).
    """

    tasks: dict[str, Task]
    rankings: list[Ranking]
    others: dict[str, int]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the votes, whatever their order: what a report was made from."""
        return hashlib.sha256("\n".join(sorted(to_json(ranking) for ranking in self.rankings)).encode()).hexdigest()


@dataclass(frozen=True)
class PeoplePair:
    """Two policies before people.

    Args:
        pair: with the judge "people".
        wins: (prompts,), how often the first policy wins its prompt's votes, ties half; NaN without votes.
        num_votes: votes that it rests on.
        num_annotators: people who gave them.
    """

    pair: Pair
    wins: NDArray[np.float64] = field(compare=False)
    num_votes: int
    num_annotators: int


@dataclass(frozen=True)
class People:
    """What people say of the policies.

    Args:
        pairs: by the names of two policies, in their order; those with votes only.
        votes: all that was read.
        num_counted: votes that compare two of the policies.
        num_annotators: people who gave those.
        first_place: 1 where the response shown first won, one half for a tie: of every vote on two responses.
        first_prompts: the task of each of those.
    """

    pairs: dict[tuple[str, str], PeoplePair]
    votes: Votes
    num_counted: int
    num_annotators: int
    first_place: NDArray[np.float64]
    first_prompts: list[str]

    @property
    def num_elsewhere(self) -> int:
        """Votes on responses that this run does not have."""
        return len(self.votes.rankings) - self.num_counted

    @property
    def numbers(self) -> dict[str, Any]:
        """What report.json says of the votes as a whole."""
        return {
            "num_votes": self.num_counted,
            "num_annotators": self.num_annotators,
            "num_elsewhere": self.num_elsewhere,
            "not_votes": self.votes.others,
            "votes_sha256": self.votes.sha256,
        }


@dataclass(frozen=True)
class _Ballot:
    """A vote on two policies: 1 where the first is better, 0 where the second is, one half a tie (both bad is one)."""

    prompt: int
    annotator: str
    value: float


def gather(tasks: Sequence[Task], rankings: Sequence[Ranking]) -> Votes:
    """The votes among all answers to comparisons. Raises UserError where there are none."""
    votes = [ranking for ranking in rankings if ranking.kind == "task"]
    others = Counter(ranking.kind for ranking in rankings if ranking.kind != "task")
    if not votes:
        told = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items()))
        raise UserError(
            f"people: the label store holds no votes on comparisons{f' (only {told})' if told else ''}; "
            "`rlhf label --comparison RUN` asks for some"
        )
    return Votes({task.id: task for task in tasks}, votes, dict(sorted(others.items())))


def ask_people(votes: Votes, answers: Sequence[Answers], bootstrap: Bootstrap) -> People:
    """What the votes say of every two policies.

    A vote is on responses: it counts for the policies that wrote them, which is where id and text are
    the same. The votes on a prompt are averaged first, and prompts are what is resampled.

    Args:
        votes: on any responses.
        answers: each policy's, by prompt.
        bootstrap: how intervals are made; its clusters are those of all prompts.
    """
    places: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)  # of a response: (policy, prompt)
    for policy, answer in enumerate(answers):
        for prompt, row in enumerate(answer.responses):
            for response in row:
                places[response.id, response.text].append((policy, prompt))
    ballots: dict[tuple[int, int], list[_Ballot]] = defaultdict(list)
    counted: list[str] = []  # the annotator of each vote
    for ranking in votes.rankings:
        found = _ballots(ranking, votes.tasks[ranking.task_id], places)
        for policies, ballot in found:
            ballots[policies].append(ballot)
        counted += [ranking.annotator] if found else []
    names = [answer.name for answer in answers]
    num_prompts = len(answers[0].responses) if answers else 0
    pairs = {
        (names[a], names[b]): _pair(names[a], names[b], ballots[a, b], bootstrap, num_prompts)
        for a, b in sorted(ballots)
    }
    first = [(_first_place(ranking), ranking.task_id) for ranking in votes.rankings if len(ranking.shown) == 2]
    return People(
        pairs, votes, len(counted), len(set(counted)), np.array([value for value, _ in first]), [at for _, at in first]
    )


def _first_place(ranking: Ranking) -> float:
    first, second = (ranking.ranks[id] for id in ranking.shown)
    return 0.5 if first == second else float(first < second)


def _ballots(
    ranking: Ranking, task: Task, places: dict[tuple[str, str], list[tuple[int, int]]]
) -> list[tuple[tuple[int, int], _Ballot]]:
    found = []
    for one, other in combinations(task.responses, 2):
        for a, b in product(places.get((one.id, one.text), []), places.get((other.id, other.text), [])):
            if a[0] == b[0] or a[1] != b[1]:
                continue
            better = ranking.ranks[other.id] - ranking.ranks[one.id]  # above 0: `one` is the better
            value = 0.5 if better == 0 else float(better > 0)
            if a[0] > b[0]:
                value = 1 - value
            found.append(((min(a[0], b[0]), max(a[0], b[0])), _Ballot(a[1], ranking.annotator, value)))
    return found


def _pair(a: str, b: str, ballots: list[_Ballot], bootstrap: Bootstrap, num_prompts: int) -> PeoplePair:
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for ballot in ballots:
        by_prompt[ballot.prompt].append(ballot.value)
    prompts = sorted(by_prompt)
    clusters = None if bootstrap.clusters is None else [bootstrap.clusters[prompt] for prompt in prompts]
    wins = np.array([fmean(by_prompt[prompt]) for prompt in prompts])
    ties = fmean(fmean(value == 0.5 for value in by_prompt[prompt]) for prompt in prompts)
    rate = dataclasses.replace(bootstrap, clusters=clusters).interval(wins, (0.0, 1.0))
    annotators = {ballot.annotator for ballot in ballots}
    on_all = np.full(num_prompts, np.nan)
    on_all[prompts] = wins
    return PeoplePair(Pair(a, b, PEOPLE, rate, ties), on_all, len(ballots), len(annotators))


def disagreements_with_people(report: dict[str, Any]) -> list[str]:
    """Where people see two policies differently than another judge: a sentence for each pair and judge."""
    people = {(pair["a"], pair["b"]): pair["verdict"] for pair in report["pairs"] if pair["judge"] == PEOPLE}
    found = []
    for pair in report["pairs"]:
        says = people.get((pair["a"], pair["b"]))
        if says is None or says == pair["verdict"]:
            continue
        judge, verdict = label(pair["judge"]), pair["verdict"]
        favourite = says if verdict == UNDECIDED else verdict
        other = pair["b"] if favourite == pair["a"] else pair["a"]
        if verdict == UNDECIDED:
            found.append(f"People prefer {favourite} to {other}, {judge} cannot tell them apart.")
        elif says == UNDECIDED:
            found.append(f"People cannot tell {favourite} and {other} apart, {judge} prefers {favourite}.")
        else:
            found.append(f"People contradict {judge}: they prefer {other} to {favourite}, it prefers {favourite}.")
    return found


def uncounted_votes(report: dict[str, Any]) -> list[str]:
    """How many votes are not on this run's responses: one sentence, where there are some."""
    people = report.get("people")
    if people is None or not people["num_elsewhere"]:
        return []
    total = people["num_votes"] + people["num_elsewhere"]
    return [
        f"Not counted: {people['num_elsewhere']:,} of {total:,} human votes, on responses that this run does not have."
    ]
