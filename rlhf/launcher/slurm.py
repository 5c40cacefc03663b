"""SLURM: the job's script from the templates of `launch/slurm/`, and its submission."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rlhf.config import packaged
from rlhf.errors import UserError
from rlhf.records import write_whole

_LEAST_MINUTES = 10  # the templates ask for SIGUSR1 5 minutes before the limit, and SLURM may send it a minute early
_DAYS = re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?")
_NO_DAYS = re.compile(r"((?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(:(?P<seconds>\d+))?")


@dataclass(frozen=True)
class Job:
    """What a job's script needs.

    Args:
        name: shown in the queue.
        folder: the launch folder, seen by all nodes.
        nodes: how many.
        ranks: processes on each node, one a GPU.
        uses_gpus: whether they need GPUs.
        time: time limit of one start, as SLURM writes it (`24:00:00`).
        launch: the `rlhf launch` command up to the `--`, without where the ranks meet.
        verb: the verb and its flags.
    """

    name: str
    folder: Path
    nodes: int
    ranks: int
    uses_gpus: bool
    time: str
    launch: list[str]
    verb: list[str]


def script(job: Job) -> str:
    """The text of the job's script."""
    folder = job.folder.absolute()
    check = _template("check-node.sh")
    check = check.replace("@GPUS@", str(job.ranks if job.uses_gpus else 0))
    check = check.replace("@FOLDER@", shlex.quote(str(folder)))
    words = {
        "NAME": job.name,
        "NODES": str(job.nodes),
        "DEVICES": f"--gpus-per-node={job.ranks}" if job.uses_gpus else f"--cpus-per-task={job.ranks}",
        "TIME": job.time,
        "FOLDER": str(folder),
        "WORK": shlex.quote(str(Path.cwd())),
        "CHECK": shlex.quote(check),
        "LAUNCH": shlex.join(job.launch),
        "VERB": shlex.join(job.verb),
    }
    text = _template("one-node.sbatch" if job.nodes == 1 else "many-nodes.sbatch")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def write_script(job: Job) -> Path:
    """Write the job's script into the launch folder and return its path.

    Raises UserError for a folder whose path SLURM would cut: it reads `#SBATCH` lines word by word.
    """
    if any(sign.isspace() for sign in str(job.folder.absolute())):
        raise UserError(f"{job.folder.absolute()}: has a space, which SLURM's --output does not take; choose another")
    path = job.folder / "job.sbatch"
    write_whole(path, [script(job)])
    return path


def check_time(time: str) -> None:
    """Raise UserError for a time limit that leaves hardly any time to train: such a job would requeue without end.

    What SLURM would not understand is left for it to refuse.
    """
    told = _DAYS.fullmatch(time) or _NO_DAYS.fullmatch(time)
    if told is None:
        return
    per = {"days": 24 * 60, "hours": 60, "minutes": 1, "seconds": 1 / 60}
    minutes = sum(int(number) * per[unit] for unit, number in told.groupdict().items() if number)
    if 0 < minutes < _LEAST_MINUTES:
        raise UserError(
            f"time: {time} is too short, as the job is asked to stop 5 minutes before its limit; "
            f"set 00:{_LEAST_MINUTES}:00 or more"
        )


def submit(path: Path) -> str:
    """Submit a script and return sbatch's reply. Raises UserError where there is no sbatch, or it refuses."""
    if shutil.which("sbatch") is None:
        raise UserError(f"submit: there is no sbatch here; copy {path} to a login node of the cluster and submit it")
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"submit: sbatch refused {path}: {done.stderr.strip() or done.stdout.strip()}; mend it there")
    return done.stdout.strip()


def _template(name: str) -> str:
    return packaged(f"launch/slurm/{name}").read_text(encoding="utf-8")
