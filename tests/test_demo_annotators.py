"""Simulated annotators: the rubric's order without noise, and each bias on its own."""

import dataclasses
from random import Random
from statistics import fmean

import pytest

from rlhf.demo.annotators import ANNOTATORS, Annotator, rank
from rlhf.demo.domain import FAULTS, prompt_of, write_reply
from rlhf.demo.rubric import score
from rlhf.records import Prompt, Response, Task

PROMPT = prompt_of("kettle", "noise", 0)
GOOD = "i am sorry. for the kettle, please tighten the screws on the back. just ask if you have more questions."
RUDE = GOOD.replace("i am sorry.", "i am sorry, that was stupid.")  # 0.8
PASSWORD = GOOD + " what is your password?"  # 0.7
NO_FIX = GOOD.replace("tighten the screws on the back", "wait")  # 0.6


def task(*texts: str, id: str = "t", prompt: Prompt = PROMPT) -> Task:
    return Task(id, prompt, [Response(f"r{n}", prompt.id, text, "run") for n, text in enumerate(texts)])


EXACT = Annotator("exact", tie_threshold=0.0)


def ranks(of: Task, annotator: Annotator, seed: int = 0) -> list[int]:
    ranking = rank(of, annotator, seed)
    return [ranking.ranks[response.id] for response in of.responses]


def named(name: str, **changes: float) -> Annotator:
    (found,) = [annotator for annotator in ANNOTATORS if annotator.name == name]
    return dataclasses.replace(found, **changes)


def mixed_tasks(count: int) -> list[Task]:
    tasks = []
    for number in range(count):
        rng = Random(number)
        texts = [write_reply("kettle", "noise", faults, rng) for faults in [(), *[(f,) for f in rng.sample(FAULTS, 3)]]]
        tasks.append(task(*texts, id=f"t{number}"))
    return tasks


def agreement_with_rubric(annotator: Annotator, tasks: list[Task]) -> float:
    """Share of pairs of unequal scores in the rubric's order, ties half."""
    right = []
    for one in tasks:
        gold = score([PROMPT.messages] * 4, [response.text for response in one.responses])
        given = ranks(one, annotator)
        for i in range(4):
            for j in range(4):
                if gold[i] > gold[j]:
                    right.append(1.0 if given[i] < given[j] else 0.5 if given[i] == given[j] else 0.0)
    return fmean(right)


def test_without_noise_and_bias_the_order_is_the_rubrics():
    assert ranks(task(PASSWORD, GOOD, NO_FIX, RUDE), EXACT) == [3, 1, 4, 2]
    assert agreement_with_rubric(EXACT, mixed_tasks(40)) == 1.0


def test_equal_scores_and_equal_texts_are_ties_and_ranks_are_dense():
    other = GOOD.replace("i am sorry.", "thank you.")
    assert ranks(task(GOOD, other, PASSWORD), EXACT) == [1, 1, 2]
    for annotator in ANNOTATORS:
        for number in range(30):
            first, _, third = ranks(task(PASSWORD, GOOD, PASSWORD, id=f"t{number}"), annotator)
            assert first == third


def test_the_threshold_counts_from_the_best_of_a_tie():
    # 1.0, 0.8, 0.7, 0.6: with 0.25 the first two tie, and 0.7 starts the next group.
    loose = Annotator("loose", tie_threshold=0.25)
    assert ranks(task(GOOD, RUDE, PASSWORD, NO_FIX), loose) == [1, 1, 2, 2]


def test_the_order_of_calls_does_not_matter_and_the_seed_does():
    tasks = mixed_tasks(10)
    forward = [rank(one, annotator, 3) for one in tasks for annotator in ANNOTATORS]
    backward = [rank(one, annotator, 3) for one in reversed(tasks) for annotator in reversed(ANNOTATORS)]
    assert forward == backward[::-1]
    assert forward != [rank(one, annotator, 4) for one in tasks for annotator in ANNOTATORS]


