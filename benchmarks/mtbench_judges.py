"""Do our agreement, win rates and few-votes interval say of MT-bench's real votes what its paper says of them?

    python benchmarks/mtbench_judges.py ../shared/data/mtbench-human

The votes of Zheng et al. 2023 ("Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv:2306.05685): six models,
80 questions of two turns, 3,355 human votes and 2,400 verdicts of GPT-4, which saw both orders. Reproduces table 5
(agreement of GPT-4 with the experts, and of experts with each other, with and without ties) and table 7 (win rates
by category), with the intervals that the paper does not give; then asks how many human votes GPT-4 is worth. Prints
Markdown. A few seconds.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from rlhf.compare.few_votes import FewVotes, combine_votes
from rlhf.compare.judge_agreement import Agreement, agreements
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval, mean_interval

GPT4, EXPERT = "gpt4_pair", "expert"
HUMAN = (EXPERT, "author")  # the authors' own votes are in the data, and not in the paper's tables


@dataclass(frozen=True)
class Vote:
    """A verdict on two models' answers: `value` is 1 where `a` is better, 0 where `b` is, one half a tie."""

    judge: str
    question: int
    category: str
    turn: int
    a: str
    b: str
    value: float

    @property
    def item(self) -> tuple[int, int, str, str]:
        """What was judged."""
        return self.question, self.turn, self.a, self.b


def read_votes(folder: Path) -> list[Vote]:
    """All verdicts, people's and GPT-4's, the two models in the order of their names."""
    categories = {row["question_id"]: row["category"] for row in _rows(folder / "question.jsonl")}
    found = []
    for name in ("human.jsonl", "gpt4_pair.jsonl"):
        for row in _rows(folder / name):
            winner = row.get(row["winner"])  # None for "tie", and for GPT-4's "tie (inconsistent)": orders differ
            a, b = sorted((row["model_a"], row["model_b"]))
            value = 0.5 if winner is None else float(winner == a)
            question = row["question_id"]
            found.append(Vote(row["judge"], question, categories[question], row["turn"], a, b, value))
    return found


def _rows(path: Path) -> Iterable[dict]:
    return map(json.loads, path.read_text().splitlines())


def of_judges(votes: Sequence[Vote], kinds: str | tuple[str, ...], turn: int | None = None) -> list[Vote]:
    """The votes of judges whose names begin so, of one turn or of both."""
    return [vote for vote in votes if vote.judge.startswith(kinds) and turn in (None, vote.turn)]


def couples(first: Sequence[Vote], second: Sequence[Vote] | None) -> list[tuple[Vote, Vote]]:
    """Every vote of the first beside every one of the second on the same item; of the first alone, every two."""
    by_item: dict[tuple[int, int, str, str], list[Vote]] = defaultdict(list)
    for vote in first:
        by_item[vote.item].append(vote)
    if second is None:
        return [couple for votes in by_item.values() for couple in combinations(votes, 2)]
    return [(one, other) for other in second for one in by_item[other.item]]


def agreement(names: tuple[str, str], found: Sequence[tuple[Vote, Vote]]) -> Agreement:
    """How far two kinds of judges agree, by question and by category; S1 is `with_ties`, S2 `without_ties`."""
    one, other = names
    (result,) = agreements(
        {one: [first.value for first, _ in found], other: [second.value for _, second in found]},
        Bootstrap([first.question for first, _ in found]),
        {"category": [first.category for first, _ in found]},
        either_order=True,
    )
    return result


def table_5(votes: Sequence[Vote], turn: int) -> dict[str, Agreement]:
    """The rows of the paper's table 5 that need no scores: GPT-4 with experts, and experts with experts."""
    experts, gpt4 = of_judges(votes, EXPERT, turn), of_judges(votes, GPT4, turn)
    return {
        "GPT-4 and experts": agreement(("GPT-4", "experts"), couples(gpt4, experts)),
        "experts and experts": agreement(("experts", "other experts"), couples(experts, None)),
    }


def win_rates(votes: Sequence[Vote], tie: float) -> dict[str, float]:
    """Each model's average win rate, the best first: the mean over the others of the share of votes it wins.

    Args:
        votes: those that count.
        tie: what a tie counts: 0 in the paper ("the average of win rates against all other players", section
            4.1, ties being votes that are not won), one half in this project.
    """
    won: dict[tuple[str, str], list[float]] = defaultdict(list)
    for vote in votes:
        is_tie = vote.value == 0.5
        won[vote.a, vote.b].append(tie if is_tie else vote.value)
        won[vote.b, vote.a].append(tie if is_tie else 1 - vote.value)
    by_model: dict[str, list[float]] = defaultdict(list)
    for (model, _), values in won.items():
        by_model[model].append(float(np.mean(values)))
    means = {model: float(np.mean(values)) for model, values in by_model.items()}
    return dict(sorted(means.items(), key=lambda found: -found[1]))


