"""Which tasks are chosen: by hand, and that the probability written down is the true one."""

import dataclasses
import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_app import selection
from labeling_app.selection import choose, worth_asking
from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.records import Prompt, Response, Task, read_jsonl, write_jsonl


def task(id: str, *texts: str, **meta: Any) -> Task:
    responses = [Response(f"{id}-{n}", id, text, "run") for n, text in enumerate(texts)]
    return Task(id, Prompt(id, [{"role": "user", "content": id}], meta), responses)


def table(**scores: float):
    """A reward function that looks its scores up by text."""
    return lambda prompts, responses, **_: [scores[text] for text in responses]


# --- probabilities -----------------------------------------------------------------------------


def exact(worth: list[float], num: int, num_random: int) -> list[Fraction]:
    """By counting: every uniform draw, and every order of equal worths, is as likely as another."""
    total = len(worth)
    counts = [Fraction(0)] * total
    orders = [order for order in itertools.permutations(range(total)) if _falls(worth, order)]
    draws = list(itertools.combinations(range(total), num_random))
    for draw in draws:
        for order in orders:
            best = [index for index in order if index not in draw][: num - num_random]
            for index in {*draw, *best}:
                counts[index] += Fraction(1, len(draws) * len(orders))
    return counts


def _falls(worth: list[float], order: tuple[int, ...]) -> bool:
    return all(worth[one] >= worth[other] for one, other in itertools.pairwise(order))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_the_probability_is_that_of_counting_all_draws(worth, data):
    num = data.draw(st.integers(1, len(worth)))
    share = data.draw(st.sampled_from([0.1, 0.3, 0.5, 1.0]))
    truth = exact([float(w) for w in worth], num, math.ceil(share * num))
    choices = choose([float(w) for w in worth], num, share, data.draw(st.integers(0, 99)))
    assert len({choice.index for choice in choices}) == len(choices) == num
    assert sum(choice.is_random for choice in choices) == math.ceil(share * num)
    for choice in choices:
        assert choice.probability == pytest.approx(float(truth[choice.index]))
    # Everything can be chosen, and `num` are: their probabilities sum to it.
    assert min(truth) > 0
    assert sum(truth) == num


def test_by_hand():
    # Of four, one uniformly and one by worth: the best is in unless... it always is; the second is in where the
    # draw took the best (1/4) or itself (1/4).
    found: dict[int, float] = {}
    for seed in range(40):
        found |= {choice.index: choice.probability for choice in choose([9.0, 8.0, 7.0, 6.0], 2, 0.5, seed)}
    assert found == {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.25}


def test_weighing_by_probability_is_unbiased_over_many_draws():
    """Horvitz and Thompson's total of what tasks hold, where it goes with their worth, and how often each is in."""
    rng = random.Random(5)
    worth = [float(rng.randint(0, 12)) for _ in range(30)]
    holds = [w + rng.random() for w in worth]
    num_draws, num = 6000, 10
    often: Counter[int] = Counter()
    totals = []
    probability: dict[int, float] = {}
    for seed in range(num_draws):
        choices = choose(worth, num, 0.2, seed)
        often.update(choice.index for choice in choices)
        probability |= {choice.index: choice.probability for choice in choices}
        totals.append(sum(holds[choice.index] / choice.probability for choice in choices))
    mean = sum(totals) / num_draws
    error = math.sqrt(sum((t - mean) ** 2 for t in totals)) / num_draws
    assert abs(mean - sum(holds)) < 4 * error
    assert sum(holds[i] for i in often) == pytest.approx(sum(holds))  # every task was chosen at some time
    for index, p in probability.items():
        assert abs(often[index] / num_draws - p) <= 4.5 * math.sqrt(p * (1 - p) / num_draws)
    # Unweighted, the chosen would have told another story.
    plain = [sum(holds[c.index] for c in choose(worth, num, 0.2, seed)) / num for seed in range(50)]
    assert sum(plain) / 50 > 1.3 * sum(holds) / 30


def test_the_same_seed_chooses_the_same():
    worth = [float(n % 7) for n in range(50)]
    assert choose(worth, 10, 0.2, 1) == choose(worth, 10, 0.2, 1) != choose(worth, 10, 0.2, 2)


def test_the_order_is_random():
    """The place of the random ones is: half of them in the first half, over many draws (binomial, 4.5 sd)."""
    first = 0
    for seed in range(400):
        first += sum(choice.is_random for choice in choose([float(n) for n in range(40)], 20, 0.5, seed)[:10])
    assert abs(first - 2000) < 4.5 * math.sqrt(4000 * 0.25)


# --- what a task is worth ----------------------------------------------------------------------


def test_gaps_are_between_the_best_two():
    tasks = [task("t", "a", "b", "c"), task("u", "d", "e")]
    # Centred: t 4, -2, -2 and u 1, -1; the mean square is (16 + 4 + 4 + 1 + 1) / 5.
    scale = math.sqrt(26 / 5)
    scorer = table(a=7, b=1, c=1, d=10, e=8)
    assert worth_asking(tasks, {"one": scorer}, "large_gap") == pytest.approx([6 / scale, 2 / scale])
    assert worth_asking(tasks, {"one": scorer}, "small_gap") == pytest.approx([-6 / scale, -2 / scale])


