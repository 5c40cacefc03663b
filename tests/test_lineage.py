"""Ancestors are found where the config says or beside the run, and said to be missing where they are not."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf.lineage import run_folder, trace
from rlhf.records import Run
from rlhf.runs import open_run


def _make(folder: Path, stage: str, files: tuple[str, ...] = (), **inputs: Path) -> Run:
    """A run that read `inputs` and wrote `files`."""
    config = {name: str(path) for name, path in inputs.items()}
    with open_run(stage, folder, config, dict(inputs)) as run:
        for name in files:
            (folder / name).write_text(f"{stage} {name}")
        return run.finish()


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Run]:
    """prepare -> sft -> sample -> export -> reward -> ppo, as run folders beside each other."""
    place = tmp_path / "runs"
    made = {"prepare": _make(place / "prepare", "prepare", ("demonstrations.jsonl", "prompts.jsonl"))}
    made["sft"] = _make(place / "sft", "sft", demonstrations=place / "prepare" / "demonstrations.jsonl")
    made["sample"] = _make(place / "sample", "sample", ("tasks.jsonl",), policy=place / "sft")
    made["export"] = _make(place / "export", "export", ("p.jsonl",), tasks=place / "sample" / "tasks.jsonl")
    made["reward"] = _make(place / "reward", "reward", model=place / "sft", preferences=place / "export" / "p.jsonl")
    made["ppo"] = _make(
        place / "ppo", "ppo", model=place / "sft", reward=place / "reward", prompts=place / "prepare" / "prompts.jsonl"
    )
    return made


def test_a_policy_goes_back_to_its_data(tmp_path: Path, tree: dict[str, Run]) -> None:
    lineage = trace(tmp_path / "runs" / "ppo")
    ids = list(lineage.runs)
    assert set(ids) == {run.id for run in tree.values()} and lineage.missing == []
    assert ids[-1] == tree["ppo"].id
    for name, run in tree.items():  # parents before children
        assert all(ids.index(parent) < ids.index(run.id) for parent in run.parents), name
    sft = lineage.runs[tree["sft"].id]
    assert lineage.data_file(sft, "demonstrations") == tmp_path / "runs" / "prepare" / "demonstrations.jsonl"


def test_a_checkpoint_is_of_its_run(tmp_path: Path, tree: dict[str, Run]) -> None:
    checkpoint = tmp_path / "runs" / "ppo" / "checkpoint-10"
    checkpoint.mkdir()
    assert run_folder(checkpoint) == tmp_path / "runs" / "ppo"
    assert list(trace(checkpoint).runs)[-1] == tree["ppo"].id


def test_runs_that_moved_together_are_found(tmp_path: Path, tree: dict[str, Run]) -> None:
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    lineage = trace(tmp_path / "elsewhere" / "ppo")
    assert len(lineage.runs) == 6 and lineage.missing == []
    sft = lineage.runs[tree["sft"].id]
    assert lineage.data_file(sft, "demonstrations") == tmp_path / "elsewhere" / "prepare" / "demonstrations.jsonl"


def test_what_was_removed_is_missing(tmp_path: Path, tree: dict[str, Run]) -> None:
    shutil.rmtree(tmp_path / "runs" / "export")
    lineage = trace(tmp_path / "runs" / "ppo")
    assert lineage.missing == [tree["export"].id]
    assert tree["sample"].id not in lineage.runs  # known to the export only


def test_a_run_made_anew_is_another(tmp_path: Path, tree: dict[str, Run]) -> None:
    place = tmp_path / "runs"
    shutil.rmtree(place / "reward")
    with open_run("reward", place / "reward", {"seed": 1}, {"model": place / "sft"}) as run:
        run.finish()
    assert trace(place / "ppo").missing == [tree["reward"].id]


def test_data_that_changed_is_not_that_data(tmp_path: Path, tree: dict[str, Run]) -> None:
    (tmp_path / "runs" / "prepare" / "demonstrations.jsonl").write_text("other")
    lineage = trace(tmp_path / "runs" / "sft")
    assert lineage.data_file(lineage.runs[tree["sft"].id], "demonstrations") is None


def test_a_model_from_elsewhere_has_no_lineage(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for path in (tmp_path / "model", "owner/model"):
        lineage = trace(path)
        assert (lineage.runs, lineage.missing) == ({}, [])


def test_a_strange_run_json_beside_is_passed_over(tmp_path: Path, tree: dict[str, Run]) -> None:
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "run.json").write_text(json.dumps({"name": "of another program"}))
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    assert len(trace(tmp_path / "elsewhere" / "ppo").runs) == 6
