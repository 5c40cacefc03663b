"""Ranks that run out of memory: real ones, under a limit that the system holds, and errors from each phase."""

import json
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlhf.launcher import record
from rlhf.launcher.cause import Cause, cause_of, read_cause, write_cause
from rlhf.launcher.files import launch_folder
from rlhf.launcher.memory import next_setting, smaller
from rlhf.launcher.rank import RankFiles, read_mark
from rlhf.launcher.verdict import Lesson, Verdict, judge
from rlhf.records import Demonstration, make_id, write_jsonl
from tests import launch_cases as cases
from tests import ppo_cases, stages
from tests.tiny import tiny_policy

WIDE = 32_768  # of the feed-forward: about half a MiB of activations a token


def wide_policy(folder: Path) -> Path:
    """The tiny policy with one layer, and a feed-forward that is far too wide."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    tiny_policy(folder, max_length=512)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.num_hidden_layers, config.intermediate_size = 1, WIDE
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def one_long_row(path: Path, count: int = 32, long: int = 27) -> Path:
    """Short conversations and a single long one."""
    rows = []
    for n in range(count):
        text = "Thank you, that is very kind. " * (60 if n == long else 1)
        messages = [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": text}]
        rows.append(Demonstration(make_id("dem", messages), messages))
    write_jsonl(path, rows)
    return path


def peak_data(process: subprocess.Popen[str], place: Path) -> int:
    """The most private memory that rank 0 or 1 had while the job ran, in bytes, as RLIMIT_DATA counts it."""
    folder, most = launch_folder(place / "run"), 0
    while process.poll() is None:
        for rank in (0, 1):
            mark = read_mark(RankFiles(folder, rank))
            try:
                status = Path(f"/proc/{mark.pid}/status").read_text() if mark else ""
            except (OSError, psutil.Error):
                continue
            if found := re.search(r"VmData:\s+(\d+) kB", status):
                most = max(most, int(found[1]) * 1024)
        time.sleep(0.02)  # between two looks at what its processes hold
    return most


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_auto_halves_the_micro_batch_and_goes_on_to_the_same_result(tmp_path: Path) -> None:
    policy = wide_policy(tmp_path / "wide")
    data = one_long_row(tmp_path / "demonstrations.jsonl")
    values: dict[str, Any] = {"demonstrations": str(data), "max_length": 512, "max_steps": 4, "save_strategy": "steps"}
    values |= {"save_steps": 1, "optim": "sgd", "learning_rate": 0.5}
    places = [tmp_path / name for name in ("small", "auto")]
    for place in places:
        place.mkdir()
    small = {**values, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    undisturbed = cases.start(["--gpus", "2"], cases.sft(places[0], policy, **small))
    most = peak_data(undisturbed, places[0])
    assert undisturbed.returncode == 0, undisturbed.communicate()

    limit = most + 150 * 2**20  # four rows of 512 tokens take half a GiB more than two
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))  # of this process too: what it starts takes it over
    try:
        process = cases.start(
            ["--gpus", "2", "--auto", "true"],
            cases.sft(places[1], policy, **values, per_device_train_batch_size=4),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    out, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == 0, err
    assert re.search(
        r"rlhf: launch: rank \d on \S+ ran out of memory: forward of the policy, step 3, 4 rows of 512 tokens; "
        r"[\d.]+ [GM]iB asked for; its log: \S+/rank-\d.log",
        err,
    )
    assert err.count("ran out of memory") == 1 and "Traceback" not in out + err
    less = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    assert f"launch: goes on from the newest whole checkpoint with {less}; the result stays" in out
    assert "restart" not in out
    left, right = (
        [(row["step"], row["loss"], row["grad_norm"]) for row in cases.rows(place / "run") if "loss" in row]
        for place in places
    )
    assert [row[0] for row in left] == [1, 2, 3, 4]
    assert left == [pytest.approx(row, rel=1e-5) for row in right]
    theirs = cases.weights(places[0] / "run")
    for name, weight in cases.weights(places[1] / "run").items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5, msg=name)
    recorded = [json.loads((place / "run" / "run.json").read_text()) for place in places]
    assert recorded[0]["id"] == recorded[1]["id"]  # as if it had been started so
    assert record.remembered(launch_folder(places[1] / "run")) == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    assert cases.alive(tmp_path) == []


# ---- The cause, of real errors


def allocate() -> None:
    """As a CPU that has no more: PyTorch's own error, for more than any machine has."""
    torch.empty(2**60, dtype=torch.uint8)


def _cause(verb: str, act: Any) -> Cause:
    try:
        act()
    except BaseException as error:
        cause = cause_of(error, verb, "step 3")
        assert cause is not None, error
        return cause
    raise AssertionError("nothing failed")


def _fails(*_: Any, **__: Any) -> None:
    allocate()