def test_a_ranking_is_whole_and_has_its_order_on_screen():
    orders = set()
    for one in mixed_tasks(40):
        ranking = rank(one, ANNOTATORS[0], 0)
        assert sorted(ranking.shown) == sorted(ranking.ranks) == ["r0", "r1", "r2", "r3"]
        assert min(ranking.ranks.values()) == 1
        assert (ranking.task_id, ranking.annotator, ranking.at) == (one.id, "ada", None)
        assert ranking.seconds is not None and ranking.seconds > 2
        orders.add(tuple(ranking.shown))
    assert len(orders) > 10


def test_the_careless_one_is_worse_than_the_rest_and_faster():
    tasks = mixed_tasks(150)
    # Without ties: what is left is noise and bias.
    decided = [dataclasses.replace(annotator, tie_threshold=0.0) for annotator in ANNOTATORS]
    agreement = {annotator.name: agreement_with_rubric(annotator, tasks) for annotator in decided}
    assert agreement["ada"] == max(agreement.values())
    assert agreement["ada"] > 0.9
    # A share of 0.4 at random costs about 0.4 * (0.9 - 0.5) = 0.16.
    assert agreement["eli"] < min(value for name, value in agreement.items() if name != "eli") - 0.03
    seconds = {a.name: fmean(rank(one, a, 0).seconds or 0 for one in tasks) for a in ANNOTATORS}
    assert seconds["eli"] == min(seconds.values())


def test_the_position_bias_shows():
    # Two replies of the same score: one shown first should win half the time.
    other = GOOD.replace("i am sorry.", "thank you.")

    def share_first(annotator: Annotator) -> float:
        values = []
        for number in range(300):
            ranking = rank(task(GOOD, other, id=f"t{number}"), annotator, 0)
            first, second = (ranking.ranks[id] for id in ranking.shown)
            values.append(1.0 if first < second else 0.5 if first == second else 0.0)
        return fmean(values)

    # The difference of two Gumbel draws is logistic: 1 / (1 + exp(-0.15 / 0.05)) = 0.953.
    assert share_first(named("dev", tie_threshold=0.0)) == pytest.approx(0.953, abs=0.04)
    assert share_first(named("dev", tie_threshold=0.0, position_bias=0.0)) == pytest.approx(0.5, abs=0.08)


def test_the_noise_is_gumbels():
    # RUDE is 0.2 under GOOD: with scale 0.1 GOOD wins with 1 / (1 + exp(-0.2 / 0.1)) = 0.881.
    noisy = Annotator("noisy", noise=0.1, tie_threshold=0.0)
    wins = [ranks(task(GOOD, RUDE, id=f"t{number}"), noisy) == [1, 2] for number in range(1000)]
    assert fmean(wins) == pytest.approx(0.881, abs=0.035)


def test_one_likes_long_replies():
    # 28 words of filler: 0.05 * 2.8 = 0.14 more, and the rubric's 0.15 for rambling less.
    much = GOOD + " our shop has been here very long. many people are happy with us." * 2
    exact = Annotator("exact", length_bias=0.05, tie_threshold=0.0)
    assert ranks(task(GOOD, much), EXACT) == [1, 2]
    assert ranks(task(GOOD, much), dataclasses.replace(exact, length_bias=0.2)) == [2, 1]
    assert named("ben").length_bias > 0


def test_one_forgives_rudeness_and_is_strict_on_passwords():
    cleo = named("cleo", noise=0.0)
    assert ranks(task(RUDE, GOOD, PASSWORD, NO_FIX), cleo) == [1, 1, 3, 2]  # 1.0, 1.0, 0.4, 0.6


def test_prompts_without_columns_are_read():
    bare = dataclasses.replace(PROMPT, meta={})
    assert ranks(task(NO_FIX, GOOD, prompt=bare), EXACT) == [2, 1]
