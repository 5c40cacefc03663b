"""Prompts that a policy or a judge was trained on end a comparison before it begins."""

import json
from pathlib import Path

import pytest

from rlhf.compare.held_out import check_held_out
from rlhf.errors import UserError
from rlhf.records import Demonstration, Preference, Prompt, write_jsonl
from rlhf.runs import open_run

QUESTION = "Could you tell me please how I can send back the blue shoes that I bought in your shop on Monday"


def _prompt(id: str, text: str) -> Prompt:
    return Prompt(id, [{"role": "user", "content": text}])


def _trained(folder: Path, stage: str, texts: list[str], **extra: Path) -> Path:
    """A run of a stage that trained on these prompts."""
    folder.mkdir(parents=True)
    rows = folder.parent / f"{stage}.rows.jsonl"
    user = [[{"role": "user", "content": text}] for text in texts]
    name = {"sft": "demonstrations", "reward": "preferences", "ppo": "prompts"}[stage]
    records: list[object] = []
    for at, prompt in enumerate(user):
        answer = [{"role": "assistant", "content": "Yes"}]
        if stage == "sft":
            records.append(Demonstration(f"d{at}", [*prompt, *answer]))
        elif stage == "ppo":
            records.append(Prompt(f"t{at}", prompt))
        else:
            no = [{"role": "assistant", "content": "No"}]
            records.append(Preference(f"r{at}", f"g{at}", prompt, answer, no))
    write_jsonl(rows, records)
    config = {name: str(rows)} | {key: str(path) for key, path in extra.items()}
    with open_run(stage, folder, config, {name: rows} | dict(extra)) as run:
        run.finish()
    return folder


def test_held_out_prompts_pass(tmp_path: Path) -> None:
    sft = _trained(tmp_path / "sft", "sft", ["Else", "More"])
    ppo = _trained(tmp_path / "ppo", "ppo", ["Other"], model=sft)
    found = check_held_out([_prompt("p", QUESTION)], "prompts.jsonl", {"sft": str(sft), "ppo": str(ppo)})
    assert found.numbers == {
        "files": [{"file": "sft.rows.jsonl", "num_prompts": 2}, {"file": "ppo.rows.jsonl", "num_prompts": 1}],
        "not_found": [],
        "unknown": [],
    }


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_prompt_that_an_ancestor_trained_on(tmp_path: Path, stage: str) -> None:
    run = _trained(tmp_path / stage, stage, ["Else", QUESTION.upper()])
    prompts = [_prompt("p1", "Hello"), _prompt("p2", QUESTION)]
    with pytest.raises(UserError) as caught:
        check_held_out(prompts, "prompts.jsonl", {"mine": str(run)})
    assert str(caught.value) == (
        f"prompts.jsonl: 1 prompt is also in {tmp_path / stage}.rows.jsonl, which the {stage} run of mine read: the "
        "first is `p2`, 'Could you tell me please how I can send back the blue shoes ...'; compare on prompts held "
        "out from training"
    )


def test_a_prompt_that_nearly_was_trained_on(tmp_path: Path) -> None:
    # 21 words are 19 triples: another last word changes one, so 18 of 20 are shared.
    run = _trained(tmp_path / "sft", "sft", [QUESTION.replace("Monday", "Tuesday")])
    with pytest.raises(UserError, match=r"1 prompt is nearly in .*`p`.* shares 90% of its word triples with 'Could"):
        check_held_out([_prompt("p", QUESTION)], "prompts.jsonl", {"sft": str(run)})
    other = _trained(tmp_path / "more" / "sft", "sft", [QUESTION.replace("bought", "saw")])  # three triples: 16 of 22
    assert len(check_held_out([_prompt("p", QUESTION)], "prompts.jsonl", {"sft": str(other)}).files) == 1


def test_files_named_beside(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [_prompt("t", "hello ")])
    with pytest.raises(UserError, match=r"2 prompts are also in .*train.jsonl, named in train_data: the first is `a`"):
        check_held_out([_prompt("a", "Hello"), _prompt("b", "HELLO")], "p.jsonl", {}, [str(tmp_path / "train.jsonl")])
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        check_held_out([_prompt("a", "Hello")], "p.jsonl", {}, [str(tmp_path / "none.jsonl")])


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    run = _trained(tmp_path / "sft", "sft", ["Else"])
    (tmp_path / "sft.rows.jsonl").unlink()
    found = check_held_out([_prompt("p", QUESTION)], "p.jsonl", {"sft": str(run), "hub": "owner/model"})
    assert (found.files, found.not_found, found.unknown) == ([], ["sft: demonstrations"], ["hub"])


def test_evaluation_data_is_no_training(tmp_path: Path) -> None:
    rows = tmp_path / "eval.jsonl"
    write_jsonl(rows, [_prompt("t", QUESTION)])
    (tmp_path / "ppo").mkdir()
    with open_run("ppo", tmp_path / "ppo", {"eval_prompts": str(rows)}, {"eval_prompts": rows}) as run:
        run.finish()
    assert json.loads((tmp_path / "ppo" / "run.json").read_text())["data_sha256"].keys() == {"eval_prompts"}
    assert check_held_out([_prompt("p", QUESTION)], "p.jsonl", {"ppo": str(tmp_path / "ppo")}).files == []
