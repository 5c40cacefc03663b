"""Run folders: never overwritten, never half-made, resumed only with the same settings."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.models import load_policy
from rlhf.records import Run
from rlhf.runs import file_sha256, open_run, read_run
from tests import ppo_cases as cases
from tests import stages


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


def test_labels_are_carried_from_run_to_run(tmp_path: Path, data: Path) -> None:
    """Whatever reads files or models of a run that labels are in has them in it too, however far down."""
    made = {}
    for name, labels in (("one", "aaa"), ("two", "bbb")):
        with open_run("export", tmp_path / name, {}, {"tasks": data}, labels_sha256=labels) as run:
            (run.path / "preferences.jsonl").write_text(name)
            made[name] = run.finish()
    inputs = {"preferences": tmp_path / "one" / "preferences.jsonl", "eval": tmp_path / "one" / "preferences.jsonl"}
    with open_run("reward", tmp_path / "reward", {}, inputs) as run:
        reward = run.finish()
    inputs = {
        "reward 0": tmp_path / "reward",
        "model": tmp_path / "nowhere",
        "data": tmp_path / "two" / "preferences.jsonl",
    }
    with open_run("ppo", tmp_path / "ppo", {}, inputs) as run:
        ppo = run.finish()
    assert made["one"].labels_sha256 == reward.labels_sha256 == ["aaa"]
    assert ppo.labels_sha256 == ["aaa", "bbb"]
    assert read_run(tmp_path / "ppo") == ppo
    assert made["one"].id != made["two"].id  # the same settings and files, other labels
    # What labels a run makes itself are its own, whatever it was made from.
    with open_run("export", tmp_path / "again", {}, inputs, labels_sha256="ccc") as run:
        assert run.run.labels_sha256 == ["ccc"]


def test_a_run_from_before_labels_were_named_has_none(tmp_path: Path, data: Path) -> None:
    _finish(tmp_path / "r", data)
    path = tmp_path / "r" / "run.json"
    old = json.loads(path.read_text())
    del old["labels_sha256"]
    path.write_text(json.dumps(old))
    assert read_run(tmp_path / "r").labels_sha256 == []


def test_a_figure_with_a_lone_surrogate_is_recorded(tmp_path: Path) -> None:
    with open_run("sft", tmp_path / "r", {}, {}) as run:
        run.finish(reason="lone \ud800")
    assert read_run(tmp_path / "r").metrics == {"reason": "lone \ud800"}


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


def test_a_saved_model_outlives_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend it"), open_run("sft", tmp_path / "r", {}, {}) as run:
        (run.path / "model.safetensors").write_bytes(b"x")
        (run.path / "tokenizer_config.json").write_text("{}")
        raise UserError("mend it")
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == b"x"
    assert not read_run(tmp_path / "r").finished


@pytest.mark.parametrize(("call", "trained"), [(1, False), (2, False), (3, True)])
def test_a_reward_that_fails_after_training_leaves_the_model_and_before_its_end_nothing(
    tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, call: int, trained: bool
) -> None:
    """Two rounds without checkpoints, then the evaluation: the reward's third call comes when the model is saved."""
    monkeypatch.setattr(cases, "FAIL_AT", [call])
    values = {key: value for key, value in cases.SETTINGS.items() if key not in ("use_cpu", "logging_nan_inf_filter")}
    prompts = stages.prompts(tmp_path / "prompts.jsonl", 12).read_text().splitlines(keepends=True)
    for name, rows in (("train", prompts[:8]), ("eval", prompts[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    with pytest.raises(UserError, match="the scorer fell over"):
        stages.run(
            "ppo",
            **{**values, "max_steps": 2, "save_strategy": "no"},
            prompts=tmp_path / "train.jsonl",
            eval_prompts=tmp_path / "eval.jsonl",
            reward=["tests.ppo_cases:fails_once"],
            model_name_or_path=policy_folder,
            output_dir=tmp_path / "run",
        )
    assert (tmp_path / "run").exists() == trained
    if trained:
        assert load_policy(str(tmp_path / "run")).max_length == 256
        assert not read_run(tmp_path / "run").finished


def test_weights_that_a_full_disk_cut_off_are_not_kept(
    tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds that transformers writes the tokenizer after the weights."""
    import transformers.modeling_utils

    def half(tensors: Any, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", half)
    with pytest.raises(UserError, match="no space left on the disk"):
        stages.run(
            "sft",
            **{**stages.TRAINING, "max_steps": 1, "save_strategy": "no"},
            demonstrations=stages.demonstrations(tmp_path / "demonstrations.jsonl"),
            model_name_or_path=policy_folder,
            output_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_while_its_record_was_first_written_begins_anew(tmp_path: Path, resume: bool) -> None:
    (tmp_path / ".run.json.partial").write_text('{"id": "sft-')
    with open_run("sft", tmp_path, {}, {}, resume) as run:
        run.finish()
    assert read_run(tmp_path).finished


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
