"""compare as a stage: tiny policies, judges by hand; the same twice, resumable, and clear about bad input."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare import answers as answers_module
from rlhf.compare.run import CompareConfig, Config, named_policies, run
from rlhf.config import as_dict, parse
from rlhf.errors import UserError
from rlhf.models import train_tokenizer
from rlhf.records import Demonstration, Messages, Prompt, Response, read_jsonl, write_jsonl
from rlhf.runs import read_run
from tests.tiny import tiny_policy

WORDS = ["Hello", "I would like to return the shoes", "What time does the shop close?", "Can you help me?", "Hi", "No"]
SMALL = {"max_new_tokens": 8, "batch_size": 4, "num_bootstrap": 200}


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A gold by hand: how many vowels there are."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


def shortness(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    """A reward model by hand: the shorter the better."""
    return [-float(len(response)) for response in responses]


BOTH = {"reward_model": shortness, "gold": vowels}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny policies, `sft` and `dpo`, and six prompts."""
    folder = tmp_path_factory.mktemp("compare")
    tiny_policy(folder / "sft", seed=0)
    tiny_policy(folder / "dpo", seed=1)
    prompts = [
        Prompt(f"p{n}", [{"role": "user", "content": text}], {"number": n} | ({"odd": n} if n % 2 else {}))
        for n, text in enumerate(WORDS)
    ]
    write_jsonl(folder / "prompts.jsonl", prompts)
    return folder


