"""`rlhf launch --slurm` on a real SLURM: jobs that end, are requeued, signalled, cancelled, and run on two nodes."""

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.launcher.files import launch_folder
from tests import launch_cases as cases
from tests.ppo_cases import count_e_in_texts
from tests.slurm_cluster import SlurmCluster, left_clusters, processes_of, remove_cluster, slurm, until  # noqa: F401

LONG = {"max_steps": 150, "save_strategy": "steps", "save_steps": 20, "save_total_limit": 2, "logging_steps": 1}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _submit(slurm: SlurmCluster, place: Path, policy: Path, *own: str, **values: object) -> str:  # noqa: F811
    """Submit sft by `rlhf launch`; the job's number."""
    verb = cases.sft(place, policy, **{**LONG, **values})
    command = [sys.executable, "-m", "rlhf", "launch", "--slurm", "true", "--submit", "true", *own, "--", *verb]
    environment = {**slurm.environment(), **{k: v for k, v in cases.environment().items() if "SLURM" not in k}}
    done = subprocess.run(command, cwd=cases.ROOT, env=environment, capture_output=True, text=True, check=False)
    told = re.search(r"Submitted batch job (\d+)", done.stdout)
    assert told, done.stderr
    return told[1]


def _log(place: Path, number: str) -> str:
    path = launch_folder(place / "run") / "logs" / f"slurm-{number}.log"
    return path.read_text() if path.is_file() else ""


def _wait_for_step(slurm: SlurmCluster, place: Path, number: str, step: int) -> None:  # noqa: F811
    beat = launch_folder(place / "run") / "ranks" / "rank-1.beat"

    def there() -> bool:
        told = re.fullmatch(r"step (\d+)", beat.read_text()) if beat.is_file() else None
        return bool(told) and int(told[1]) >= step

    until(there, lambda: f"step {step} of job {number}: {slurm.job(number)['JobState']}, {_log(place, number)}")


