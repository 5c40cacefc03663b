"""`rlhf launch`: what it starts, what it writes, what it refuses before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.launcher.command import with_resume
from rlhf.launcher.files import deepspeed_settings, launch_folder
from rlhf.launcher.settings import read_settings, split_command
from tests import launch_cases as cases


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_train_with_a_log_each_and_one_console(policy_folder: Path, tmp_path: Path) -> None:
    done = cases.launch(["--gpus", "2", "--zero", "2"], cases.sft(tmp_path, policy_folder))
    assert done.returncode == 0, done.stderr
    folder = launch_folder(tmp_path / "run")
    logs = {path.name: path.read_text() for path in (folder / "logs").glob("rank-*.log")}
    assert logs.keys() == {"rank-0.log", "rank-1.log"}
    assert done.stdout == logs["rank-0.log"]
    assert "train loss" in logs["rank-0.log"]
    assert "train loss" not in logs["rank-1.log"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["usage"]["num_processes"] == 2
    assert json.loads((folder / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 2
    assert (
        f"-m rlhf sft --config {tmp_path}/sft.yaml --deepspeed {folder}/deepspeed.json"
        in (folder / "command.sh").read_text()
    )
    assert cases.alive(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sampling_is_one_process_and_an_error_of_the_verb_is_passed_on(policy_folder: Path, tmp_path: Path) -> None:
    from tests import stages

    prompts = stages.prompts(tmp_path / "prompts.jsonl", 2)
    flags = ["--policies", str(policy_folder), "--prompts", str(prompts), "--max_new_tokens", "2"]
    done = cases.launch([], ["sample", *flags, "--output_dir", str(tmp_path / "run"), "--num_response", "2"])
    assert done.returncode == 2
    assert "rlhf: the command line: unknown flag `--num_response`" in done.stdout
    assert "rank 0 on" in done.stderr
    done = cases.launch([], ["sample", *flags, "--output_dir", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    assert "num responses" in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft"], "name the verb after two dashes"),
        (["--"], "no verb after `--`"),
        (["--", "exprot"], "`exprot` cannot be launched; it takes one of pretrain, sft"),
        (["--", "rewards"], "`rewards` cannot be launched, did you mean `reward`?"),
        (["--gpu", "2", "--", "sft"], "unknown flag `--gpu`, did you mean `--gpus`?"),
        (["--gpus", "two", "--", "sft"], "gpus: invalid int value: 'two'"),
        (["--gpus", "0", "--", "sft"], "gpus: 0 is no number of GPUs; set --gpus 1 or more"),
        (["--max_restarts", "-1", "--", "sft"], "max_restarts: -1 is below 0; set 0 or more"),
        (["--hang_seconds", "0", "--", "sft"], "hang_seconds: 0 is no time; set some seconds"),
        (["--gpus", "2", "--", "sample", "--output_dir", "x"], "gpus: sample is one process and uses one GPU"),
        (["--zero", "2", "--", "sample", "--output_dir", "x"], "zero: sample trains nothing"),
        (["--zero", "4", "--", "sft"], "zero: 4 is no ZeRO stage; choose 0 (plain data parallel), 1, 2 or 3"),
        (["--zero", "3", "--offload", "disk", "--", "sft"], "offload: `disk` is not one of optimizer, params"),
        (["--zero", "2", "--offload", "params", "--", "sft"], "offload: params needs ZeRO-3"),
        (["--offload", "optimizer", "--", "sft"], "offload: optimizer needs ZeRO"),
        (["--zero", "2", "--", "sft", "--deepspeed", "x.json"], "zero: the verb has a --deepspeed file of its own"),
        (["--nodes", "0", "--", "sft"], "nodes: 0 is no number of nodes; set --nodes 1 or more"),
        (["--nodes", "2", "--", "sft"], "main_address: is not set, and several nodes must know where to meet"),
        (["--nodes", "2", "--main_address", "a", "--", "sft"], "node_rank: is not set; give each node its number"),
        (
            ["--nodes", "2", "--main_address", "a", "--node_rank", "2", "--", "sft"],
            "node_rank: 2 is none of 2 nodes; they count from 0 to 1",
        ),
        (["--submit", "true", "--", "sft"], "submit: is for a SLURM job; add --slurm true"),
        (["--slurm", "true", "--", "sft"], "gpus: is not set, and this machine is not the job's"),
        (["--", "sft", "--config"], "--config: needs the path of a YAML file"),
        (["--", "sft", "--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["--", "compare", "--output_dir", ""], "output_dir: is not set"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", *argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("rlhf: ") and error.count("\n") == 1
    assert message in error


def test_help_lists_launch_s_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "rlhf launch [--key value ...] -- VERB" in out and "--hang_seconds" in out


def test_the_verb_s_settings_are_its_yaml_under_its_flags(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("output_dir: runs/a\nlearning_rate: 1.0e-5\neval_demonstrations:\n")
    argv = ["--config", str(tmp_path / "sft.yaml"), "--output_dir=runs/b", "--lora_target_modules", "q", "v"]
    assert read_settings("sft", [*argv, "--bf16", "false", "--use_peft"]) == {
        "output_dir": "runs/b",
        "learning_rate": 1e-5,
        "lora_target_modules": ["q", "v"],
        "bf16": False,
        "use_peft": True,
    }
    assert split_command(["--gpus", "2", "--", "sft", *argv]) == (["--gpus", "2"], "sft", argv)


def test_a_restart_resumes_whatever_was_said() -> None:
    assert with_resume(["sft", "--seed", "1"]) == ["sft", "--seed", "1", "--resume", "true"]
    assert with_resume(["sft", "--resume", "false", "--seed", "1"]) == ["sft", "--seed", "1", "--resume", "true"]
    assert with_resume(["sft", "--resume=false"]) == ["sft", "--resume", "true"]


def test_offload_goes_into_the_deepspeed_file() -> None:
    def offloaded(zero: int, offload: str | None) -> dict[str, Any]:
        return (deepspeed_settings(zero, offload) or {}).get("zero_optimization", {})

    assert deepspeed_settings(0, None) is None
    assert "offload_optimizer" not in offloaded(2, None)
    assert offloaded(2, "optimizer")["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in offloaded(3, "optimizer")
    both = offloaded(3, "params")
    assert both["offload_param"]["device"] == both["offload_optimizer"]["device"] == "cpu"
