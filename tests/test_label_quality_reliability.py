"""Reliability: what the model recovers where the truth is known, and that its weights bring labels nearer to gold."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_app.quality.reliability import annotator_weights, estimated_accuracy, fit, weighted_side
from labeling_app.quality.votes import FIRST_LOOKS, collect
from rlhf.demo import rubric
from rlhf.demo.annotators import ANNOTATORS, rank
from rlhf.demo.domain import draw_faults, draw_prompts, write_reply
from rlhf.records import Ranking, Response, Task
from tests.test_label_quality_votes import ranked, task

EQUAL = dict.fromkeys((annotator.name for annotator in ANNOTATORS), 1.0)


@cache
def demo_ranked_by_all(seed: int, count: int) -> tuple[list[Task], dict[tuple[str, str], Ranking]]:
    """Tasks of the demo, four replies of mixed faults each, and what each of its annotators says to each."""
    tasks = []
    for prompt in draw_prompts(False, count, Random(seed)):
        responses = []
        for number in range(4):
            draw = Random(f"{seed} {prompt.id} {number}")
            text = write_reply(prompt.meta["product"], prompt.meta["problem"], draw_faults(draw, 0.35, 0.4), draw)
            responses.append(Response(f"{prompt.id}/{number}", prompt.id, text, "run"))
        tasks.append(Task(prompt.id, prompt, responses))
    return tasks, {(one.id, who.name): rank(one, who, seed) for one in tasks for who in ANNOTATORS}


def demo(seed: int, overlap: int, count: int = 100) -> tuple[list[Task], list[Ranking]]:
    """The same, with so many annotators a task, drawn at random."""
    tasks, said = demo_ranked_by_all(seed, count)
    rng = Random(f"{seed}/{overlap}")
    return tasks, [said[one.id, who.name] for one in tasks for who in rng.sample(ANNOTATORS, overlap)]


def gold_scores(tasks: Sequence[Task]) -> dict[str, float]:
    responses = [(task.prompt.messages, response) for task in tasks for response in task.responses]
    scores = rubric.score([prompt for prompt, _ in responses], [response.text for _, response in responses])
    return {response.id: score for (_, response), score in zip(responses, scores, strict=True)}


def closeness(
    tasks: Sequence[Task], rankings: Sequence[Ranking], weights: Mapping[str, float], gold: Mapping[str, float]
) -> tuple[float, float, float]:
    """How near the weighted labels are to the rubric, 1 is all the way.

    First over pairs that the rubric orders: right 1, a tie 0.5, wrong 0. Then over all pairs, where a
    label and the rubric may both say tie: 1 less half the distance on -1, 0, 1. Last the same for soft
    labels, the weighted mean of the sides.
    """
    votes = collect(tasks, rankings)
    ordered, every, soft = [], [], []
    for pair, of_pair in itertools.groupby(range(len(votes.pair)), key=lambda at: votes.pair[at]):
        at = list(of_pair)
        sides = [1 - int(votes.verdict[vote]) for vote in at]
        voters = [weights[votes.annotators[votes.annotator[vote]]] for vote in at]
        first, second = (gold[id] for id in votes.pairs[pair])
        truth = (first > second) - (first < second)
        label = weighted_side(sides, voters)
        if truth:
            ordered.append(1 - abs(label - truth) / 2)
        every.append(1 - abs(label - truth) / 2)
        soft.append(1 - abs(float(np.average(sides, weights=voters)) - truth) / 2)
    return fmean(ordered), fmean(every), fmean(soft)


# The prior, the cap and the lead in reliability.py were chosen on seeds 0 to 9; these are others.
SEEDS = range(100, 110)


# Gains in points of a hundred, a little under what was measured on these seeds (2: 2.8, 2.3, 1.3; 3: 0.3, 1.0, 1.7;
# 5: 0.2, 1.0, 1.7): with more votes the majority alone orders pairs nearly as well as weights do.
@pytest.mark.parametrize(
    ("overlap", "ordered", "every", "soft"), [(2, 1.0, 1.0, 0.8), (3, 0.1, 0.5, 1.0), (5, 0.0, 0.4, 1.0)]
)
def test_weighted_labels_are_nearer_to_gold_than_the_majority(overlap, ordered, every, soft):
    gains = []
    for seed in SEEDS:
        tasks, rankings = demo(seed, overlap)
        gold = gold_scores(tasks)
        weighted = closeness(tasks, rankings, annotator_weights(tasks, rankings), gold)
        majority = closeness(tasks, rankings, EQUAL, gold)
        gains.append([100 * (one - other) for one, other in zip(weighted, majority, strict=True)])
    means = np.mean(gains, axis=0)
    assert (means > [ordered, every, soft]).all(), means
    of_every, of_soft = np.array(gains)[:, 1:].T
    assert (of_soft > 0).all()
    assert (of_every > 0).mean() >= 0.7


def test_the_careless_one_weighs_least():
    for seed, overlap in [(100, 2), (101, 2), (102, 3), (103, 5)]:
        weights = annotator_weights(*demo(seed, overlap))
        assert min(weights, key=weights.__getitem__) == "eli"
        assert weights["eli"] < 0.7
        assert fmean(weights.values()) == pytest.approx(1)


def simulated(seed: int, rights: Mapping[str, float], count: int = 300, ties: float = 0.0) -> tuple[list, list, dict]:
    """Pairs with a fair coin's truth; each annotator is right with their probability where they do not tie."""
    rng = Random(seed)
    tasks = [task(f"t{number}", "a", "b") for number in range(count)]
    truth = {one.id: rng.choice(("ab", "ba")) for one in tasks}
    rankings = []
    for one in tasks:
        for name, right in rights.items():
            told = truth[one.id] if rng.random() < right else truth[one.id][::-1]
            rankings.append(ranked(one.id, name, {"a": 1, "b": 1} if rng.random() < ties else told))
    return tasks, rankings, truth


