"""Ranks that are killed, stop, or see no number: two real processes that train, each ended by its own means."""

import atexit
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlhf.launcher.files import launch_folder
from rlhf.launcher.rank import RankFiles, read_mark
from tests import launch_cases as cases

LONG = {"max_steps": 30, "save_strategy": "steps", "save_steps": 5}
ZERO2 = ["--gpus", "2", "--zero", "2"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def when_at_step(process: subprocess.Popen[str], place: Path, step: int, act: Callable[[int], Any]) -> None:
    """Do something to rank 1's process (its id is given) as soon as its training is at a step."""
    files = RankFiles(launch_folder(place / "run"), 1)
    until = time.monotonic() + cases.PATIENCE
    while time.monotonic() < until:
        told = re.fullmatch(r"step (\d+)", files.beat.read_text()) if files.beat.is_file() else None
        mark = read_mark(files)
        if told and int(told[1]) >= step and mark:
            act(mark.pid)
            return
        if process.poll() is not None:
            raise AssertionError(f"the job ended before step {step}: {process.communicate()}")
        time.sleep(0.005)  # another process's step: nothing to wait on but its file
    raise AssertionError(f"rank 1 never came to step {step}")


@pytest.fixture(scope="module")
def undisturbed(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], Path]:
    """The run folder of a job that nobody disturbed, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(verb: str, own: list[str]) -> Path:
        key = (verb, *own)
        if key not in made:
            place = tmp_path_factory.mktemp("undisturbed")
            done = cases.launch(own, getattr(cases, verb)(place, policy_folder, **LONG))
            assert done.returncode == 0, done.stderr
            made[key] = place / "run"
        return made[key]

    return run


@pytest.mark.parametrize(("verb", "own"), [("sft", ZERO2), ("dpo", ["--gpus", "2", "--zero", "3"])], ids=["sft", "dpo"])
def test_a_killed_rank_is_restarted_to_the_same_result(
    undisturbed: Any, policy_folder: Path, tmp_path: Path, verb: str, own: list[str]
) -> None:
    process = cases.start([*own, "--max_restarts", "1"], getattr(cases, verb)(tmp_path, policy_folder, **LONG))
    when_at_step(process, tmp_path, 12, lambda pid: os.kill(pid, signal.SIGKILL))
    out, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == 0, err
    assert re.search(
        r"rlhf: launch: rank 1 on \S+ ended with SIGKILL \(from .*\) during .*; its last lines, of \S+rank-1.log:", err
    )
    assert "launch: restart 1 of 1, from the newest whole checkpoint" in out
    steps = [row["step"] for row in cases.rows(tmp_path / "run") if "loss" in row]
    assert steps == list(range(1, 31))
    cases.same_weights(tmp_path / "run", undisturbed(verb, own))
    assert cases.alive(tmp_path) == []


def test_a_rank_killed_while_it_compiles_leaves_no_lock(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed compiles an extension at its first start; who finds a lock there waits for its holder without end."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    process = cases.start([*ZERO2, "--max_restarts", "1"], cases.sft(tmp_path, policy_folder))
    first = _compiling(process, tmp_path)
    tools = [first, *first.children(recursive=True)]
    first.kill()
    second = _compiling(process, tmp_path, other_than=first.pid)  # and so does not wait for the first
    tools += [second, *second.children(recursive=True)]
    process.send_signal(signal.SIGTERM)  # to compile takes minutes
    out, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == 143, err
    assert "launch: restart 1 of 1" in out and "ended with SIGKILL" in err
    assert list((tmp_path / "extensions").rglob("lock")) == []
    assert len(tools) > 4  # ninja and compilers among them
    assert [tool for tool in tools if tool.is_running() and tool.status() != psutil.STATUS_ZOMBIE] == []


def _compiling(process: subprocess.Popen[str], place: Path, other_than: int = 0) -> psutil.Process:
    """The rank that holds the lock of the extension."""
    until = time.monotonic() + cases.PATIENCE
    while process.poll() is None and time.monotonic() < until:
        for rank in (0, 1):
            mark = read_mark(RankFiles(launch_folder(place / "run"), rank))
            with suppress(psutil.Error):
                if mark and mark.pid != other_than and _holds_lock(holder := psutil.Process(mark.pid)):
                    return holder
        time.sleep(0.02)  # another process's doing: nothing to wait on but what it shows
    process.kill()
    raise AssertionError(f"no rank compiles: {process.communicate()}")


def _holds_lock(process: psutil.Process) -> bool:
    return (
        "lock" in [Path(file.path).name for file in process.open_files()] and len(process.children(recursive=True)) > 1
    )


def dies_at_the_end(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """A reward whose library takes rank 1 down as it ends, once rank 0 has finished the run."""
    run = Path(os.environ["RLHF_BEAT"]).parents[1].with_suffix("")

    def die() -> None:
        while not json.loads((run / "run.json").read_text())["finished"]:
            time.sleep(0.05)  # rank 0's doing: nothing to wait on but its file
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        atexit.register(die)  # once a call: the first that runs is the last
    return [0.0] * len(responses)


def test_a_rank_that_dies_after_the_end_of_the_run_is_no_failure(policy_folder: Path, tmp_path: Path) -> None:
    verb = cases.ppo(tmp_path, policy_folder, reward=["tests.test_launch_faults:dies_at_the_end"], max_steps=2)
    done = cases.launch(["--gpus", "2", "--max_restarts", "1"], verb)
    assert re.search(r"rlhf: launch: rank 1 on \S+ ended with SIGKILL", done.stderr)
    assert "launch: the run was finished before that, and is whole: nothing to try again" in done.stdout
    assert done.returncode == 0 and "restart 1" not in done.stdout
    assert cases.alive(tmp_path) == []
    again = cases.launch(["--gpus", "2"], [*verb, "--resume", "true"])  # as a job that SLURM starts once more
    assert (again.returncode, again.stderr) == (0, "")
    assert re.fullmatch(r"launch: \S+/run holds a finished run: nothing is left to do\n", again.stdout)


def dies_in_its_second_checkpoint(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """A reward that, once in a job, ends rank 1 before it writes its random state, the last part of a checkpoint."""
    done = Path(os.environ["RLHF_BEAT"]).parent / "died"
    save = torch.save

    def save_or_die(what: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).parent.name == "checkpoint-2" and Path(path).name == "rng_state_1.pth":
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save(what, path, *args, **kwargs)

    if os.environ["RANK"] == "1" and not done.exists() and save.__name__ != "save_or_die":
        torch.save = save_or_die
    return [0.0] * len(responses)


def test_where_one_checkpoint_is_kept_it_stays_until_the_next_is_whole(policy_folder: Path, tmp_path: Path) -> None:
    values = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    verb = cases.ppo(
        tmp_path, policy_folder, reward=["tests.test_launch_faults:dies_in_its_second_checkpoint"], **values
    )
    done = cases.launch(["--gpus", "2", "--max_restarts", "1"], verb)
    assert done.returncode == 0, done.stderr
    assert "restart 1 of 1" in done.stdout and "/run: goes on from checkpoint-1" in done.stdout
    assert [row["step"] for row in cases.rows(tmp_path / "run") if "score" in row] == [1, 2, 3]


def test_a_stopped_rank_is_a_hang_and_leaves_no_orphan(policy_folder: Path, tmp_path: Path) -> None:
    own = ["--gpus", "2", "--hang_seconds", "60"]  # a slow disk has held ranks up for 20
    process = cases.start(own, cases.sft(tmp_path, policy_folder, max_steps=5000))
    when_at_step(process, tmp_path, 5, lambda pid: os.kill(pid, signal.SIGSTOP))
    _, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == 124
    assert re.search(r"rank 1 on \S+ hangs: no step and no line for 6\d s \(--hang_seconds\) during step \d+;", err)
    assert cases.alive(tmp_path) == []
    waiting = (launch_folder(tmp_path / "run") / "logs" / "rank-0.log").read_text()
    assert "most recent call first" in waiting  # the other rank's stack, where it waits


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_launcher_that_is_ended_leaves_no_orphan(number: int, code: int, policy_folder: Path, tmp_path: Path) -> None:
    process = cases.start(["--gpus", "2"], cases.sft(tmp_path, policy_folder, max_steps=5000))
    when_at_step(process, tmp_path, 5, lambda _: process.send_signal(number))
    _, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == code
    assert code == -9 or f"rlhf: launch: stopped by {signal.Signals(number).name}" in err
    until = time.monotonic() + 60
    while cases.alive(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)  # they are no children of ours, so there is nothing to wait on
    assert cases.alive(tmp_path) == []


def test_a_loss_that_is_no_number_ends_all_and_is_not_tried_again(policy_folder: Path, tmp_path: Path) -> None:
    verb = cases.sft(tmp_path, policy_folder, learning_rate=1e25, max_steps=5000)
    done = cases.launch(["--gpus", "2", "--max_restarts", "3"], verb)
    assert done.returncode == 2
    assert re.search(r"rank \d on \S+ ended with exit code 2 during step \d+; its last lines", done.stderr)
    assert re.search(r"rlhf: step \d+: the loss is (nan|inf); lower --learning_rate", done.stderr)
    assert "restart" not in done.stdout
    assert cases.alive(tmp_path) == []


def test_sigusr1_saves_and_resume_gives_the_same_result(undisturbed: Any, policy_folder: Path, tmp_path: Path) -> None:
    verb = cases.sft(tmp_path, policy_folder, **LONG)
    process = cases.start(ZERO2, verb)
    when_at_step(process, tmp_path, 13, lambda _: process.send_signal(signal.SIGUSR1))
    _, err = process.communicate(timeout=cases.PATIENCE)
    assert process.returncode == 75
    assert "launch: stopped at a checkpoint, as SIGUSR1 asked; go on with --resume true" in err
    newest = max(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert 13 <= newest < 30
    done = cases.launch(ZERO2, [*verb, "--resume", "true"])
    assert done.returncode == 0, done.stderr
    cases.same_weights(tmp_path / "run", undisturbed("sft", ZERO2))
