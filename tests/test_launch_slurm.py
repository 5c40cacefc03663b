"""The SLURM job's script: valid bash, and what it does on SIGUSR1, run with stand-ins for srun and scontrol."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf import cli
from rlhf.errors import UserError
from rlhf.launcher.slurm import check_time, submit
from tests import launch_cases as cases
from tests.test_launch_faults import when_at_step

ROOT = Path(__file__).parents[1]


def _write(own: list[str], verb: list[str], place: Path) -> Path:
    cli.main(["launch", "--slurm", "true", *own, "--", *verb])
    return place / "run.launch" / "job.sbatch"


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_script_is_bash_and_says_what_was_asked(
    nodes: int, policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--gpus", "8", "--nodes", str(nodes), "--zero", "3", "--time", "02:00:00", "--max_restarts", "2"]
    verb = cases.sft(tmp_path, policy_folder, use_cpu=False)
    path = _write(own, [*verb, "--run_name", "it's $HOME"], tmp_path)
    assert f"submit it with `sbatch {path}`" in capsys.readouterr().out
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    for line in (f"--nodes={nodes}", "--gpus-per-node=8", "--time=02:00:00", "--requeue", "--signal=B:USR1@300"):
        assert f"#SBATCH {line}\n" in text
    assert f"-m rlhf launch --gpus 8 --nodes {nodes} --zero 3 --max_restarts 2 " in text
    assert "--run_name 'it'\"'\"'s $HOME'" in text
    assert ("--main_address" in text) == (nodes > 1)
    bash_own = ("USR1@300", "resume[@]", '"$@"')
    assert not re.search(r"@[A-Z]+@", text) and text.count("@") == sum(text.count(word) for word in bash_own)
    if shutil.which("shellcheck"):
        # SC2016: what stands in single quotes is for the nodes' own shells
        subprocess.run(["shellcheck", "--exclude=SC2016", str(path)], check=True)


@pytest.mark.parametrize("template", sorted(path.name for path in (ROOT / "launch" / "slurm").iterdir()))
def test_the_templates_are_bash(template: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "launch" / "slurm" / template)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(ROOT / "launch" / "slurm" / template)], check=True)


def test_what_cannot_be_submitted(tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    with pytest.raises(SystemExit):
        _write(["--gpus", "2"], cases.sft(spaced, policy_folder), spaced)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no sbatch here; copy .*job.sbatch to a login node of the cluster"):
        submit(tmp_path / "job.sbatch")
    _stand_in(tmp_path / "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match=r"sbatch refused .*job.sbatch: sbatch: error: invalid partition; mend"):
        submit(tmp_path / "job.sbatch")
    _stand_in(tmp_path / "sbatch", "echo Submitted batch job 7")
    assert submit(tmp_path / "job.sbatch") == "Submitted batch job 7"


@pytest.mark.parametrize("time", ["1", "9:59", "00:05:00", "0-0:9"])
def test_a_time_limit_that_the_signal_before_it_uses_up(time: str) -> None:
    with pytest.raises(UserError, match=rf"time: {time} is too short, .* 5 minutes before .*; set 00:10:00 or more"):
        check_time(time)


# The last is for SLURM to refuse.
@pytest.mark.parametrize("time", ["10", "10:00", "00:10:00", "24:00:00", "1-0", "0-0:10:00", "UNLIMITED", "0", "soon"])
def test_other_time_limits_go_to_slurm(time: str) -> None:
    check_time(time)


def _stand_in(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def _job(path: Path, bin_folder: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**cases.environment(), "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment}
    return subprocess.Popen(
        ["bash", str(path)], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigusr1_requeues_and_the_next_start_resumes(policy_folder: Path, tmp_path: Path) -> None:
    """srun runs its command in its place, as it would pass on signals; scontrol notes what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    _stand_in(tools / "srun", 'exec "$@"')
    _stand_in(tools / "scontrol", f'echo "$@" >> {tmp_path}/asked')
    verb = cases.sft(tmp_path, policy_folder, max_steps=2000, save_strategy="no")
    path = _write(["--gpus", "2"], verb, tmp_path)

    job = _job(path, tools)
    when_at_step(job, tmp_path, 5, lambda _: job.send_signal(signal.SIGUSR1))
    out, err = job.communicate(timeout=cases.PATIENCE)
    assert job.returncode == 75, err
    assert "stopped at a checkpoint; requeued" in out
    assert (tmp_path / "asked").read_text() == "requeue 7\n"

    (stopped,) = (tmp_path / "run").glob("checkpoint-*")
    state = (tmp_path / "run.launch" / "ranks" / "rank-1.beat").stat().st_mtime_ns
    job = _job(path, tools, SLURM_RESTART_COUNT="1")
    when_at_step(
        job,
        tmp_path,
        int(stopped.name.split("-")[1]) + 1,
        lambda _: job.send_signal(signal.SIGUSR1),
    )
    job.communicate(timeout=cases.PATIENCE)
    assert job.returncode == 75
    assert (tmp_path / "run.launch" / "ranks" / "rank-1.beat").stat().st_mtime_ns > state
    steps = [row["step"] for row in cases.rows(tmp_path / "run") if "loss" in row]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > int(stopped.name.split("-")[1])


@pytest.mark.slow
def test_a_node_in_bad_health_fails_by_name(policy_folder: Path, tmp_path: Path) -> None:
    """Two GPUs are asked for where none answers."""
    tools = tmp_path / "bin"
    tools.mkdir()
    _stand_in(tools / "srun", 'exec "$@"')
    _stand_in(tools / "nvidia-smi", "exit 9")
    path = _write(["--gpus", "2"], cases.sft(tmp_path, policy_folder, use_cpu=False), tmp_path)
    job = _job(path, tools)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 3
    assert f"{os.uname().nodename}: 0 of 2 GPUs answer" in err
    assert "a node failed its health check; exclude it" in err
    assert sys.executable in path.read_text()
