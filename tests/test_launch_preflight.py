"""Preflight: every mistake that can be seen before a model is loaded, all at once, one line each."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.launcher import preflight
from rlhf.launcher.preflight import Place, bytes_needed, check, model_size
from tests import launch_cases as cases
from tests.tiny import tiny_policy

HERE = Place(num_ranks=2, num_gpus=None, address="127.0.0.1", port=0)


@pytest.fixture
def settings(tmp_path: Path, policy_folder: Path) -> dict[str, Any]:
    """Of an sft run in which nothing is wrong."""
    cases.sft(tmp_path, policy_folder)
    return json.loads((tmp_path / "sft.yaml").read_text())


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_nothing_is_wrong(settings: dict[str, Any]) -> None:
    assert check("sft", settings, HERE) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"demonstrations": "no.jsonl"}, "demonstrations: no.jsonl: no such file; check the path"),
        ({"model_name_or_path": "/no/model"}, "model_name_or_path: /no/model: no such model folder"),
        ({"policies": ["/no/one", "/no/two"]}, "policies: /no/one: no such model folder"),
        ({"reward": ["/no/reward"]}, "reward: /no/reward: no such model folder"),
        ({"max_length": 512}, "max_length: 512 tokens do not fit the context of"),
        ({"output_dir": "README.md"}, "README.md: is a file; choose another --output_dir"),
    ],
)
def test_what_is_wrong_with_the_settings(settings: dict[str, Any], values: dict[str, Any], message: str) -> None:
    (mistake,) = check("sft", {**settings, **values}, HERE)
    assert mistake.startswith(message)


def test_rewards_that_are_no_folders_are_asked_later(settings: dict[str, Any]) -> None:
    assert check("ppo", {**settings, "reward": ["http://localhost:1/", "tests.ppo_cases:count_e"]}, HERE) == []


def test_all_mistakes_come_at_once_with_exit_code_2(
    tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = cases.sft(tmp_path, policy_folder, demonstrations="no.jsonl", max_length=1000)
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", "--gpus", "2", "--", *verb])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("rlhf: ") for line in lines)
    assert not (tmp_path / "run.launch").exists()


def test_fewer_gpus_than_asked_for() -> None:
    with pytest.raises(preflight.UserError, match="gpus: 8 asked for and 4 there; set --gpus 4, or make more visible"):
        preflight.check_gpus(Place(8, 4, "127.0.0.1", 0))


def test_a_port_in_use(settings: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (mistake,) = check("sft", settings, Place(2, None, "127.0.0.1", port))
        assert mistake.startswith(f"main_address or main_port: port: {port} on 127.0.0.1 cannot be used")
        assert mistake.endswith("choose another --main_port")
        assert check("sft", settings, Place(2, None, "127.0.0.1", port, is_first=False)) == []


def test_a_tokenizer_that_is_not_the_model_s(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_policy(tmp_path / "model")
    settings["model_name_or_path"] = str(model)
    _edit(model / "config.json", pad_token_id=5000)
    (mistake,) = check("sft", settings, HERE)
    assert "has pad_token_id 5000 and vocab_size 320; set pad_token_id to the tokenizer's pad" in mistake
    _edit(model / "config.json", pad_token_id=0, vocab_size=100)
    (mistake,) = check("sft", settings, HERE)
    assert "its tokenizer has ids up to 319 and the model 100 rows; take the tokenizer files that came with" in mistake


def test_the_disk_is_too_small(settings: dict[str, Any], full_disk: Path) -> None:
    (full_disk / "ballast").write_bytes(b"x" * 600_000)
    settings = {**settings, "output_dir": str(full_disk / "runs" / "sft"), "save_strategy": "steps"}
    (mistake,) = check("sft", settings, HERE)
    assert "are needed for 2 checkpoints of" in mistake
    assert "lower --save_total_limit, or set --save_only_model true" in mistake
    assert check("sft", {**settings, "save_strategy": "no"}, HERE) == []


def test_bytes_of_checkpoints_by_hand(policy_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    count = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(policy_folder).parameters())
    assert model_size(policy_folder) == count

    def needed(**values: Any) -> float:
        return bytes_needed({"model_name_or_path": str(policy_folder), **values})[0] / count

    assert needed(save_strategy="no") == 4  # the model in float32
    assert needed() == 4 + 2 * (4 + 8)  # and two checkpoints with Adam's moments
    assert needed(save_total_limit=3) == 4 + 4 * 12
    assert needed(save_only_model=True) == 4 + 2 * 4
    assert needed(deepspeed="x", bf16=True) == 2 + 2 * (2 + 2 + 4 + 8)
    assert needed(use_peft=True) == 0
    assert bytes_needed({"model_name_or_path": "owner/name"})[0] == 0


def test_a_real_checkpoint_is_as_large(policy_folder: Path, tmp_path: Path) -> None:
    """One rank, float32, Adam: 12 bytes a weight, with a few kilobytes of other files."""
    from tests import stages

    data = stages.demonstrations(tmp_path / "d.jsonl")
    values = {**stages.TRAINING, "demonstrations": data, "model_name_or_path": policy_folder, "max_steps": 1}
    stages.run("sft", **values, output_dir=tmp_path / "run", save_strategy="steps", save_steps=1)
    folder = tmp_path / "run" / "checkpoint-1"
    written = sum(path.stat().st_size for path in folder.iterdir() if path.name != "tokenizer.json")
    assert written == pytest.approx(12 * model_size(policy_folder), rel=0.15)