def test_the_error_s_own_words_and_others(tmp_path: Path) -> None:
    cause = _cause("sft", allocate)
    assert str(cause) == "training of the policy, step 3; 1073741824.00 GiB asked for"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
    found = cause_of(gpu, "reward")
    assert found == Cause("reward model", "training", asked="2.00 GiB")
    assert cause_of(MemoryError(), "sft") == Cause("policy", "training")
    assert cause_of(ValueError("no such thing"), "sft") is None
    wrapped = SystemExit(2)
    wrapped.__context__ = ValueError("its model cannot be loaded")
    wrapped.__context__.__cause__ = gpu
    assert cause_of(wrapped, "sft") == Cause("policy", "training", asked="2.00 GiB")
    files = RankFiles(tmp_path, 3)
    files.memory.parent.mkdir()
    assert read_cause(files.memory) is None
    write_cause(files.memory, cause)
    assert read_cause(files.memory) == cause
    files.forget()
    assert read_cause(files.memory) is None


@pytest.fixture
def ppo(policy_folder: Path, tmp_path: Path) -> Any:
    """A PPOTrainer that has not begun."""
    return ppo_cases.trainer(policy_folder, tmp_path / "ppo", num_ppo_epochs=1, max_steps=1, disable_tqdm=True)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("generation", "rollout of the policy"),
        ("policy", "scoring of the policy"),
        ("value", "scoring of the value model"),
        ("reference", "scoring of the reference model"),
        ("reference's logits", "scoring of the reference model"),
        ("loss", "forward of the policy"),
        ("backward", "backward of the policy and value model"),
        ("step", "optimizer step of the policy and value model"),
        ("saving", "saving of the policy and value model"),
        ("prepare", "loading of the policy"),
        ("evaluation", "rollout of the policy, in the evaluation"),
    ],
)
def test_each_phase_of_ppo(ppo: Any, monkeypatch: pytest.MonkeyPatch, where: str, told: str) -> None:
    networks = ppo.model
    act = ppo.train
    if where == "generation":
        monkeypatch.setattr("rlhf.ppo.engines.decode_noted", _fails)
    elif where == "evaluation":
        monkeypatch.setattr("rlhf.ppo.engines.decode_noted", _fails)
        act = lambda: ppo.evaluate(ppo_cases.prompts(4))  # noqa: E731
    elif where in ("policy", "loss"):

        def hook(*_: Any) -> None:
            if where == "policy" or torch.is_grad_enabled():
                allocate()

        # The decode loop calls the trunk too; only what is weighed passes PolicyAndValue.
        networks.register_forward_pre_hook(lambda *_: networks.policy.model.register_forward_pre_hook(hook) and None)
    elif where == "value":
        networks.value_model.base_model.register_forward_pre_hook(_fails)
    elif where == "reference":
        ppo.reference.model.base_model.register_forward_pre_hook(_fails)
    elif where == "reference's logits":
        ppo.reference.model.lm_head.register_forward_pre_hook(_fails)
    elif where == "backward":
        networks.policy.lm_head.weight.register_hook(_fails)
    elif where == "step":
        monkeypatch.setattr(torch.optim.AdamW, "_init_group", _fails)  # where AdamW makes its moments
    elif where == "saving":
        monkeypatch.setattr(type(networks.policy), "save_pretrained", _fails)
        act = lambda: ppo.save_model(str(ppo.args.output_dir))  # noqa: E731
    elif where == "prepare":
        monkeypatch.setattr("accelerate.Accelerator.prepare_model", _fails)
    cause = _cause("ppo", act)
    assert str(cause).startswith(told)
    assert cause.asked == "1073741824.00 GiB"
    if where in ("policy", "value", "reference", "loss", "backward"):
        assert cause.rows >= 1 and cause.width > 8


def test_a_thread_of_ppo(two_threads: None, ppo: Any) -> None:
    """The value model's, which trains beside the policy."""
    assert ppo.abreast
    ppo.model.value_model.score.weight.register_hook(_fails)
    cause = _cause("ppo", ppo.train)
    assert str(cause).startswith("backward of the policy and value model")
    assert cause.rows >= 1
    assert cause.width > 8


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("forward", "forward of the policy"),
        ("reference", "forward of the reference model"),
        ("backward", "backward of the policy"),
        ("load", "loading of the policy"),
    ],
)
def test_each_phase_of_dpo(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, told: str
) -> None:
    from trl import DPOTrainer

    begin = DPOTrainer.train

    def train(self: Any, *args: Any, **values: Any) -> Any:
        if where == "reference":
            self.ref_model.register_forward_pre_hook(_fails)
        elif where == "forward":
            self.model.register_forward_pre_hook(_fails)
        else:
            next(self.model.parameters()).register_hook(_fails)
        return begin(self, *args, **values)

    if where == "load":
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", _fails)
    else:
        monkeypatch.setattr(DPOTrainer, "train", train)
    data = stages.preferences(tmp_path / "preferences.jsonl")
    values = {**stages.TRAINING, "preferences": data, "model_name_or_path": policy_folder, "num_kl_prompts": 0}
    cause = _cause("dpo", lambda: stages.run("dpo", **values, use_cpu=True, output_dir=tmp_path / "run"))
    assert str(cause).startswith(told)
    if where != "load":
        assert cause.rows == 8  # four pairs


