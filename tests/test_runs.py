"""Run folders: never overwritten, never half-made, resumed only with the same settings."""

import json
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.records import Run
from rlhf.runs import file_sha256, open_run, read_run


def _finish(folder: Path, file: Path, **config: object) -> Run:
    with open_run("sft", folder, config, {"data": file}) as run:
        run.log(step=1, loss=0.5)
        return run.finish(loss=0.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text("abc")
    return tmp_path / "data.jsonl"


def test_a_run_records_what_it_did(tmp_path: Path, data: Path) -> None:
    run = _finish(tmp_path / "r", data, learning_rate=1)
    assert read_run(tmp_path / "r") == run
    # sha256("abc"), FIPS 180-2's own example
    assert run.data_sha256["data"].startswith("ba7816bf8f01cfea414140de5dae2223")
    assert run.finished
    assert run.metrics == {"loss": 0.5}
    assert run.versions["torch"]
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}


def test_a_run_knows_its_parents(tmp_path: Path, data: Path) -> None:
    first = _finish(tmp_path / "a", data)
    (tmp_path / "a" / "out.jsonl").write_text("x")
    inputs = {"model": tmp_path / "a", "rows": tmp_path / "a" / "out.jsonl", "none": None}
    with open_run("dpo", tmp_path / "b", {}, inputs) as run:
        second = run.finish()
    assert second.parents == [first.id]
    assert second.data_sha256 == {"rows": file_sha256(tmp_path / "a" / "out.jsonl")}


def test_the_same_work_has_the_same_id_wherever_it_lies(tmp_path: Path, data: Path) -> None:
    (tmp_path / "copy.jsonl").write_text("abc")
    one = _finish(tmp_path / "a", data, seed=1, output_dir="a", data=str(data))
    two = _finish(tmp_path / "b", tmp_path / "copy.jsonl", seed=1, output_dir="b", data=str(tmp_path / "copy.jsonl"))
    other = _finish(tmp_path / "c", data, seed=2, output_dir="c")
    assert one.id == two.id != other.id


def test_a_finished_run_is_never_overwritten(tmp_path: Path, data: Path) -> None:
    _finish(tmp_path / "r", data)
    before = (tmp_path / "r" / "run.json").read_bytes()
    for resume in (False, True):
        with (
            pytest.raises(UserError, match="holds a finished sft run; remove it, or choose another"),
            open_run("sft", tmp_path / "r", {}, {}, resume),
        ):
            pass
    assert (tmp_path / "r" / "run.json").read_bytes() == before


def test_an_unfinished_run_needs_resume_and_the_same_settings(tmp_path: Path, data: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run("sft", tmp_path / "r", {"seed": 1}, {"data": data}):
        raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match=r"unfinished sft run; go on with --resume true"),
        open_run("sft", tmp_path / "r", {"seed": 1}, {"data": data}),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"started with other settings or data \(seed\)"),
        open_run("sft", tmp_path / "r", {"seed": 2}, {"data": data}, True),
    ):
        pass
    with open_run("sft", tmp_path / "r", {"seed": 1}, {"data": data}, True) as run:
        run.finish()
    assert read_run(tmp_path / "r").finished


def test_a_user_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend it"), open_run("sft", tmp_path / "deep" / "r", {}, {}):
        raise UserError("mend it")
    assert not (tmp_path / "deep" / "r").exists()


def test_a_full_disk_is_one_line_and_leaves_no_folder(full_disk: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no space left on the disk; free some, then go on"),
        open_run("sft", full_disk / "r", {}, {}) as run,
    ):
        (run.path / "model.safetensors").write_bytes(b"x" * 2_000_000)
    assert not (full_disk / "r").exists()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a run folder"), open_run("sft", tmp_path / "mine", {}, {}):
        pass
    with pytest.raises(UserError, match="is a file"), open_run("sft", tmp_path / "file", {}, {}):
        pass
    with pytest.raises(UserError, match="cannot be made"), open_run("sft", tmp_path / "file" / "r", {}, {}):
        pass
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path / "mine")
