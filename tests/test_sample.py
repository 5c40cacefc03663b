"""sample: K responses a prompt, and a kill loses and doubles none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.records import Response, Task, read_jsonl
from tests import stages
from tests.tiny import tiny_policy


def _sample(tmp_path: Path, policies: list[Path], **values: Any) -> Any:
    prompts = stages.prompts(tmp_path / "prompts.jsonl")
    settings = {"num_responses": 3, "max_new_tokens": 8, "batch_size": 6, "output_dir": tmp_path / "run", **values}
    return stages.run("sample", policies=[str(path) for path in policies], prompts=prompts, **settings)


def test_every_prompt_gets_k_responses_from_every_policy(tmp_path: Path, policy_folder: Path) -> None:
    other = tiny_policy(tmp_path / "other", seed=1)
    run = _sample(tmp_path, [policy_folder, other])
    responses = read_jsonl(tmp_path / "run" / "responses.jsonl", Response)
    tasks = read_jsonl(tmp_path / "run" / "tasks.jsonl", Task)
    assert run.metrics["num_responses"] == len({response.id for response in responses}) == 6 * 3 * 2
    assert {response.run_id for response in responses} == {str(policy_folder), str(other)}
    assert [len(task.responses) for task in tasks] == [6] * 6
    assert not list((tmp_path / "run").glob("*.part"))


def _kill_after_first_batch(tmp_path: Path, policy: Path, prompts: Path) -> None:
    """A real process, killed by SIGKILL between two batches."""
    code = (
        "import os, signal, sys; import rlhf.sample as s; real = s.generate\n"
        "def dying(*a, **k):\n"
        "    for n, batch in enumerate(real(*a, **k)):\n"
        "        if n == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield batch\n"
        "s.generate = dying\n"
        "from rlhf.cli import main; main(sys.argv[1:])"
    )
    flags = ["--num_responses", "3", "--max_new_tokens", "8", "--batch_size", "6"]
    argv = [
        "sample",
        "--policies",
        str(policy),
        "--prompts",
        str(prompts),
        "--output_dir",
        str(tmp_path / "run"),
        *flags,
    ]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_killed_run_goes_on_without_loss_or_double(tmp_path: Path, policy_folder: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    _sample(tmp_path / "undisturbed", [policy_folder])
    prompts = stages.prompts(tmp_path / "prompts.jsonl")
    _kill_after_first_batch(tmp_path, policy_folder, prompts)
    (part,) = (tmp_path / "run").glob("*.part")
    kept = [json.loads(line) for line in part.open()]
    assert len(kept) == 2  # both batches that were done are on disk
    with part.open("a") as torn:
        torn.write('{"batch": 2, "responses": [{"id"')  # what a kill in the middle of a write leaves
    with pytest.raises(UserError, match="unfinished sample run; go on with --resume true"):
        _sample(tmp_path, [policy_folder])
    _sample(tmp_path, [policy_folder], resume=True)
    whole = (tmp_path / "undisturbed" / "run" / "responses.jsonl").read_bytes()
    assert (tmp_path / "run" / "responses.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_responses": 0}, "num_responses: must be at least 1"),
        ({"max_new_tokens": 256}, "leaves no room for a prompt"),
        ({"dtype": "float8"}, "dtype: `float8` is not one of auto, float32"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, policy_folder: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _sample(tmp_path, [policy_folder], **values)
    assert not (tmp_path / "run").exists()


def test_the_same_policy_twice_is_an_error(tmp_path: Path, policy_folder: Path) -> None:
    with pytest.raises(UserError, match="names the same policy twice"):
        _sample(tmp_path, [policy_folder, policy_folder])