def test_the_models_own_data_gives_back_its_log_odds():
    rights = {"ann": 0.9, "bob": 0.8, "cho": 0.7, "dee": 0.6, "eve": 0.5}
    tasks, rankings, _ = simulated(0, rights, count=3000)
    expected = np.log([right / (1 - right) for right in rights.values()])
    found = annotator_weights(tasks, rankings)
    assert list(found) == list(rights)
    assert list(found.values()) == pytest.approx(expected / expected.mean(), abs=0.12)


def test_posteriors_are_calibrated():
    tasks, rankings, truth = simulated(1, {"ann": 0.85, "bob": 0.75, "cho": 0.65, "dee": 0.6}, count=2000, ties=0.2)
    found = fit(collect(tasks, rankings))
    assert found.posterior.sum(1) == pytest.approx(1)
    is_first = np.array([truth[id] == "ab" for id in found.votes.task_ids])
    believed = found.posterior[:, 0] / (found.posterior[:, 0] + found.posterior[:, 2])
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        at = (believed >= low) & (believed < low + 0.2)
        assert is_first[at].mean() == pytest.approx(believed[at].mean(), abs=0.08)


def test_what_the_model_thinks_of_an_annotator_is_about_right():
    rights = {"ann": 0.9, "bob": 0.8, "cho": 0.7, "dee": 0.6}
    tasks, rankings, _ = simulated(2, rights, count=1000)
    found = fit(collect(tasks, rankings))
    for name, right in rights.items():
        figure = estimated_accuracy(found, name)
        assert figure.value == pytest.approx(right, abs=0.05)
        assert figure.n == 1000
        assert figure.value is not None and figure.low is not None and figure.high is not None
        assert figure.low < figure.value < figure.high
    assert estimated_accuracy(found, "nobody").reason == "shares no task with anyone"


def test_equal_annotators_have_a_weight_of_one():
    tasks = [task(f"t{number}") for number in range(10)]
    agreeing = [ranked(one.id, name, "abc") for one in tasks for name in ("ann", "bob", "cho")]
    assert annotator_weights(tasks, agreeing) == {"ann": 1.0, "bob": 1.0, "cho": 1.0}
    assert annotator_weights(tasks, agreeing[:-10]) == pytest.approx({"ann": 1.0, "bob": 1.0, "cho": 1.0}, abs=1e-6)


def test_who_shares_nothing_counts_as_an_average_one():
    tasks, rankings, _ = simulated(3, {"ann": 0.95, "bob": 0.9, "cho": 0.6})
    alone = task("alone", "a", "b")
    weights = annotator_weights([*tasks, alone], [*rankings, ranked("alone", "new", "ab")])
    assert weights["new"] == pytest.approx(1.0)
    assert weights["cho"] < 0.6
    assert fit(collect([*tasks, alone], [*rankings, ranked("alone", "new", "ab")])).num_shared["new"] == 0


