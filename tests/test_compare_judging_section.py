"""A language model and people as judges in a report: verdicts, the effect of the place, few votes with a judge."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.report import build_report
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sections import judging
from rlhf.errors import UserError
from rlhf.records import Messages, Prompt, Ranking, write_jsonl
from tests.judge_server import JudgeServer, Request, says, serve_fixture
from tests.test_compare_people import for_dpo, study
from tests.tiny import tiny_policy

__all__ = ["serve_fixture"]

Serve = Callable[..., JudgeServer]
NUM = 12


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging")
    tiny_policy(folder / "sft", seed=0)
    tiny_policy(folder / "dpo", seed=1)
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": f"Number {n}"}]) for n in range(NUM)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    return folder


def _config(place: Path, out: Path, judge: Path, *policies: str) -> Config:
    settings = CompareConfig(
        policies=[str(place / name) for name in policies or ("sft", "dpo")],
        prompts=str(place / "prompts.jsonl"),
        output_dir=str(out),
        llm_judge=str(judge),
        max_new_tokens=8,
        num_bootstrap=200,
    )
    return Config(settings)


def _judge(folder: Path, url: str, **more: Any) -> Path:
    keys = {"base_url": url, "model": "judge-1", "num_retries": 0, "max_unparsed": 1.0, **more}
    (folder / "judge.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    return folder / "judge.yaml"


def _by_vowels(request: Request, _: int) -> Any:
    a, b = vowels([], list(request.shown))
    return says(f"[[{'A' if a > b else 'B' if b > a else 'C'}]]")


def test_a_language_model_beside_gold(place: Path, tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture) -> None:
    """It counts vowels, as gold does: they agree on all, and the place is without effect."""
    server = serve(_by_vowels)
    run(_config(place, tmp_path / "out", _judge(tmp_path, server.url, price_in=2, price_out=8)), {"gold": vowels})
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    gold, language = report["pairs"]
    assert (gold["judge"], language["judge"]) == ("gold", "llm_judge")
    assert language["win_rate"] == gold["win_rate"] and language["ties"] == gold["ties"]
    assert report["settings"]["judges"] == ["gold", "llm_judge"]
    told = report["llm_judge"]
    assert (told["model"], told["num_pairs"], told["num_unparsed"]) == ("judge-1", NUM, 0)
    assert told["num_requests"] == len(server.requests)
    assert told["cost"] == pytest.approx(0.0028 * len(server.requests))
    (agreement,) = report["agreement"]["judges"]
    assert (agreement["a"], agreement["b"], agreement["with_ties"]["mean"]) == ("gold", "llm_judge", 1.0)
    position = report["judging"]["position"]["llm_judge"]
    assert (position["num_pairs"], position["consistent"]["mean"], position["first_place"]["mean"]) == (NUM, 1.0, 0.5)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The language model says the same in both orders on 100%" in page
    assert "the language model agrees" in capsys.readouterr().out


def test_a_judge_that_likes_the_first_place(place: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda *_: says("[[A]]"))
    run(_config(place, tmp_path / "out", _judge(tmp_path, server.url)), {"gold": vowels})
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    language = report["pairs"][1]
    assert (language["win_rate"]["mean"], language["ties"], language["verdict"]) == (0.5, 1.0, "undecided")
    position = report["judging"]["position"]["llm_judge"]
    pairs = position["num_pairs"]
    assert (position["to_first"], position["first_place"]["mean"], position["consistent"]["mean"]) == (1.0, 1.0, 0.0)
    assert position["p_value"] == pytest.approx(2 * 0.5**pairs, rel=0.01)  # as many coins, all heads, two-sided
    assert any("prefers what is shown first" in line for line in judging.warnings(report))


def test_nothing_is_asked_twice_after_an_interruption(place: Path, tmp_path: Path, serve: Serve) -> None:
    seen = 7

    def fails_later(request: Request, number: int) -> Any:
        return _by_vowels(request, number) if number <= seen else says(None)._replace(status=401, body=b"who are you")

    server = serve(fails_later)
    judge = _judge(tmp_path, server.url, concurrency=1)
    with pytest.raises(UserError, match="answered HTTP 401"):
        run(_config(place, tmp_path / "out", judge), {"gold": vowels})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) >= ["judge.jsonl"]
    answered = len((tmp_path / "out" / "judge.jsonl").read_text().splitlines())
    server.answer, before = _by_vowels, len(server.requests)
    again = _config(place, tmp_path / "out", judge)
    run(Config(again.compare.__class__(**(vars(again.compare) | {"resume": True}))), {"gold": vowels})
    questions = [json.dumps(request.body) for request in server.requests[before:]]
    assert answered == seen and len(set(questions)) == len(questions)
    assert not set(questions) & {json.dumps(request.body) for request in server.requests[:seen]}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"modle": "x"}, r"modle"),
        ({"template": "none.txt"}, r"none.txt"),
        ({"concurrency": 0}, r"concurrency: is 0, must be at least 1"),
    ],
)
def test_a_bad_file_of_a_judge_ends_before_anything_is_made(
    place: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(_config(place, tmp_path / "out", _judge(tmp_path, "http://127.0.0.1:1/v1", **keys)), {"gold": vowels})
    assert not (tmp_path / "out").exists()


def test_one_policy_has_nothing_to_be_judged_against(place: Path, tmp_path: Path) -> None:
    judge = _judge(tmp_path, "http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match="llm_judge: compares two policies at least"):
        run(_config(place, tmp_path / "out", judge, "sft"), {"gold": vowels})
    assert not (tmp_path / "out").exists()


def test_few_votes_with_the_reward_model() -> None:
    """People voted on all 40 prompts, so the judge adds nothing; on 20 of 40 it does."""
    report = build_report(study(for_dpo(0.9), {"reward_model": 0.9}))
    (row,) = report["judging"]["votes"]
    assert (row["judge"], row["weight"], row["reason"]) == (
        "reward_model",
        0,
        "people voted on all prompts, or on all but one",
    )
    assert row["combined"] == row["of_votes"]
    half = [one for one in for_dpo(0.9) if int(re.findall(r"\d+", one[0].prompt.id)[0]) % 2]
    report = build_report(study(half, {"reward_model": 0.9}))
    (row,) = report["judging"]["votes"]
    assert row["reason"] is None and row["verdict"] == "dpo"
    assert row["effective"] > row["of_votes"]["n"] == 20
    width, alone = (one["high"] - one["low"] for one in (row["combined"], row["of_votes"]))
    assert width < alone
    assert judging.says(report)[0].startswith("people's 40 votes with the reward model on all prompts: sft wins 1")


def test_what_the_place_is_worth_to_people() -> None:
    cast = for_dpo(0.9)
    first = [(task, _shown(ranking, task.responses[0].id)) for task, ranking in cast]
    report = build_report(study(first, {"reward_model": 0.9}))
    place = report["judging"]["position"]["people"]
    wins = [1.0 if one.ranks[one.shown[0]] == 1 else 0.0 for _, one in first]
    assert place["num_votes"] == len(wins)
    assert place["first_place"]["mean"] == pytest.approx(sum(wins) / len(wins), abs=1e-6)


def _shown(ranking: Ranking, first: str) -> Ranking:
    import dataclasses

    return dataclasses.replace(ranking, shown=[first, *(id for id in ranking.ranks if id != first)])
