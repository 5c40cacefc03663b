"""safety in a whole comparison: tiny policies asked what they should refuse; shares by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.compare.run import run
from rlhf.compare.safety import measuring
from rlhf.compare.safety.measuring import TextValue
from rlhf.compare.safety.refusals import is_refusal
from rlhf.compare.safety.words import view
from rlhf.compare.sections.safety import SafetyConfig
from rlhf.errors import UserError
from rlhf.likelihood import text_logp
from rlhf.models import load_policy
from rlhf.records import Messages, Response, read_jsonl, write_jsonl
from tests.compare_cases import (
    BOTH,
    asked,
    compare_config,
    report_of,
    safety_place,
    shortness,
    unfinish,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies, six prompts to compare them on, four to refuse or not."""
    return safety_place(tmp_path_factory.mktemp("safety"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the policies that the section loaded, each noted as the real loading begins."""
    names: list[str] = []
    real = measuring.load_policy

    def noting(path: str, *args: Any, **kwargs: Any) -> Any:
        names.append(Path(path).name)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(measuring, "load_policy", noting)
    return names


NUM_PROMPTS = 6


def test_nothing_asked_and_nothing_flagged_has_no_section(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    run(compare_config(place, tmp_path / "out"), BOTH)
    assert "safety" not in report_of(tmp_path / "out")
    assert loaded == [] and not (tmp_path / "out" / "safety").exists()


def test_refusals_of_prompts_of_their_own(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    out = tmp_path / "out"
    run(compare_config(place, out, SafetyConfig(safety_prompts=str(place / "harmful.jsonl")), num_responses=2), BOTH)
    part = report_of(out)["safety"]
    assert loaded == ["sft", "dpo"]
    assert list(part) == ["refusals", "toxicity", "flags"]
    assert part["refusals"]["prompts"] == "harmful.jsonl" and part["refusals"]["reference"] is None
    for name in ("sft", "dpo"):
        rows = read_jsonl(out / "safety" / f"refusals.{name}.jsonl", Response)
        assert [(row.prompt_id, row.sampling["index"]) for row in rows] == [
            (f"h{n}", i) for n in range(4) for i in (0, 1)
        ]
        refused = [float(is_refusal(row.text)) for row in rows]
        wanted = part["refusals"]["policies"][name]["wanted"]
        assert wanted["mean"] == np.mean(refused[0:2] + refused[4:6]) and wanted["n"] == 2
    assert list(part["refusals"]["from_baseline"]) == ["dpo"] and part["refusals"]["from_reference"] is None
    assert "Refusals" in (out / "report.html").read_text(encoding="utf-8")


def test_a_cut_run_goes_on_where_it_was(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    safety = SafetyConfig(safety_prompts=str(place / "harmful.jsonl"))
    run(compare_config(place, tmp_path / "whole", safety), BOTH)
    out = tmp_path / "cut"
    loaded.clear()
    real = measuring.generate

    def cut_off(policy: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(policy.path).name == "dpo":
            raise KeyboardInterrupt
        return real(policy, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "generate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(compare_config(place, out, safety), BOTH)
    assert loaded == ["sft", "dpo"]
    loaded.clear()
    (out / "report.json").unlink(missing_ok=True)
    run(compare_config(place, out, safety, resume=True), BOTH)
    assert loaded == ["dpo"]
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def test_a_run_that_has_everything_loads_nothing(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    out, safety = tmp_path / "out", SafetyConfig(safety_prompts=str(place / "harmful.jsonl"))
    run(compare_config(place, out, safety), BOTH)
    first = (out / "report.json").read_bytes()
    unfinish(out)
    loaded.clear()
    run(compare_config(place, out, safety, resume=True), BOTH)
    assert loaded == [] and (out / "report.json").read_bytes() == first


def test_a_reference_that_is_not_compared_is_measured_too(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    out = tmp_path / "out"
    safety = SafetyConfig(safety_prompts=str(place / "harmful.jsonl"))
    policies = [str(place / "dpo"), str(place / "ppo")]
    run(compare_config(place, out, safety, policies=policies, reference=str(place / "sft")), BOTH)
    report = report_of(out)
    part = report["safety"]["refusals"]
    assert loaded == ["dpo", "ppo", "sft"]
    assert part["reference"]["wanted"]["n"] == 2 and list(part["from_reference"]) == ["dpo", "ppo"]
    assert report["safety"]["toxicity"]["from_reference"] is None
    table, _ = view(report)["parts"][0]["tables"]
    assert [(name, tags) for name, tags, _ in table.rows] == [
        ("dpo", ["baseline"]),
        ("ppo", []),
        ("sft", ["reference, not compared"]),
    ]
    assert table.columns == ["Refused", "change from dpo", "change from sft"]
    assert table.rows[2][2][1:3] == [None, None] and table.rows[0][2][1] is None and table.rows[0][2][2] is not None
    assert view(report)["notes"][1].startswith("No change of toxic replies from sft, the reference, is known")


def test_the_compared_prompts_may_say_whether_they_are_harmful(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    prompts = [asked("a", "One?", harmful=True), asked("b", "Two?", harmful=False), asked("c", "Three?")]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    run(compare_config(place, tmp_path / "out", prompts=str(tmp_path / "prompts.jsonl")), BOTH)
    part = report_of(tmp_path / "out")["safety"]["refusals"]
    assert loaded == [] and part["prompts"] is None
    assert {key: one["n"] for key, one in part["policies"]["dpo"].items()} == {"wanted": 1, "unwanted": 1}


def test_each_policys_own_likelihood_tells_the_sentences_apart(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    out, safety = tmp_path / "out", SafetyConfig(stereotypes=[str(place / "pairs.csv")])
    run(compare_config(place, out, safety), BOTH)
    assert loaded == ["sft", "dpo"]
    (part,) = report_of(out)["safety"]["stereotypes"]
    assert part["data"] == "pairs.csv" and list(part["policies"]["dpo"]) == ["all", "age", "gender"]
    for name in ("sft", "dpo"):
        rows = read_jsonl(out / "safety" / f"stereotypes.{name}.jsonl", TextValue)
        logps = [_logp_by_hand(str(place / name), row.text) for row in rows]
        assert [row.value for row in rows] == pytest.approx(logps, abs=1e-3)
        more = [logps[at] > logps[at + 1] for at in (0, 2, 4)]
        assert part["policies"][name]["all"]["mean"] == pytest.approx(np.mean(more), abs=1e-6)
    first = (out / "report.json").read_bytes()
    unfinish(out)
    loaded.clear()
    run(compare_config(place, out, safety, resume=True), BOTH)
    assert loaded == [] and (out / "report.json").read_bytes() == first


def _logp_by_hand(path: str, text: str) -> float:
    """Token by token: the sum of each one's log-probability after those before it, the first after the end of turn."""
    import torch

    policy = load_policy(path)
    ids = [policy.tokenizer.eos_token_id, *policy.tokenizer.encode(text, add_special_tokens=False)]
    total = 0.0
    with torch.no_grad():
        for at in range(1, len(ids)):
            logits = policy.model(input_ids=torch.tensor([ids[:at]])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, -1)[ids[at]])
    return total


def test_a_text_that_does_not_fit(place: Path) -> None:
    policy = load_policy(str(place / "sft"))
    with pytest.raises(
        UserError, match=r"sft: a text of 300 tokens \('x{40}'\) does not fit its context, which is 256;"
    ):
        text_logp(policy, ["x" * 300])


def test_a_likelihood_that_is_not_finite(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "text_logp", lambda policy, texts, batch_size: [float("nan")] * len(texts))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"^sft: the likelihood of a sentence is not finite, .* set --dtype float32"):
        run(compare_config(place, out, SafetyConfig(stereotypes=[str(place / "pairs.csv")])), BOTH)
    assert not (out / "safety").exists()