# ---- What then


def test_what_is_made_smaller() -> None:
    def batch(verb: str = "sft", cause: Any = None, **settings: Any) -> Any:
        return smaller(verb, settings, cause)

    assert batch() == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    for size, steps, less, more in [(6, 1, 3, 2), (5, 2, 1, 10), (9, 1, 3, 3), (2, 8, 1, 16)]:
        assert batch(per_device_train_batch_size=size, gradient_accumulation_steps=steps) == {
            "per_device_train_batch_size": less,
            "gradient_accumulation_steps": more,
        }
        assert less * more == size * steps
    assert batch(per_device_train_batch_size=1) is None
    for phase in ("loading", "optimizer step", "saving"):
        assert batch(cause=Cause("policy", phase)) is None
    assert batch(cause=Cause("policy", "forward", evaluating=True)) == {"per_device_eval_batch_size": 4}
    assert batch("sample", batch_size=8) is None

    tokens = Cause("value model", "backward", rows=8, width=100)
    assert batch("ppo", tokens) == {"micro_batch_tokens": 400}  # of 16384 that it might have had
    assert batch("ppo", tokens, micro_batch_tokens=400) is None  # was not cut by it
    assert batch("ppo", Cause("policy", "forward", rows=1, width=900)) is None
    assert batch("ppo") == {"micro_batch_tokens": 8192}
    assert smaller("ppo", {}, on_cpu=True) == {"micro_batch_tokens": 320}
    assert smaller("ppo", {"value_model_kind": "shared"}, on_cpu=True) == {"micro_batch_tokens": 512}
    assert batch("ppo", Cause("policy", "rollout"), per_device_train_batch_size=16) == {"generation_batch_size": 8}
    assert batch("ppo", Cause("reward model", "scoring")) == {"per_device_eval_batch_size": 32}
    assert batch("ppo", Cause("policy", "rollout"), generation_batch_size=1) is None


def test_what_helps_where_a_smaller_batch_does_not() -> None:
    def advice(phase: str, verb: str = "sft", **values: Any) -> str:
        return next_setting(verb, values, 0, None, 2, Cause("policy", phase))

    assert advice("optimizer step") == "rlhf launch --zero 1"
    assert advice("optimizer step", verb="ppo") == "rlhf launch --zero 1"  # not gradient checkpointing
    assert advice("forward") == (
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 (the global batch stays)"
    )
    one = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
    assert advice("backward", **one) == "--gradient_checkpointing true (a third slower)"
    assert next_setting("sample", {"batch_size": 8}, 0, None, 1) == "--batch_size 4"
    assert next_setting("sample", {"batch_size": 1}, 0, None, 1) == "a smaller model"


def test_the_verdict_of_several_nodes() -> None:
    fell, died = Lesson(may_help=True), Lesson()
    short = Lesson(out_of_memory=True, changes={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    worse = Lesson(out_of_memory=True, changes={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8})
    least = Lesson(out_of_memory=True)
    assert judge([fell, short], auto=True, restarts_left=0) == Verdict(go=True, changes=short.changes)
    assert judge([worse, short], auto=True, restarts_left=0) == Verdict(go=True, changes=worse.changes)
    assert judge([short, least], auto=True, restarts_left=3) == Verdict(go=False)
    assert judge([fell, short], auto=False, restarts_left=3) == Verdict(go=False)
    assert judge([fell, died], auto=True, restarts_left=1) == Verdict(go=True, counts=True)
    assert judge([fell], auto=False, restarts_left=0) == Verdict(go=False)
    assert judge([died], auto=False, restarts_left=1) == Verdict(go=False)


def test_a_record_takes_other_settings_and_refuses_what_it_does_not_know(policy_folder: Path, tmp_path: Path) -> None:
    from rlhf.errors import UserError

    record.take_settings(tmp_path / "run", {"seed": 1})  # no run was begun
    data = stages.demonstrations(tmp_path / "demonstrations.jsonl")
    values = {**stages.TRAINING, "demonstrations": data, "model_name_or_path": policy_folder, "max_steps": 1}
    first = stages.run("sft", **values, use_cpu=True, output_dir=tmp_path / "run")
    less = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    other = stages.run("sft", **{**values, **less}, use_cpu=True, output_dir=tmp_path / "other")
    assert first.id != other.id
    record.take_settings(tmp_path / "run", less)
    path = tmp_path / "run" / "run.json"
    taken = json.loads(path.read_text())
    assert taken["id"] == other.id and taken["config"]["per_device_train_batch_size"] == 2
    path.write_text(json.dumps({**taken, "id": "sft-000000000000"}))
    with pytest.raises(UserError, match="was written by another version, or edited, so that --auto cannot change"):
        record.take_settings(tmp_path / "run", less)

    record.remember(tmp_path, {"micro_batch_tokens": 512})
    record.remember(tmp_path, less)
    assert record.remembered(tmp_path) == {"micro_batch_tokens": 512, **less}
    record.forget(tmp_path)
    assert record.remembered(tmp_path) == {}
