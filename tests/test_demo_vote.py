"""demo-vote: simulated votes on a compare run are what compare reads as people's, and say what the gold says."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from labeling_app.blind import read_votes
from rlhf.compare.answers import Answers
from rlhf.compare.people import ask_people, gather
from rlhf.compare.statistics import Bootstrap
from rlhf.demo import vote
from rlhf.demo.domain import draw_faults, draw_prompts, write_reply
from rlhf.demo.vote import Config, VoteConfig
from rlhf.errors import UserError
from rlhf.records import Response, read_jsonl, write_jsonl
from rlhf.runs import open_run, read_run

PROMPTS = draw_prompts(True, 60, Random(0))
FLAWLESS = {"sft": 0.0, "dpo": 0.5, "ppo": 1.0}  # the share of replies without a fault


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished compare run: the fewer faults, the later the policy's name."""
    place = tmp_path_factory.mktemp("vote")
    out = place / "compare"
    write_jsonl(place / "prompts.jsonl", PROMPTS)
    config = {"prompts": str(place / "prompts.jsonl"), "policies": list(FLAWLESS), "num_prompts": None}
    with open_run("compare", out, config, {"prompts": place / "prompts.jsonl"}) as run:
        for name, share in FLAWLESS.items():
            rows = []
            for prompt in PROMPTS:
                rng = Random(f"{name} {prompt.id}")
                faults = draw_faults(rng, share, 1.0)
                text = write_reply(prompt.meta["product"], prompt.meta["problem"], faults, rng)
                rows.append(Response(f"{name}/{prompt.id}", prompt.id, text, f"run-{name}"))
            write_jsonl(out / f"responses.{name}.jsonl", rows)
        (out / "report.json").write_text(json.dumps({"settings": {"policies": list(FLAWLESS)}}))
        run.finish()
    return str(out)


def _vote(compared: str, out: Path, **changes: Any) -> str:
    settings = VoteConfig(**({"comparison": compared, "output_dir": str(out), "num_votes": 120} | changes))
    vote.run(Config(settings))
    return str(out / "labels.db")


def _people(compared: str, url: str) -> Any:
    answers = [
        Answers(name, [[row] for row in read_jsonl(Path(compared) / f"responses.{name}.jsonl", Response)])
        for name in FLAWLESS
    ]
    return ask_people(gather(*read_votes(url)), answers, Bootstrap(num_bootstrap=300))


def test_so_many_votes_that_say_what_the_gold_says(compared: str, tmp_path: Path) -> None:
    people = _people(compared, _vote(compared, tmp_path / "votes"))
    assert (people.num_counted, people.num_elsewhere, people.num_annotators) == (120, 0, 5)
    assert {names: one.pair.verdict for names, one in people.pairs.items()} == {
        ("sft", "dpo"): "dpo",
        ("sft", "ppo"): "ppo",
        ("dpo", "ppo"): "ppo",
    }
    metrics = read_run(tmp_path / "votes").metrics
    assert metrics["num_votes"] == 120 and sum(metrics["votes_by_annotator"].values()) == 120


def test_the_same_seed_votes_the_same(compared: str, tmp_path: Path) -> None:
    votes = [
        _people(compared, _vote(compared, tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert votes[0].votes.sha256 == votes[1].votes.sha256 != votes[2].votes.sha256


def test_between_two_policies_alone(compared: str, tmp_path: Path) -> None:
    url = _vote(compared, tmp_path / "votes", between=["ppo", "dpo"], overlap=3, num_votes=100)
    people = _people(compared, url)
    assert list(people.pairs) == [("dpo", "ppo")] and people.num_counted == 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_votes": 1000}, r"pairs of responses differ, which give \d+ votes of 1000; raise overlap, or lower"),
        ({"between": ["sft", "rloo"]}, "responses.rloo.jsonl: no such file"),
    ],
)
def test_what_cannot_be_voted_on(compared: str, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _vote(compared, tmp_path / "votes", **changes)
    assert not (tmp_path / "votes").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_votes": 0}, "num_votes is 0"),
        ({"overlap": 6}, "overlap is 6, should be from 1 to 5"),
        ({"between": ["sft"]}, "between names 1 policies"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VoteConfig("compare", "out", **changes)
