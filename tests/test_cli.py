"""The command line: one line and exit code 2 for every mistake, a table and the next command at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf import cli
from tests import stages
from tests.cli_cases import fails


def _rlhf(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlhf", *argv], capture_output=True, text=True, check=False, cwd=cwd)


def test_help_names_every_verb() -> None:
    done = _rlhf("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compar"], "unknown verb `compar`, did you mean `compare`?"),
        (["sft", "--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["sample", "--num_response", "3"], "unknown flag `--num_response`"),
        (["export", "--tasks", "no.jsonl", "--rankings", "no.jsonl"], "no.jsonl: no such file"),
        (["recipe"], "no recipe named"),
        (["recipe", "configs/recipes/hh_harmless.yaml", "--sft.learning_rat", "1"], "unknown key `learning_rat`"),
        (["recipe", "configs/recipes/hh_harmless.yaml", "--kto.seed", "1"], "has no stage `kto`"),
        (["recipe", "configs/recipes/hh_harmless.yaml", "--seed", "1"], "unknown flag `--seed`"),
        (["recipe", "configs/recipes/hh_harmless.yaml", "--sft.seed"], "--sft.seed: needs a value"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in fails(capsys, *argv)


def test_a_run_ends_with_a_table_and_the_next_command(
    tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = stages.prompts(tmp_path / "prompts.jsonl")
    flags = ["--num_responses", "2", "--max_new_tokens", "4", "--output_dir", str(tmp_path / "run")]
    cli.main(["sample", "--policies", str(policy_folder), "--prompts", str(prompts), *flags])
    out = capsys.readouterr().out
    assert "num responses" in out
    assert f"next: rlhf label --tasks {tmp_path / 'run'}/tasks.jsonl" in out
    assert "holds a finished sample run" in fails(
        capsys, "sample", "--policies", str(policy_folder), "--prompts", str(prompts), *flags
    )


def test_configs_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["configs"])
    listed = capsys.readouterr().out.split()
    assert {"configs/sft.yaml", "configs/recipes/hh_harmless.yaml", "configs/templates/chatml.jinja"} <= set(listed)
    cli.main(["configs", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "sft.yaml").is_file()
    assert "is not empty" in fails(capsys, "configs", str(tmp_path / "mine"))


def test_every_shipped_config_is_a_verb_s_or_a_recipe() -> None:
    root = Path(__file__).parents[1] / "configs"
    assert {path.stem for path in root.glob("*.yaml")} <= set(cli.VERBS)


def test_run_json_is_readable(tmp_path: Path, policy_folder: Path) -> None:
    prompts = stages.prompts(tmp_path / "prompts.jsonl", 2)
    stages.run("sample", policies=[str(policy_folder)], prompts=prompts, max_new_tokens=4, output_dir=tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["stage"] == "sample"
    assert run["data_sha256"].keys() == {"prompts"}