def config(place: Path, out: Path, **changes: Any) -> Config:
    values = {
        "policies": [str(place / "sft"), str(place / "dpo")],
        "prompts": str(place / "prompts.jsonl"),
        "output_dir": str(out),
        **SMALL,
    }
    return Config(CompareConfig(**(values | changes)))


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_a_whole_comparison(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    done = run(config(place, out, num_responses=2, gold="my.rubric:vowels"), BOTH)
    report = report_of(out)

    assert list(report)[:4] == ["policies", "pairs", "settings", "verdict"]  # and the sections
    assert list(report["policies"]) == ["sft", "dpo"]
    for numbers in report["policies"].values():
        assert set(numbers) == {"score", "gold", "kl", "length", "win_rate", "finished"}
        for interval in numbers.values():
            assert interval is None or (set(interval) == {"mean", "low", "high", "n"} and interval["n"] == 6)
    assert [(pair["a"], pair["b"], pair["judge"]) for pair in report["pairs"]] == [
        ("sft", "dpo", "gold"),
        ("sft", "dpo", "reward_model"),
    ]
    assert all(set(pair) == {"a", "b", "judge", "win_rate", "ties", "verdict"} for pair in report["pairs"])

    # What the page counts is what lies in the files.
    for name in ("sft", "dpo"):
        rows = read_jsonl(out / f"responses.{name}.jsonl", Response)
        assert [(row.prompt_id, row.sampling["index"]) for row in rows] == [
            (f"p{n}", i) for n in range(6) for i in (0, 1)
        ]
        numbers = report["policies"][name]
        mean = {
            "length": sum(row.sampling["num_tokens"] for row in rows) / 12,
            "kl": sum(row.sampling["kl"] for row in rows) / 12,
            "finished": sum(row.sampling["finished"] for row in rows) / 12,
            "gold": sum(vowels([], [row.text for row in rows])) / 12,
            "score": sum(shortness([], [row.text for row in rows])) / 12,
        }
        assert {key: numbers[key]["mean"] for key in mean} == pytest.approx(mean, abs=1e-5)
    first, second = report["policies"]["sft"], report["policies"]["dpo"]
    assert (first["win_rate"], first["kl"]["high"]) == (None, 0.0)
    assert second["kl"]["mean"] > 0  # another model than the reference
    assert second["win_rate"]["mean"] == pytest.approx(1 - report["pairs"][0]["win_rate"]["mean"], abs=2e-6)
    assert report["settings"]["reference"] == "sft"
    assert report["settings"]["num_responses"] == 2

    assert done.finished and read_run(out).metrics == done.metrics
    assert done.metrics["verdict"] == report["verdict"]
    assert done.metrics["policies"]["dpo"]["length"] == second["length"]["mean"]
    shown = capsys.readouterr().out
    assert report["verdict"] in shown and "win rate" in shown
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_same_seed_gives_the_same_bytes_anywhere(place: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(config(place, tmp_path / name), BOTH)
    first = (tmp_path / "one" / "report.json").read_bytes()
    assert first == (tmp_path / "two" / "report.json").read_bytes()
    assert str(place).encode() not in first and str(tmp_path).encode() not in first
    run(config(place, tmp_path / "three", seed=1), BOTH)
    assert first != (tmp_path / "three" / "report.json").read_bytes()


def test_a_policy_against_itself_ties_everywhere(place: Path, tmp_path: Path) -> None:
    """Even before a judge that never gives the same number twice: the same text is judged once."""
    numbers = iter(range(1000))

    def restless(prompts: list, responses: list, **columns: Any) -> list[float]:
        return [float(next(numbers)) for _ in responses]

    policies = [str(place / "sft"), f"again={place / 'sft'}"]
    run(config(place, tmp_path / "out", policies=policies), {"reward_model": restless})
    report = report_of(tmp_path / "out")
    pair = report["pairs"][0]
    assert (pair["win_rate"]["mean"], pair["ties"], pair["verdict"]) == (0.5, 1.0, "undecided")
    assert report["policies"]["again"]["kl"]["mean"] == 0
    assert report["policies"]["again"]["gold"] is None
    assert report["verdict"].startswith("undecided: ")


def test_without_gold_the_reward_model_decides(place: Path, tmp_path: Path) -> None:
    run(config(place, tmp_path / "out"), {"reward_model": shortness})
    report = report_of(tmp_path / "out")
    assert [numbers["gold"] for numbers in report["policies"].values()] == [None, None]
    assert report["settings"]["decided_by"] == "reward_model" and "by the reward model" in report["verdict"]


def test_one_policy_alone(place: Path, tmp_path: Path) -> None:
    run(config(place, tmp_path / "out", policies=[str(place / "dpo")], reference=str(place / "sft")), BOTH)
    report = report_of(tmp_path / "out")
    assert report["pairs"] == [] and report["settings"]["reference"] == "sft"
    assert report["policies"]["dpo"]["kl"]["mean"] > 0
    assert report["verdict"] == "undecided: dpo is the only policy, there is nothing to compare it with"


def test_judges_get_the_columns_that_all_prompts_have(place: Path, tmp_path: Path) -> None:
    def gold(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
        assert list(columns) == ["number"]
        assert len(columns["number"]) == len(prompts) == len(responses)
        assert all(WORDS[n] == messages[0]["content"] for n, messages in zip(columns["number"], prompts, strict=True))
        return vowels(prompts, responses)

    run(config(place, tmp_path / "out"), {"gold": gold})


def test_another_vocabulary_has_no_kl(place: Path, tmp_path: Path) -> None:
    tiny_policy(tmp_path / "other", seed=2)
    text = "Wholly other words make wholly other tokens, however many of them one asks for: quick brown foxes jump."
    train_tokenizer([text] * 5, 320, "configs/templates/chatml.jinja").save_pretrained(tmp_path / "other")
    policies = [str(place / "sft"), str(tmp_path / "other")]
    run(config(place, tmp_path / "out", policies=policies), BOTH)
    numbers = report_of(tmp_path / "out")["policies"]
    assert numbers["other"]["kl"] is None and numbers["sft"]["kl"] is not None
    assert "its tokenizer is not that of sft" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def _count_generations(monkeypatch: pytest.MonkeyPatch, fail_on: str | None = None) -> list[str]:
    generated: list[str] = []
    real = answers_module.generate

    def counting(policy: Any, *args: Any, **kwargs: Any) -> Any:
        generated.append(Path(policy.path).name)
        if generated[-1] == fail_on:
            raise KeyboardInterrupt
        return real(policy, *args, **kwargs)

    monkeypatch.setattr(answers_module, "generate", counting)
    return generated


def test_a_kill_loses_no_finished_policy(place: Path, tmp_path: Path) -> None:
    run(config(place, tmp_path / "whole"), BOTH)
    out = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        _count_generations(patch, fail_on="dpo")
        with pytest.raises(KeyboardInterrupt):
            run(config(place, out), BOTH)
    assert (out / "responses.sft.jsonl").is_file() and not (out / "report.json").exists()
    with pytest.raises(UserError, match="unfinished compare run"):
        run(config(place, out), BOTH)
    with pytest.MonkeyPatch.context() as patch:
        generated = _count_generations(patch)
        run(config(place, out, resume=True), BOTH)
    assert generated == ["dpo"]
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def test_a_kill_amid_the_kl_loses_no_batch(place: Path, tmp_path: Path) -> None:
    run(config(place, tmp_path / "whole", batch_size=2), BOTH)
    out = tmp_path / "killed"
    batches = []
    real = answers_module.kl_batches

    def killed(*args: Any, **kwargs: Any) -> Any:
        for batch in real(*args, **kwargs):
            if len(batches) == 2:
                raise KeyboardInterrupt
            batches.append(batch)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "kl_batches", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, out, batch_size=2), BOTH)
    with pytest.MonkeyPatch.context() as patch:
        generated = _count_generations(patch)
        patch.setattr(answers_module, "kl_batches", lambda *args, skip: real(*args, skip=batches.append(skip) or skip))
        run(config(place, out, batch_size=2, resume=True), BOTH)
    assert batches[-1] == {0, 1} and generated == ["dpo"]  # it asks which responses are missing: none
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()
    assert not list(out.glob("*.part"))


def test_a_gold_that_fails_late_keeps_what_was_generated(place: Path, tmp_path: Path) -> None:
    def sometimes_nan(prompts: list, responses: list, **columns: Any) -> list[float]:
        return [math.nan if column == 3 else 1.0 for column in columns["number"]]

    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"^gold: gave nan for prompt `p3` and response '.*'; it must give a finite"):
        run(config(place, out), {"gold": sometimes_nan})
    assert sorted(path.name for path in out.glob("re*")) == ["responses.dpo.jsonl", "responses.sft.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        generated = _count_generations(patch)
        run(config(place, out, resume=True), {"gold": vowels})
    assert generated == [] and read_run(out).finished


def test_a_file_of_other_responses_is_not_taken_for_complete(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        _count_generations(patch, fail_on="dpo")
        with pytest.raises(KeyboardInterrupt):
            run(config(place, out), BOTH)
    rows = read_jsonl(out / "responses.sft.jsonl", Response)
    write_jsonl(out / "responses.sft.jsonl", rows[:-1])
    with pytest.MonkeyPatch.context() as patch:
        generated = _count_generations(patch)
        run(config(place, out, resume=True), BOTH)
    assert generated == ["sft", "dpo"]


def _gold(values: Any) -> dict[str, Any]:
    return {"gold": lambda prompts, responses, **columns: values}


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"policies": ["nowhere/at/all"]}, BOTH, "^nowhere/at/all: no such model folder"),
    ({"policies": []}, BOTH, "^policies: is empty; give run folders"),
    ({"policies": ["a/sft", "b/sft"]}, BOTH, "`a/sft` and `b/sft` have the same name `sft`; .* sft2=b/sft"),
    ({"policies": ["undecided=a"]}, BOTH, "^policies: `undecided=a` gives no name to show; write it as name=path"),
    ({"policies": ["=a"]}, BOTH, "^policies: `=a` gives no name"),
    ({"reference": "nowhere/at/all"}, BOTH, "^nowhere/at/all: no such model folder"),
    ({"prompts": "none.jsonl"}, BOTH, "^none.jsonl: no such file"),
    ({}, {}, "^no judge: give --reward_model RUN, --gold module:function, or both"),
    ({}, _gold([1.0]), "^gold: gave 1 values for 2 responses; it must give one a response"),
    ({}, _gold([1.0, None]), r"^gold: gave \[1.0, None\]; it must return a list with one number a response"),
    ({}, _gold(0.5), "^gold: gave 0.5; it must return a list"),
    ({}, {"gold": lambda prompts, responses: [0.0]}, r"^gold: cannot be called as \(prompts, responses, number\)"),
    ({"num_prompts": 0}, BOTH, "^num_prompts: is 0, must be at least 1"),
    ({"num_responses": 0}, BOTH, "^num_responses: is 0, must be at least 1"),
    ({"max_new_tokens": 0}, BOTH, "^max_new_tokens: is 0"),
    ({"batch_size": 0}, BOTH, "^batch_size: is 0"),
    ({"num_bootstrap": 99}, BOTH, "^num_bootstrap: is 99, must be at least 100"),
    ({"confidence": 1.0}, BOTH, "^confidence: is 1, must be from 0.5 to below 1"),
    ({"temperature": -1.0}, BOTH, "^temperature: is -1, must be 0 or more"),
    ({"temperature": 0.0, "num_responses": 2}, BOTH, "^num_responses: is 2 at temperature 0"),
    ({"max_new_tokens": 256}, BOTH, "^max_new_tokens: 256 leaves no room"),
    ({"looks": [200, 100]}, BOTH, r"^looks: is \[200, 100\], must be numbers of prompts that rise"),
]


