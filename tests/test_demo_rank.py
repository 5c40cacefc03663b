"""demo-rank: who ranks what, the files, the agreement and every error."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from rlhf.config import from_values
from rlhf.demo import rank
from rlhf.demo.annotators import ANNOTATORS
from rlhf.demo.domain import draw_faults, draw_prompts, write_reply
from rlhf.demo.rank import Config, RankConfig, agreement
from rlhf.errors import UserError
from rlhf.records import Prompt, Ranking, Response, Task, read_jsonl, write_jsonl
from rlhf.runs import read_run

PROMPTS = draw_prompts(False, 50, Random(0))


def responses_to(prompts: list[Prompt], count: int) -> list[Response]:
    responses = []
    for prompt in prompts:
        for number in range(count):
            rng = Random(f"{prompt.id} {number}")
            text = write_reply(prompt.meta["product"], prompt.meta["problem"], draw_faults(rng, 0.35, 0.4), rng)
            responses.append(Response(f"{prompt.id}/{number}", prompt.id, text, "run"))
    return responses


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    write_jsonl(tmp_path / "responses.jsonl", responses_to(PROMPTS, 4))
    return tmp_path


def settings(inputs: Path, name: str = "ranked", **changes) -> Config:
    values = {
        "prompts": [str(inputs / "prompts.jsonl")],
        "responses": [str(inputs / "responses.jsonl")],
        "output_dir": str(inputs / name),
    }
    return Config(RankConfig(**{**values, **changes}))


def tasks(count: int, texts: tuple[str, ...] = ("a", "b", "c")) -> list[Task]:
    return [
        Task(f"t{n}", Prompt(f"p{n}", []), [Response(f"{n}{text}", f"p{n}", text, "run") for text in texts])
        for n in range(count)
    ]


def test_every_task_is_ranked_and_some_by_three(inputs: Path):
    run = rank.run(settings(inputs))
    ranked = read_jsonl(inputs / "ranked" / "tasks.jsonl", Task)
    rankings = read_jsonl(inputs / "ranked" / "rankings.jsonl", Ranking)
    assert [task.prompt for task in ranked] == PROMPTS
    assert all(len(task.responses) == 4 for task in ranked)
    per_task = Counter(ranking.task_id for ranking in rankings)
    assert Counter(per_task.values()) == {1: 40, 3: 10}  # a fifth of 50 overlaps
    assert len({(ranking.task_id, ranking.annotator) for ranking in rankings}) == 70
    responses = {task.id: {response.id for response in task.responses} for task in ranked}
    assert all(set(ranking.ranks) == set(ranking.shown) == responses[ranking.task_id] for ranking in rankings)
    assert (run.metrics["num_tasks"], run.metrics["num_rankings"], run.metrics["num_tasks_overlapping"]) == (50, 70, 10)
    assert sum(run.metrics["rankings_by_annotator"].values()) == 70
    assert 0.5 < run.metrics["agreement"] < 1
    assert set(run.metrics["agreement_by_annotator"]) == {annotator.name for annotator in ANNOTATORS}
    assert read_run(inputs / "ranked").metrics == run.metrics


def test_the_same_seed_writes_the_same_bytes(inputs: Path):
    for name, seed in [("one", 0), ("two", 0), ("three", 1)]:
        rank.run(settings(inputs, name, seed=seed))
    one, two, three = ((inputs / name / "rankings.jsonl").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_prompts_without_two_responses_are_counted(inputs: Path):
    write_jsonl(inputs / "more.jsonl", [Prompt("lonely", PROMPTS[0].messages), Prompt("silent", PROMPTS[0].messages)])
    write_jsonl(inputs / "single.jsonl", [Response("x", "lonely", "hello.", "run")])
    config = settings(
        inputs,
        prompts=[str(inputs / "prompts.jsonl"), str(inputs / "more.jsonl")],
        responses=[str(inputs / "responses.jsonl"), str(inputs / "single.jsonl")],
    )
    assert rank.run(config).metrics["num_prompts_without_task"] == 2


def test_one_path_in_yaml_is_enough(inputs: Path):
    values = {name: str(inputs / f"{name}.jsonl") for name in ("prompts", "responses")}
    config = from_values(Config, {**values, "output_dir": str(inputs / "out")}, "a.yaml")
    assert config.rank.prompts == [values["prompts"]]
    assert rank.run(config).metrics["num_tasks"] == 50


def test_the_store_deals_evenly_and_to_each_once(inputs: Path):
    rank.run(settings(inputs, overlap_share=0.2))
    rankings = read_jsonl(inputs / "ranked" / "rankings.jsonl", Ranking)
    per_person = Counter(ranking.annotator for ranking in rankings)
    assert per_person.keys() == {annotator.name for annotator in ANNOTATORS}
    assert max(per_person.values()) - min(per_person.values()) <= 2  # who asks first in the last round is chance
    rank.run(settings(inputs, "all", overlap_share=1.0, overlap=5))
    everything = read_jsonl(inputs / "all" / "rankings.jsonl", Ranking)
    assert set(Counter(ranking.task_id for ranking in everything).values()) == {5}
    assert len({(ranking.task_id, ranking.annotator) for ranking in everything}) == 250


def test_agreement_by_hand():
    one = tasks(1)
    ann = Ranking("t0", "ann", {"0a": 1, "0b": 2, "0c": 2})
    bob = Ranking("t0", "bob", {"0a": 1, "0b": 2, "0c": 3})
    cho = Ranking("t0", "cho", {"0a": 3, "0b": 1, "0c": 2})
    # Pairs ab, ac, bc. ann: + + 0. bob: + + +. cho: - - +.
    assert agreement(one, [ann, bob]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert agreement(one, [ann, cho]) == pytest.approx((0 + 0 + 0.5) / 3)
    assert agreement(one, [ann, bob, cho]) == pytest.approx((2.5 + 0.5 + 1) / 9)  # bob and cho agree on bc
    assert agreement(one, [ann, bob, cho], "ann") == pytest.approx(3 / 6)
    assert agreement(one, [ann, bob], "eli") is None
    assert agreement(one, [ann]) is None


def test_equal_texts_do_not_count_as_agreement():
    twins = tasks(1, texts=("a", "b"))
    twins[0].responses.append(Response("0A", "p0", "a", "run"))
    ann = Ranking("t0", "ann", {"0a": 1, "0b": 2, "0A": 1})
    bob = Ranking("t0", "bob", {"0a": 2, "0b": 1, "0A": 2})
    assert agreement(twins, [ann, bob]) == 0.0


def test_errors_leave_no_folder(inputs: Path):
    write_jsonl(inputs / "stray.jsonl", [Response("x", "nowhere", "hello.", "run")])
    with pytest.raises(
        UserError, match=r"stray.jsonl: response `x` answers prompt `nowhere`, which is not in .*prompts"
    ):
        rank.run(settings(inputs, responses=[str(inputs / "stray.jsonl")]))
    write_jsonl(inputs / "single.jsonl", responses_to(PROMPTS, 1))
    with pytest.raises(UserError, match=r"single.jsonl: no prompt has two responses; run `rlhf sample`"):
        rank.run(settings(inputs, responses=[str(inputs / "single.jsonl")]))
    with pytest.raises(UserError, match=r"missing.jsonl: no such file"):
        rank.run(settings(inputs, prompts=[str(inputs / "missing.jsonl")]))
    write_jsonl(inputs / "foreign.jsonl", [Prompt(PROMPTS[0].id, PROMPTS[0].messages, {"product": "boat"})])
    write_jsonl(inputs / "pair.jsonl", responses_to(PROMPTS[:1], 2))
    with pytest.raises(UserError, match="column `product`: `boat` is not a product of the demo"):
        rank.run(settings(inputs, prompts=[str(inputs / "foreign.jsonl")], responses=[str(inputs / "pair.jsonl")]))
    assert not (inputs / "ranked").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"overlap_share": -0.1}, "overlap_share is -0.1, should be from 0 to 1"),
        ({"overlap": 6}, "overlap is 6, should be from 2 to 5, as many as there are"),
        ({"overlap": 1}, "overlap is 1, should be from 2 to 5"),
    ],
)
def test_settings_that_cannot_be(values: dict, message: str):
    with pytest.raises(UserError, match=f"a.yaml: {message}"):
        from_values(Config, {"prompts": "p", "responses": "r", "output_dir": "o", **values}, "a.yaml")