def test_gaps_of_several_models_are_those_of_their_mean():
    tasks = [task("t", "a", "b"), task("u", "c", "d")]
    # Both agree on u (gap 2 in units of 1) and cancel out on t.
    one, other = table(a=1, b=-1, c=1, d=-1), table(a=-10, b=10, c=10, d=-10)
    assert worth_asking(tasks, {"one": one, "other": other}, "large_gap") == pytest.approx([0, 2])


def test_variance_is_that_of_standardised_scores():
    tasks = [task("t", "a", "b"), task("u", "c", "d")]
    one, other = table(a=1, b=-1, c=1, d=-1), table(a=-10, b=10, c=10, d=-10)
    # On t each response has 1 and -1: variance 1. On u they agree.
    assert worth_asking(tasks, {"one": one, "other": other}, "variance") == pytest.approx([1, 0])


@given(
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    st.floats(0.1, 100),
    st.lists(st.floats(-50, 50), min_size=3, max_size=3),
    st.sampled_from(["variance", "small_gap", "large_gap"]),
)
def test_units_and_offsets_of_a_model_do_not_matter(scores, unit, offsets, by):
    """Nor does what it adds to all responses of one prompt: a reward model is trained on differences alone."""
    names = "abcdef"
    if max(abs(scores[2 * n] - scores[2 * n + 1]) for n in range(3)) < 0.1:
        scores[0] += 1
    tasks = [task(str(n), names[2 * n], names[2 * n + 1]) for n in range(3)]
    one = dict(zip(names, scores, strict=True))
    moved = {name: unit * one[name] + offsets[at // 2] for at, name in enumerate(names)}
    other = table(a=1, b=0, c=0, d=2, e=0, f=0)
    plain = worth_asking(tasks, {"one": table(**one), "other": other}, by)
    assert worth_asking(tasks, {"one": table(**moved), "other": other}, by) == pytest.approx(plain, abs=1e-6)


def test_scorers_get_what_prompts_hold():
    seen: dict[str, Any] = {}

    def scorer(prompts, responses, **columns):
        seen.update(columns, prompts=prompts, responses=responses)
        return [float(n) for n in range(len(responses))]

    tasks = [task("t", "a", "b", k=1, only=3, responses="no"), task("u", "c", "d", k=2, responses="no")]
    worth_asking(tasks, {"one": scorer}, "large_gap")
    prompts = [[{"role": "user", "content": id}] for id in "ttuu"]
    assert seen == {"k": [1, 1, 2, 2], "prompts": prompts, "responses": ["a", "b", "c", "d"]}


# --- the verb ----------------------------------------------------------------------------------

TASKS = [task(f"t{n}", f"good {n}", f"bad {n}") for n in range(40)]


def length(prompts: Any, responses: list[str], **_: Any) -> list[float]:
    """Task 39 has the largest gap, task 0 the smallest."""
    return [int(text.split()[1]) * (1.0 if text.startswith("good") else -1.0) for text in responses]


def select(tmp_path: Path, *flags: str, tasks: list[Task] | None = None, scorers: Any = None, out: str = "out"):
    write_jsonl(tmp_path / "tasks.jsonl", TASKS if tasks is None else tasks)
    argv = ["--tasks", str(tmp_path / "tasks.jsonl"), "--output_dir", str(tmp_path / out), *flags]
    return selection.run(parse(selection.Config, argv), scorers)


BY_GAP = ("--by", "large_gap", "--reward", "one", "--num_tasks", "10", "--random_share", "0.3")


def test_run_writes_tasks_with_how_and_how_likely_they_were_chosen(tmp_path):
    run = select(tmp_path, *BY_GAP, scorers={"one": length})
    chosen = read_jsonl(tmp_path / "out" / "tasks.jsonl", Task)
    by = Counter(row.chosen_by for row in chosen)
    assert by == {"random": 3, "large_gap": 7}
    best = {row.id for row in chosen if row.chosen_by == "large_gap"}
    left = [row.id for row in reversed(TASKS) if row.id not in {c.id for c in chosen if c.chosen_by == "random"}]
    assert best == set(left[:7])
    originals = {row.id: row for row in TASKS}
    for row in chosen:
        assert dataclasses.replace(row, chosen_by="all", probability=1.0) == originals[row.id]
        if row.id in ("t39", "t33"):
            assert row.probability == 1.0
        if int(row.id[1:]) < 30:
            assert row.probability == pytest.approx(3 / 40)
    assert run.stage == "select"
    assert run.metrics["num_chosen_by"] == {"random": 3, "large_gap": 7}
    assert (run.metrics["num_tasks_in"], run.metrics["num_chosen"], run.metrics["num_excluded"]) == (40, 10, 0)
    assert run.metrics["worth_of_chosen"] > run.metrics["worth_of_all"] > 0


def test_small_gaps_are_chosen_first(tmp_path):
    flags = ["--by", "small_gap", *BY_GAP[2:]]
    run = select(tmp_path, *flags, scorers={"one": length})
    chosen = read_jsonl(tmp_path / "out" / "tasks.jsonl", Task)
    assert all(int(row.id[1:]) < 10 for row in chosen if row.chosen_by == "small_gap")
    assert 0 <= run.metrics["worth_of_chosen"] < run.metrics["worth_of_all"]


def test_random_needs_no_model(tmp_path):
    run = select(tmp_path, "--num_tasks", "10")
    chosen = read_jsonl(tmp_path / "out" / "tasks.jsonl", Task)
    assert {(row.chosen_by, row.probability) for row in chosen} == {("random", 0.25)}
    assert run.metrics["num_chosen_by"] == {"random": 10}


def test_all_of_them_have_probability_one(tmp_path):
    select(tmp_path, "--num_tasks", "40")
    assert {row.probability for row in read_jsonl(tmp_path / "out" / "tasks.jsonl", Task)} == {1.0}


def test_what_was_chosen_before_is_not_chosen_again_and_chances_multiply(tmp_path):
    select(tmp_path, "--num_tasks", "20", out="first")
    first = tmp_path / "first" / "tasks.jsonl"
    run = select(tmp_path, "--num_tasks", "20", "--exclude", str(first), out="second")
    ids = [{row.id for row in read_jsonl(tmp_path / n / "tasks.jsonl", Task)} for n in ("first", "second")]
    assert ids[0] | ids[1] == {row.id for row in TASKS}
    assert run.metrics["num_excluded"] == 20
    # A choice out of a choice: 20 of 40, then 5 of those 20.
    select(tmp_path, "--num_tasks", "5", tasks=read_jsonl(first, Task), out="third")
    assert {row.probability for row in read_jsonl(tmp_path / "third" / "tasks.jsonl", Task)} == {0.125}


def test_a_run_knows_the_labels_of_its_reward_models(tmp_path):
    from rlhf.runs import open_run

    with open_run("export", tmp_path / "export", {}, {}, labels_sha256="abc") as folder:
        (folder.path / "x.jsonl").write_text("x")
        folder.finish()
    with open_run("reward", tmp_path / "reward", {}, {"preferences": tmp_path / "export" / "x.jsonl"}) as folder:
        reward = folder.finish()
    flags = ["--by", "large_gap", "--reward", str(tmp_path / "reward"), "--num_tasks", "3"]
    run = select(tmp_path, *flags, scorers={str(tmp_path / "reward"): length})
    assert run.parents == [reward.id]
    assert run.labels_sha256 == ["abc"]


def test_the_config_that_comes_with_rlhf_is_valid():
    config = parse(selection.Config, ["--config", "configs/select.yaml"]).select
    assert (config.by, config.output_dir) == ("random", "runs/select")


def test_it_starts_without_torch():
    code = "import labeling_app.selection, sys; assert not {'torch', 'scipy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--by", "varance"], "by is 'varance', did you mean `variance`?; should be one of random, variance"),
        (["--num_tasks", "0"], "num_tasks is 0, should be at least 1"),
        (["--num_tasks", "41"], "num_tasks is 41; "),
        (["--num_tasks", "41"], "tasks.jsonl has 40 tasks; ask for as many at most"),
        (["--random_share", "0.05"], "random_share is 0.05, should be from 0.1 to 1: without a random share nothing"),
        (["--random_share", "1.5"], "random_share is 1.5, should be from 0.1 to 1"),
        (["--by", "small_gap"], "by small_gap needs 1 or more reward models; name them with --reward"),
        (["--by", "variance", "--reward", "one"], "by variance needs 2 or more reward models"),
    ],
)
def test_settings_that_cannot_be(tmp_path, flags, message):
    with pytest.raises(UserError) as error:
        select(tmp_path, *flags)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda p, r, **_: [1.0], "reward one: gave 1 scores for 80 responses"),
        (lambda p, r, **_: [1.0, math.nan] * 40, "reward one: gave nan for a response of task t0"),
        (lambda p, r, **_: [0.0] * 79 + [math.inf], "reward one: gave inf for a response of task t39"),
        (lambda p, r, **_: [float(m[0]["content"][1:]) for m in p], "reward one: scores all responses of a task the"),
    ],
)
def test_scorers_that_do_not_score(tmp_path, scorer, message):
    with pytest.raises(UserError) as error:
        select(tmp_path, *BY_GAP, scorers={"one": scorer})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([*TASKS, TASKS[0]], "tasks.jsonl: task t0 is there twice; keep one of them"),
        ([*TASKS, task("x", "a")], "tasks.jsonl: task x should have two or more responses"),
    ],
)
def test_tasks_that_cannot_be(tmp_path, tasks, message):
    with pytest.raises(UserError, match=message):
        select(tmp_path, "--num_tasks", "10", tasks=tasks)


def test_too_few_that_were_not_chosen_before(tmp_path):
    write_jsonl(tmp_path / "before.jsonl", TASKS[:35])
    with pytest.raises(UserError, match="has 5 tasks that were not chosen before; ask for as many"):
        select(tmp_path, "--num_tasks", "10", "--exclude", str(tmp_path / "before.jsonl"))