@dataclass(frozen=True)
class FewVotesCheck:
    """What GPT-4 does for few human votes on two models, over many random choices of the questions voted on.

    Args:
        a: one model.
        b: the other.
        people: its win rate by all human votes.
        gpt4: by GPT-4.
        held: the share of choices whose combined interval holds `people`'s mean.
        length: the combined interval's mean length, of that of the votes alone.
        worth: how many voted questions more GPT-4 is worth, on average.
    """

    a: str
    b: str
    people: Interval
    gpt4: float
    held: float
    length: float
    worth: float


def few_votes(votes: Sequence[Vote], num_voted: int, num_choices: int) -> list[FewVotesCheck]:
    """For every two models, votes on `num_voted` questions and GPT-4 on all, beside people on all.

    A question's two turns are one row: the mean of its verdicts. Questions that nobody voted on are left out.
    """
    found = []
    for a, b in combinations(sorted({vote.a for vote in votes} | {vote.b for vote in votes}), 2):
        both = [vote for vote in votes if (vote.a, vote.b) == (a, b)]
        people, gpt4 = _by_question(of_judges(both, HUMAN)), _by_question(of_judges(both, GPT4))
        questions = sorted(people)
        judged, voted = np.array([gpt4[q] for q in questions]), np.array([people[q] for q in questions])
        studies = [_study(judged, voted, num_voted, seed) for seed in range(num_choices)]
        everyone = mean_interval(voted, bounds=(0, 1))
        held = [_holds(study.combined, everyone.mean) for study in studies]
        length = sum(_length(study.combined) for study in studies) / sum(_length(study.votes) for study in studies)
        worth = float(np.mean([study.worth for study in studies]))
        found.append(FewVotesCheck(a, b, everyone, float(judged.mean()), float(np.mean(held)), length, worth))
    return found


def _by_question(votes: Sequence[Vote]) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for vote in votes:
        values[vote.question].append(vote.value)
    return {question: float(np.mean(found)) for question, found in values.items()}


def _study(judged: np.ndarray, voted: np.ndarray, num_voted: int, seed: int) -> FewVotes:
    chosen = np.random.default_rng(seed).permutation(len(judged))[:num_voted]
    return combine_votes(judged, chosen.tolist(), voted[chosen], Bootstrap(num_bootstrap=500, seed=seed))


def _holds(interval: Interval, value: float) -> bool:
    return not interval.is_above(value) and not interval.is_below(value)


def _length(interval: Interval) -> float:
    assert interval.low is not None and interval.high is not None
    return interval.high - interval.low


def _percent(interval: Interval | None, digits: int = 0) -> str:
    if interval is None:
        return "none"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.{digits}f}%"
    return f"{100 * interval.mean:.{digits}f}% ({100 * interval.low:.{digits}f} to {100 * interval.high:.{digits}f})"


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds human.jsonl, gpt4_pair.jsonl and question.jsonl")
    parser.add_argument("--voted", type=int, default=30, help="questions with human votes in the few-votes check")
    parser.add_argument("--choices", type=int, default=100, help="random choices of them for every two models")
    arguments = parser.parse_args()
    if not (arguments.folder / "human.jsonl").is_file():
        parser.error(f"{arguments.folder} holds no human.jsonl; give the folder of MT-bench's human judgments")
    votes = read_votes(arguments.folder)

    print("| turn | judges | S1, with ties | n | S2, without | n | kappa |\n|" + " --- |" * 7)
    for turn in (1, 2):
        for name, row in table_5(votes, turn).items():
            kappa = "" if row.kappa is None else f"{row.kappa.mean:.2f} ({row.kappa.low:.2f} to {row.kappa.high:.2f})"
            cells = [turn, name, _percent(row.with_ties), row.num_pairs, _percent(row.without_ties), row.num_decided]
            print(f"| {' | '.join(str(cell) for cell in [*cells, kappa])} |")

    categories = list(dict.fromkeys(vote.category for vote in votes))
    experts = of_judges(votes, EXPERT)
    print(f"\n| win rate | {' | '.join(categories)} | all | ties half | by GPT-4, ties half |\n|{' --- |' * 12}")
    by_category = [win_rates([vote for vote in experts if vote.category == name], 0.0) for name in categories]
    half, by_gpt4 = win_rates(experts, 0.5), win_rates(of_judges(votes, GPT4), 0.5)
    for model, rate in win_rates(experts, 0.0).items():
        rates = [*(found[model] for found in by_category), rate, half[model], by_gpt4[model]]
        print(f"| {model} | {' | '.join(f'{100 * value:.1f}%' for value in rates)} |")

    print(f"\nVotes on {arguments.voted} questions, {arguments.choices} random choices of them:\n")
    print("| models | people, all votes | GPT-4 | interval holds it | its length | GPT-4 is worth |\n|" + " --- |" * 6)
    for row in few_votes(votes, arguments.voted, arguments.choices):
        cells = [f"{row.a} over {row.b}", _percent(row.people), f"{100 * row.gpt4:.0f}%", f"{100 * row.held:.0f}%"]
        print(f"| {' | '.join([*cells, f'{row.length:.2f}', f'{row.worth:.0f} questions'])} |")


if __name__ == "__main__":
    main()
