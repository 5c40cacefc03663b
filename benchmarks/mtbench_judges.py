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

from rlhf.compare.few_votes import combine_votes
from rlhf.compare.judge_agreement import Agreement, agreements
from rlhf.compare.statistics import Bootstrap
from rlhf.intervals import Interval

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
    """What GPT-4 does for few human votes on one model, over many random choices of the comparisons voted on.

    Args:
        model: its win rate against the other five is asked for.
        num_comparisons: of it with another, by question and turn, that people and GPT-4 judged.
        people: its win rate by all human votes, ties half.
        gpt4: by GPT-4.
        combined: the mean of the combined rates.
        held: the share of choices whose combined interval holds `people`.
        length: the combined intervals' length, of that of the votes alone.
        worth: how many voted comparisons more GPT-4 is worth, on average.
    """

    model: str
    num_comparisons: int
    people: float
    gpt4: float
    combined: float
    held: float
    length: float
    worth: float


def few_votes(votes: Sequence[Vote], num_voted: int, num_choices: int) -> list[FewVotesCheck]:
    """For every model, human votes on `num_voted` comparisons and GPT-4 on all, beside people on all."""
    people, gpt4 = _by_item(of_judges(votes, HUMAN)), _by_item(of_judges(votes, GPT4))
    found = []
    for model in sorted({name for vote in votes for name in (vote.a, vote.b)}):
        items = sorted(item for item in people.keys() & gpt4.keys() if model in item[2:])
        is_a = np.array([item[2] == model for item in items])
        voted, judged = (np.array([verdicts[item] for item in items]) for verdicts in (people, gpt4))
        voted, judged = np.where(is_a, voted, 1 - voted), np.where(is_a, judged, 1 - judged)
        studies = []
        for seed in range(num_choices):
            chosen = np.random.default_rng(seed).permutation(len(items))[:num_voted]
            bootstrap = Bootstrap([item[0] for item in items], num_bootstrap=500, seed=seed)
            studies.append(combine_votes(judged, chosen.tolist(), voted[chosen], bootstrap))
        everyone = float(voted.mean())
        found.append(
            FewVotesCheck(
                model,
                len(items),
                everyone,
                float(judged.mean()),
                combined=float(np.mean([study.combined.mean for study in studies])),
                held=float(np.mean([_holds(study.combined, everyone) for study in studies])),
                length=sum(_length(study.combined) for study in studies)
                / sum(_length(study.votes) for study in studies),
                worth=float(np.mean([study.worth for study in studies])),
            )
        )
    return found


def _by_item(votes: Sequence[Vote]) -> dict[tuple[int, int, str, str], float]:
    values: dict[tuple[int, int, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        values[vote.item].append(vote.value)
    return {item: float(np.mean(found)) for item, found in values.items()}


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
    parser.add_argument("--voted", type=int, default=60, help="comparisons with human votes in the few-votes check")
    parser.add_argument("--choices", type=int, default=100, help="random choices of them for every model")
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

    print(f"\nHuman votes on {arguments.voted} comparisons and GPT-4 on all, {arguments.choices} random choices:\n")
    head = [
        "model",
        "of",
        "people, all votes",
        "GPT-4",
        "combined",
        "interval holds it",
        "its length",
        "GPT-4 is worth",
    ]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in few_votes(votes, arguments.voted, arguments.choices):
        shares = [f"{100 * value:.1f}%" for value in (row.people, row.gpt4, row.combined, row.held)]
        cells = [row.model, str(row.num_comparisons), *shares, f"{row.length:.2f}", f"{row.worth:.0f} comparisons"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