@pytest.mark.parametrize(("changes", "judges", "words"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    place: Path, tmp_path: Path, changes: dict[str, Any], judges: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(config(place, tmp_path / "out", **changes), judges)
    assert not (tmp_path / "out").exists()


def _write_prompts(path: Path, *prompts: tuple[str, Messages]) -> str:
    write_jsonl(path, [Prompt(name, messages) for name, messages in prompts])
    return str(path)


def test_bad_prompts(place: Path, tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    (tmp_path / "empty.jsonl").write_text("\n")
    given = {
        "is empty": str(tmp_path / "empty.jsonl"),
        "prompt `p` does not wait for a reply": _write_prompts(tmp_path / "a.jsonl", ("p", [user, assistant])),
        "prompt `q` does not wait": _write_prompts(tmp_path / "b.jsonl", ("q", [])),
        "two prompts have the id `p`": _write_prompts(
            tmp_path / "c.jsonl", ("p", [user]), ("p", [user, assistant, user])
        ),
    }
    for words, path in given.items():
        with pytest.raises(UserError, match=words):
            run(config(place, tmp_path / "out", prompts=path), BOTH)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_was_trained_on(place: Path, tmp_path: Path) -> None:
    train = tmp_path / "demonstrations.jsonl"
    other = Demonstration("d0", [{"role": "user", "content": "Else"}, {"role": "assistant", "content": "Yes"}])
    write_jsonl(train, [other])
    run(config(place, tmp_path / "fine", train_data=[str(train)], policies=[str(place / "sft")]), BOTH)
    seen = Demonstration("d1", [{"role": "user", "content": WORDS[2]}, {"role": "assistant", "content": "At six"}])
    write_jsonl(train, [other, seen])
    with pytest.raises(UserError, match=r"1 prompt is also in .*demonstr.* `p2`, 'What time does the shop"):
        run(config(place, tmp_path / "out", train_data=[str(train)]), BOTH)
    assert not (tmp_path / "out").exists()


def test_two_training_files_may_share_prompts(place: Path, tmp_path: Path) -> None:
    rows = [Demonstration("d0", [{"role": "user", "content": "Else"}, {"role": "assistant", "content": "Yes"}])]
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        write_jsonl(path, rows)
    run(config(place, tmp_path / "out", train_data=paths, policies=[str(place / "sft")]), BOTH)
    files = report_of(tmp_path / "out")["settings"]["held_out"]["files"]
    assert files == [{"file": "a.jsonl", "num_prompts": 1}, {"file": "b.jsonl", "num_prompts": 1}]


def test_names_of_policies(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "dpo").mkdir()
    assert named_policies([f"{tmp_path}/dpo/", "start=runs/sft", str(tmp_path / "lr=0.1"), "owner/model"]) == {
        "dpo": f"{tmp_path}/dpo/",
        "start": "runs/sft",
        "lr=0.1": str(tmp_path / "lr=0.1"),
        "model": "owner/model",
    }


def test_the_yaml_that_comes_along_is_read() -> None:
    config = parse(Config, [], "configs/compare.yaml")
    assert config.compare.policies == ["runs/sft", "runs/dpo"]
    fields = [field for part in config for field in dataclasses.fields(part)]
    assert sorted(field.name for field in fields) == sorted(as_dict(config))  # no key twice
    assert all(field.metadata.get("help") for field in fields)