def test_replies_about_groups_are_scored_by_the_reward_model(place: Path, tmp_path: Path, loaded: list[str]) -> None:
    out = tmp_path / "out"
    config = compare_config(
        place, out, SafetyConfig(bold=str(place / "bold.json"), bold_per_group=2), reward_model="runs/reward"
    )
    run(config, BOTH)
    assert loaded == ["sft", "dpo"]
    (part,) = report_of(out)["safety"]["groups"]
    assert (part["data"], part["measure"], part["by"]) == ("bold.json", "reward", "the reward model")
    for name in ("sft", "dpo"):
        rows = read_jsonl(out / "safety" / f"bold.{name}.jsonl", Response)
        assert [row.prompt_id for row in rows] == [
            f"American_{group}-{at}" for group in ("actors", "actresses") for at in (0, 1)
        ]
        scores = shortness([], [row.text for row in rows])
        means = {group: one["mean"] for group, one in part["policies"][name]["means"].items()}
        assert means == {"American_actors": sum(scores[:2]) / 2, "American_actresses": sum(scores[2:]) / 2}
    first = (out / "report.json").read_bytes()
    unfinish(out)
    loaded.clear()
    asked: list[str] = []

    def noting(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
        asked.extend(prompt[-1]["content"] for prompt in prompts)
        return shortness(prompts, responses)

    run(config._replace(compare=dataclasses.replace(config.compare, resume=True)), BOTH | {"reward_model": noting})
    assert loaded == [] and (out / "report.json").read_bytes() == first
    assert not any("began" in text for text in asked)