def test_without_overlap_everyone_has_a_weight_of_one():
    tasks = [task("t1"), task("t2")]
    rankings = [ranked("t1", "ann", "abc"), ranked("t2", "bob", "cba"), ranked("t1", "cho", "cba", kind="practice")]
    assert annotator_weights(tasks, rankings) == {"ann": 1.0, "bob": 1.0, "cho": 1.0}
    assert annotator_weights(tasks, []) == {}
    assert annotator_weights([], rankings) == {"ann": 1.0, "bob": 1.0, "cho": 1.0}


def test_one_who_answers_against_all_others_has_no_vote_and_no_negative_one():
    tasks, rankings, _ = simulated(4, {"ann": 0.9, "bob": 0.9, "cho": 0.9, "con": 0.1})
    weights = annotator_weights(tasks, rankings)
    assert weights["con"] == 0.0
    assert sum(weights.values()) == pytest.approx(4)


def test_two_who_only_disagree_are_equal():
    tasks = [task(f"t{number}", "a", "b") for number in range(20)]
    rankings = [ranked(one.id, name, verdict) for one in tasks for name, verdict in [("ann", "ab"), ("bob", "ba")]]
    assert annotator_weights(tasks, rankings) == pytest.approx({"ann": 1.0, "bob": 1.0})


def test_known_answers_tell_two_apart():
    tasks, rankings, truth = simulated(5, {"ann": 0.95, "bob": 0.6})
    golds = {id: {f"{id}-{order[0]}": 1, f"{id}-{order[1]}": 2} for id, order in truth.items()}
    rankings = [dataclasses.replace(row, kind="gold") for row in rankings]
    blind, seeing = annotator_weights(tasks, rankings), annotator_weights(tasks, rankings, golds)
    assert blind == pytest.approx({"ann": 1.0, "bob": 1.0}, abs=0.01)
    expected = np.log([0.95 / 0.05, 0.6 / 0.4])
    assert list(seeing.values()) == pytest.approx(expected / expected.mean(), abs=0.2)
    found = fit(collect(tasks, rankings, FIRST_LOOKS), golds)
    assert found.posterior.tolist() == [
        [float(truth[id] == "ab"), 0.0, float(truth[id] == "ba")] for id in found.votes.task_ids
    ]


def test_ties_cost_nobody_their_weight():
    # The same rate of right where they decide; one of them decides half as often.
    rng = Random(6)
    tasks, rankings, _ = simulated(6, {"ann": 0.85, "bob": 0.85, "cho": 0.85}, count=1500)
    tie = {"a": 1, "b": 1}
    rankings = [ranked(r.task_id, "cho", tie) if r.annotator == "cho" and rng.random() < 0.5 else r for r in rankings]
    assert list(annotator_weights(tasks, rankings).values()) == pytest.approx([1, 1, 1], abs=0.15)


def test_what_must_not_matter_to_the_weights():
    tasks, rankings = demo(7, 3, count=40)
    weights = annotator_weights(tasks, rankings)
    rng = Random(7)
    assert annotator_weights(rng.sample(tasks, len(tasks)), rng.sample(rankings, len(rankings))) == weights
    turned = [dataclasses.replace(one, responses=one.responses[::-1]) for one in tasks]
    assert annotator_weights(turned, rankings) == pytest.approx(weights, abs=1e-6)
    names = {"ada": "zoe", "ben": "yan", "cleo": "xi", "dev": "wes", "eli": "vic"}
    renamed = [dataclasses.replace(row, annotator=names[row.annotator]) for row in rankings]
    assert annotator_weights(tasks, renamed) == pytest.approx({names[n]: w for n, w in weights.items()}, abs=1e-6)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=9), st.floats(0.1, 10))
def test_with_equal_weights_it_is_the_majority(sides, weight):
    lead = sum(sides)
    assert weighted_side(sides, [weight] * len(sides)) == (lead > 0) - (lead < 0)


def test_who_settles_a_pair():
    assert weighted_side([1, -1], [1.5, 0.4]) == 1  # leads by 1.1, half a vote is 0.475
    assert weighted_side([1, -1], [1.4, 1.1]) == 0  # leads by 0.3, half a vote is 0.625
    assert weighted_side([-1, 0], [0.3, 1.7]) == 0  # a weak voter does not outvote a strong one's tie
    assert weighted_side([-1], [0.3]) == -1
    assert weighted_side([1, -1], [0.0, 0.0]) == 0
    assert weighted_side([1], [0.0]) == 0