def _ends_well(slurm: SlurmCluster, place: Path, number: str, restarts: int) -> str:  # noqa: F811
    """Wait for the job's end, which is a good one after so many restarts; its log."""
    job = slurm.end_of(number)
    log = _log(place, number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", str(restarts)), log
    steps = [row["step"] for row in cases.rows(place / "run") if "loss" in row]
    assert steps == list(range(1, LONG["max_steps"] + 1))
    assert cases.alive(place) == []
    return log


def _loaded(place: Path, undisturbed: Path) -> list[int]:
    """The steps of the checkpoints that were gone on from: TRL counts a run's tokens from 0 again after each."""
    counts = [[row["num_tokens"] for row in cases.rows(run) if "loss" in row] for run in (place / "run", undisturbed)]
    behind = [whole - mine for mine, whole in zip(*counts, strict=True)]
    return [step for step, (before, after) in enumerate(itertools.pairwise(behind), start=1) if before != after]


@pytest.fixture(scope="module")
def undisturbed(slurm: SlurmCluster, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The run folder of a job of two ranks that nobody disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    log = _ends_well(slurm, place, _submit(slurm, place, policy_folder, "--gpus", "2"), restarts=0)
    assert "train loss" in log
    return place / "run"


def test_a_requeued_job_resumes_to_the_same_weights(
    slurm: SlurmCluster,  # noqa: F811
    undisturbed: Path,
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    number = _submit(slurm, tmp_path, policy_folder, "--gpus", "2")
    _wait_for_step(slurm, tmp_path, number, 45)
    slurm.ask("scontrol", "requeue", number)
    _ends_well(slurm, tmp_path, number, restarts=1)
    assert _loaded(tmp_path, undisturbed) in ([40], [60])  # the next may come while the requeue is asked for
    cases.same_weights(tmp_path / "run", undisturbed)


def test_sigusr1_before_the_time_limit_saves_requeues_and_resumes(
    slurm: SlurmCluster,  # noqa: F811
    undisturbed: Path,
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    """The signal that `--signal=B:USR1@300` sends, to the same process, without the minutes until it comes."""
    number = _submit(slurm, tmp_path, policy_folder, "--gpus", "2", save_strategy="no")
    _wait_for_step(slurm, tmp_path, number, 5)
    slurm.ask("scancel", "--signal=USR1", "--batch", number)
    log = _ends_well(slurm, tmp_path, number, restarts=1)
    assert "launch: stopped at a checkpoint, as SIGUSR1 asked" in log
    assert "stopped at a checkpoint; requeued" in log
    assert len(_loaded(tmp_path, undisturbed)) == 1  # what the stop saved: nothing else did
    cases.same_weights(tmp_path / "run", undisturbed)


def test_two_nodes_that_are_signalled_at_their_very_start_train_as_one(
    slurm: SlurmCluster,  # noqa: F811
    undisturbed: Path,
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    """Nothing listens yet but the job's script: no process dies of the signal, and it is not lost."""
    number = _submit(slurm, tmp_path, policy_folder, "--gpus", "1", "--nodes", "2", save_strategy="no")
    until(lambda: f"StepId={number}.1 " in slurm.ask("scontrol", "show", "step"), f"the launch of job {number}")
    slurm.ask("scancel", "--signal=USR1", "--batch", number)
    log = _ends_well(slurm, tmp_path, number, restarts=1)
    assert "stopped at a checkpoint; requeued" in log
    assert len(_loaded(tmp_path, undisturbed)) == 1
    logs = launch_folder(tmp_path / "run") / "logs"
    assert (logs / "rank-0.log").is_file() and (logs / "node-1.log").is_file()
    cases.same_weights(tmp_path / "run", undisturbed)


def slow_count_e(prompts: list[Any], responses: list[str], **_: Any) -> list[float]:
    """A reward that takes its time: however fast the machine, the job below lasts longer than its first minute."""
    time.sleep(0.7)
    return count_e_in_texts(prompts, responses)


def test_a_job_that_comes_to_its_time_limit_saves_requeues_and_resumes(
    slurm: SlurmCluster,  # noqa: F811
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    """One minute, the least there is. SLURM looks at jobs' times each 30 s, and so signals 15 to 45 s early."""
    places = [tmp_path / name for name in ("limited", "undisturbed")]
    for place in places:
        place.mkdir()
    values = {"max_steps": 70, "save_strategy": "no"}
    verb = cases.ppo(places[0], policy_folder, reward=["tests.test_launch_slurm_real:slow_count_e"], **values)
    cli.main(["launch", "--slurm", "true", "--gpus", "2", "--", *verb])
    script = launch_folder(places[0] / "run") / "job.sbatch"
    number = slurm.ask("sbatch", "--time=1", "--signal=B:USR1@15", str(script)).split()[-1]
    assert slurm.job(number)["TimeLimit"] == "00:01:00"
    until(lambda: slurm.job(number)["Restarts"] == "1", lambda: f"the requeue: {_log(places[0], number)}")
    (saved,) = (places[0] / "run").glob("checkpoint-*")
    slurm.ask("scontrol", "update", f"JobId={number}", "TimeLimit=10")

    assert slurm.end_of(number)["JobState"] == "COMPLETED", _log(places[0], number)
    assert slurm.job(number)["Restarts"] == "1"
    log = _log(places[0], number)
    assert "launch: stopped at a checkpoint, as SIGUSR1 asked" in log
    assert "stopped at a checkpoint; requeued" in log
    steps = [row["step"] for row in cases.rows(places[0] / "run") if "score" in row]
    assert steps == list(range(1, 71)) and 1 <= int(saved.name.split("-")[1]) < 70
    whole = cases.launch(["--gpus", "2"], cases.ppo(places[1], policy_folder, **values))
    assert whole.returncode == 0, whole.stderr
    cases.same_weights(places[0] / "run", places[1] / "run")
    assert cases.alive(tmp_path) == []


def test_a_job_that_is_signalled_before_its_launch_hands_the_signal_on(
    slurm: SlurmCluster,  # noqa: F811
    undisturbed: Path,
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    verb = cases.sft(tmp_path, policy_folder, **{**LONG, "save_strategy": "no"})
    cli.main(["launch", "--slurm", "true", "--gpus", "2", "--", *verb])
    script = launch_folder(tmp_path / "run") / "job.sbatch"
    text = script.read_text().replace("\nresume=()\n", "\necho checked; sleep 2\nresume=()\n")
    script.write_text(text)
    number = slurm.ask("sbatch", str(script)).split()[-1]
    until(lambda: "checked" in _log(tmp_path, number), lambda: f"the check's end: {_log(tmp_path, number)}")
    slurm.ask("scancel", "--signal=USR1", "--batch", number)
    log = _ends_well(slurm, tmp_path, number, restarts=1)
    assert "stopped at a checkpoint; requeued" in log
    assert len(_loaded(tmp_path, undisturbed)) == 1
    cases.same_weights(tmp_path / "run", undisturbed)


def test_a_cancelled_job_leaves_no_process(slurm: SlurmCluster, policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    number = _submit(slurm, tmp_path, policy_folder, "--gpus", "2", max_steps=5000)
    _wait_for_step(slurm, tmp_path, number, 3)
    step = slurm.ask("scontrol", "show", "step", f"{number}.1", "--oneliner")
    assert "CPUs=2 " in step  # both that the job asked for, one a rank
    assert cases.alive(tmp_path) != []
    slurm.ask("scancel", number)
    assert slurm.end_of(number)["JobState"] == "CANCELLED"
    until(lambda: cases.alive(tmp_path) == [], "the end of all processes of a cancelled job", 60)


def test_what_a_killed_test_process_leaves_is_removed(slurm: SlurmCluster) -> None:  # noqa: F811
    """Its daemons die with it, but not a job that runs, which its keeper holds on to."""
    code = (
        "import sys; from tests.slurm_cluster import SlurmCluster; cluster = SlurmCluster(); "
        "cluster.ask('sbatch', '--output=/dev/null', '--wrap=exec sleep 3600'); print(cluster.folder, flush=True); "
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=cases.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        until(lambda: _run(folder) >= {"sleep", "slurmstepd"}, "the job's start")
        assert folder not in left_clusters()
        process.kill()
    assert folder in left_clusters() and _run(folder) >= {"sleep", "slurmstepd"}
    remove_cluster(folder)
    assert processes_of(folder) == [] and not folder.exists()
    assert slurm.ask("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]


def _run(folder: Path) -> set[str]:
    return {process.name() for process in processes_of(folder)}


@pytest.mark.parametrize("nodes", [1, 2])
def test_sbatch_takes_the_script_of_a_gpu_job(
    nodes: int,
    slurm: SlurmCluster,  # noqa: F811
    policy_folder: Path,
    tmp_path: Path,
) -> None:
    verb = cases.sft(tmp_path, policy_folder, use_cpu=False)
    cli.main(["launch", "--slurm", "true", "--gpus", "8", "--nodes", str(nodes), "--", *verb])
    told = slurm.ask("sbatch", "--test-only", str(tmp_path / "run.launch" / "job.sbatch"))
    assert re.search(
        rf"to start at .* on nodes? node{'1' if nodes == 1 else re.escape('[1-2]')} in partition main", told
    )
