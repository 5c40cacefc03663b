"""Agreement on real votes: MT-Bench's published figures, CrowS-Pairs by three other implementations.

The data is read from ../shared/data, where a machine has it (its README says what it is and whose).
"""

import ast
import csv
import itertools
import json
from collections import Counter
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labeling_app.quality.agreement import krippendorff_alpha, pairwise_kappa, percent_agreement, verdict_alpha
from labeling_app.quality.report import quality_report
from labeling_app.quality.votes import collect
from rlhf.records import Prompt, Ranking, Response, Task

DATA = Path(__file__).parents[2] / "shared" / "data"
MTBENCH, CROWS = DATA / "mtbench-human", DATA / "crows-pairs" / "crows_pairs_anonymized.csv"

needs_mtbench = pytest.mark.skipif(not MTBENCH.is_dir(), reason=f"{MTBENCH} is not on this machine")
needs_crows = pytest.mark.skipif(not CROWS.is_file(), reason=f"{CROWS} is not on this machine")


def mtbench(turn: int, judges: tuple[str, ...]) -> tuple[list[Task], list[Ranking]]:
    """A task for each question and two models; the votes of judges whose names begin so, and GPT-4's."""
    tasks: dict[str, Task] = {}
    rankings: dict[tuple[str, str], Ranking] = {}
    for name in ("human.jsonl", "gpt4_pair.jsonl"):
        for line in (MTBENCH / name).read_text().splitlines():
            row = json.loads(line)
            if row["turn"] != turn or not row["judge"].startswith(judges):
                continue
            models = sorted((row["model_a"], row["model_b"]))
            id = f"{row['question_id']}/{models[0]}/{models[1]}"
            replies = {model: Response(f"{id}:{model}", id, model, model) for model in models}
            tasks[id] = Task(id, Prompt(id, []), list(replies.values()))
            winner = row.get(row["winner"])  # None: "tie", and GPT-4's "tie (inconsistent)"
            ranks = {replies[model].id: 1 if winner in (model, None) else 2 for model in models}
            rankings[id, row["judge"]] = Ranking(id, row["judge"], ranks)
    return list(tasks.values()), list(rankings.values())


# Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", table 5, rows G4-Pair and Human against
# Human: agreement in percent and number of votes, with ties (setup S1) and without (S2).
PUBLISHED = {
    (1, False): {"gpt4": (66, 1343), "human": (63, 721)},
    (1, True): {"gpt4": (85, 859), "human": (81, 479)},
    (2, False): {"gpt4": (66, 1325), "human": (67, 707)},
    (2, True): {"gpt4": (85, 864), "human": (82, 474)},
}


@needs_mtbench
@pytest.mark.parametrize(("turn", "decided"), PUBLISHED)
def test_mtbench_agreement_is_the_published(turn: int, decided: bool) -> None:
    published = PUBLISHED[turn, decided]
    figure = percent_agreement(collect(*mtbench(turn, ("expert",))), decided)
    assert figure.value is not None
    assert (round(100 * figure.value), figure.n) == published["human"]
    with_gpt4 = collect(*mtbench(turn, ("expert", "gpt4_pair")))
    figure = percent_agreement(with_gpt4, decided, "gpt4_pair")
    assert figure.value is not None
    assert (round(100 * figure.value), figure.n) == published["gpt4"]


@needs_mtbench
@pytest.mark.parametrize("distance", ["nominal", "ordinal"])
def test_mtbench_alpha_is_evalicas(distance: str) -> None:
    import evalica

    votes = collect(*mtbench(1, ("expert", "author")))
    table = np.full((len(votes.annotators), 2 * len(votes.pairs)), np.nan)
    table[votes.annotator, votes.pair] = votes.verdict
    one_way = pd.DataFrame(table[:, : len(votes.pairs)])
    table[votes.annotator, votes.pair + len(votes.pairs)] = 2 - votes.verdict
    figure = verdict_alpha(votes, distance)
    expected = evalica.alpha(pd.DataFrame(table), distance).alpha  # type: ignore[arg-type]
    assert figure.value == pytest.approx(expected, abs=1e-12)
    figure = krippendorff_alpha(votes.pair, votes.verdict, votes.pair_task, distance)
    expected = evalica.alpha(one_way, distance).alpha  # type: ignore[arg-type]
    assert figure.value == pytest.approx(expected, abs=1e-12)


@needs_mtbench
def test_mtbench_alphas_interval_is_the_jackknifes() -> None:
    # Leaving out one task at a time tells the standard error without resampling; 484 tasks are nearly normal.
    votes = collect(*mtbench(1, ("expert", "author")))
    counts = np.zeros((len(votes.pairs), 3))
    np.add.at(counts, (votes.pair, votes.verdict), 1)
    counts = counts[counts.sum(1) > 1]
    rated = counts.sum(1)
    observed = (counts * (rated[:, None] - counts)).sum(1) / (rated - 1)
    n, totals = rated.sum() - rated, counts.sum(0) - counts
    alphas = 1 - (observed.sum() - observed) * (n - 1) / (n**2 - (totals**2).sum(1))
    error = np.sqrt(((alphas - alphas.mean()) ** 2).sum() * (len(alphas) - 1) / len(alphas))
    figure = krippendorff_alpha(votes.pair, votes.verdict, votes.pair_task)
    assert figure.n == len(alphas) == 484
    assert figure.low is not None and figure.high is not None
    assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


@needs_mtbench
def test_mtbench_kappas_are_statsmodels() -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    tasks, rankings = mtbench(2, ("expert", "author", "gpt4_pair"))
    found = pairwise_kappa(collect(tasks, rankings))
    verdicts: dict[str, dict[str, int]] = {}
    for row in rankings:
        first, second = (row.ranks[id] for id in sorted(row.ranks))
        verdicts.setdefault(row.annotator, {})[row.task_id] = (first > second) - (first < second)
    checked = 0
    for one, other in itertools.combinations(sorted(verdicts), 2):
        table = np.zeros((3, 3))
        for task in verdicts[one].keys() & verdicts[other].keys():
            table[verdicts[one][task] + 1, verdicts[other][task] + 1] += 1
            table[1 - verdicts[one][task], 1 - verdicts[other][task]] += 1
        assert ((one, other) in found) == bool(table.sum())
        if table.sum() > table[1, 1]:
            assert found[one, other].n == table.sum() / 2
            assert found[one, other].value == pytest.approx(cohens_kappa(table, return_results=False), abs=1e-9)
            checked += 1
    assert checked > 500


@needs_mtbench
def test_a_report_on_mtbench() -> None:
    tasks, rankings = mtbench(1, ("expert", "author"))
    report = quality_report(tasks, rankings)
    json.dumps(report, allow_nan=False)
    alpha = report["agreement"]["alpha_nominal"]
    assert 0.3 < alpha["low"] < alpha["value"] < alpha["high"] < 0.6
    assert report["agreement"]["kendall_w"]["reason"] == "no task has more than two responses"
    assert report["position"]["reason"] == "no answer has its order on screen recorded"
    named = {name for couple in report["agreement"]["kappa"] for name in couple["annotators"]}
    assert named <= set(report["annotators"]) == {row.annotator for row in rankings}


def crows() -> list[list[tuple[str, str | None]]]:
    """Of each pair, (annotator, bias type) five times; None where they saw no bias."""
    with CROWS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        types = [types[0] if types else None for types in ast.literal_eval(row["annotations"])]
        found.append(list(zip(ast.literal_eval(row["anon_annotators"]), types, strict=True)))
    return found


@needs_crows
def test_crows_pairs_alpha_by_definition_by_evalica_and_by_fleiss() -> None:
    import evalica
    from statsmodels.stats.inter_rater import fleiss_kappa

    rows = crows()
    codes = {type: code for code, type in enumerate(sorted({type for row in rows for _, type in row if type}))}
    assert len(codes) == 9
    values = [[codes[type] for _, type in row if type] for row in rows]
    figure = krippendorff_alpha(
        np.array([unit for unit, row in enumerate(values) for _ in row]),
        np.array([value for row in values for value in row]),
        np.arange(len(values)),
    )
    # The definition, for nominal values: 1 less observed over expected disagreement, from counts.
    rated = [Counter(row) for row in values if len(row) > 1]
    total = sum(rated, Counter())
    n = sum(total.values())
    observed = sum((comb(m := sum(c.values()), 2) - sum(comb(k, 2) for k in c.values())) * 2 / (m - 1) for c in rated)
    expected = n**2 - sum(k**2 for k in total.values())
    assert figure.value == pytest.approx(1 - observed * (n - 1) / expected, abs=1e-12)
    assert figure.n == len(rated)

    annotators = sorted({name for row in rows for name, _ in row})
    assert len(annotators) == 287
    table = pd.DataFrame(np.nan, annotators, range(len(rows)))
    for unit, row in enumerate(rows):
        for name, type in row:
            if type:
                table.loc[name, unit] = codes[type]
    assert figure.value == pytest.approx(evalica.alpha(table, "nominal").alpha, abs=1e-12)

    # Fleiss' kappa wants as many values of every unit: take those with all five. 1 - alpha = (1 - kappa) (n - 1) / n.
    full = [row for row in values if len(row) == 5]
    kappa = fleiss_kappa(np.array([[row.count(code) for code in codes.values()] for row in full]))
    figure = krippendorff_alpha(
        np.repeat(np.arange(len(full)), 5), np.array(full).ravel(), np.arange(len(full)), seed=1
    )
    assert figure.value == pytest.approx(1 - (1 - kappa) * (5 * len(full) - 1) / (5 * len(full)), abs=1e-12)


@needs_crows
def test_crows_pairs_annotators_as_rankings() -> None:
    """Whether a pair is about race, told as a preference: 287 annotators with their ids, most of whom share little."""
    from statsmodels.stats.inter_rater import cohens_kappa

    tasks, rankings = [], []
    verdicts: dict[str, dict[int, int]] = {}
    for number, row in enumerate(crows()):
        prompt = Prompt(str(number), [])
        tasks.append(Task(str(number), prompt, [Response(f"{number}{text}", str(number), text, "") for text in "ab"]))
        for name, type in row:
            if type:
                is_race = int(type == "race-color")
                verdicts.setdefault(name, {})[number] = is_race
                ranks = {f"{number}a": 1 if is_race else 2, f"{number}b": 2 if is_race else 1}
                rankings.append(Ranking(str(number), name, ranks))
    votes = collect(tasks, rankings)
    same = total = 0
    found = pairwise_kappa(votes)
    for one, other in itertools.combinations(sorted(verdicts), 2):
        shared = verdicts[one].keys() & verdicts[other].keys()
        assert ((one, other) in found) == bool(shared)
        if not shared:
            continue
        table = np.zeros((2, 2))
        for number in shared:
            a, b = verdicts[one][number], verdicts[other][number]
            table[a, b] += 1
            table[1 - a, 1 - b] += 1
        same, total = same + table.trace() / 2, total + len(shared)
        assert found[one, other].n == len(shared)
        assert found[one, other].value == pytest.approx(cohens_kappa(table, return_results=False), abs=1e-9)
    assert len(found) > 1000
    figure = percent_agreement(votes)
    assert (figure.value, figure.n) == (pytest.approx(same / total), total)
