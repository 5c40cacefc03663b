"""A SLURM cluster of our own for tests: controller and two nodes, all on this host, gone at the end.

Needs Debian's `slurm-wlm` and `munge` (the programs only; their services are left alone) and root.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from rlhf.launcher.rank import die_with_parent
from rlhf.ports import choose_port

_T = TypeVar("_T")
PATIENCE = 240.0  # seconds; a loaded machine takes ten times what a free one does
_PREFIX = "rlhf-slurm-"  # of a cluster's folder; then the number of the process whose it is
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

# linuxproc, as the usual cgroup, signals all processes of a job and not the first one's group alone.
# cred_expire is how long a requeued job waits; KillWait, how long a cancelled one may tidy up.
_SETTINGS = """\
ClusterName=rlhf
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=20
OverTimeLimit=1
GresTypes=gpu
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{nodes[0]},{nodes[1]}] CPUs=8 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(found: Callable[[], _T], what: str | Callable[[], str], patience: float = PATIENCE) -> _T:
    """What `found` returns as soon as it is true. Fails, with `what` was waited for, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.02)  # another process's doing: nothing to wait on but what it shows
    raise AssertionError(f"waited {patience:.0f} s in vain: {what if isinstance(what, str) else what()}")


def processes_of(folder: Path) -> list[psutil.Process]:
    """The daemons, job keepers and jobs of the cluster in a folder, by their environment."""
    wanted = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    found = []
    for process in psutil.process_iter():
        # Not by psutil, which reads up to the first empty entry: a keeper's title lies over its first ones.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def remove_cluster(folder: Path) -> None:
    """End all processes of a cluster, and remove its folder. A job's keeper outlives slurmd by design."""
    left = processes_of(folder)
    for process in left:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(left, timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def left_clusters() -> list[Path]:
    """Folders of clusters whose test process was killed: it is gone, or another has its number now."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(psutil.Error, OSError, ValueError):
            if not psutil.pid_exists(int(owner)) or psutil.Process(int(owner)).create_time() > folder.stat().st_ctime:
                found.append(folder)
    return found


class SlurmCluster:
    """munged, slurmctld and a slurmd for each of `node1` and `node2`, of 8 (pretended) CPUs and GPUs each."""

    def __init__(self) -> None:
        # Short, for a socket's path, and open to others on the way, which munged insists on.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o755)
        self._settings = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._write_files()
            self._start()
        except BaseException:
            self.stop()
            raise

    def environment(self) -> dict[str, str]:
        """With it, SLURM's commands reach this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**kept, "SLURM_CONF": str(self._settings)}

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints. Fails where it fails."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=self.environment()
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job: `JobState`, `Restarts`, `ExitCode` and more."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.ask("scontrol", "show", "job", number, "--oneliner")))

    def end_of(self, number: str) -> dict[str, str]:
        """Wait until a job has ended for good, and return what the controller knows of it."""
        going_on = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")

        def ended() -> dict[str, str]:
            known = self.job(number)
            return {} if known["JobState"] in going_on else known

        return until(ended, f"the end of job {number}; {self.folder}/slurmctld.log may say more")

    def stop(self) -> None:
        """End all jobs and daemons, and remove the folder."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        remove_cluster(self.folder)

    def _write_files(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        for name in ("state", "node1", "node2"):
            (self.folder / name).mkdir()
        ports: set[int] = set()
        while len(ports) < 3:
            ports.add(choose_port("127.0.0.1", 0))
        controller, *nodes = sorted(ports)
        host = os.uname().nodename
        text = _SETTINGS.format(host=host, folder=self.folder, controller=controller, nodes=nodes)
        self._settings.write_text(text)
        for number in range(8):
            (self.folder / f"gpu{number}").touch()  # stands for a device
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={self.folder}/gpu[0-7]\n")

    def _start(self) -> None:
        own = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
        socket = f"{self.folder}/munge.socket"
        self._run("munged", "--foreground", "--force", f"--socket={socket}", *own)
        self._wait_for(Path(socket).exists, "munged's socket")
        self._run("slurmctld", "-D")
        for node in ("node1", "node2"):
            self._run("slurmd", "-D", "-N", node)
        self._wait_for(self._is_ready, "two idle nodes")

    def _is_ready(self) -> bool:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment())
        return done.stdout.split() == ["idle", "idle"]

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,
                    cwd=self.folder,
                )
            )

    def _wait_for(self, ready: Callable[[], bool], what: str) -> None:
        def told() -> bool:
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not dead, f"{dead} ended: {(self.folder / 'daemons.log').read_text()}"
            return ready()

        until(told, what, 60)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """The cluster of this test process; skips where SLURM is not installed or may not be started."""
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        pytest.skip(f"SLURM is not tested: {', '.join(absent)} not installed; apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("SLURM is not tested: its daemons need root here")
    for folder in left_clusters():
        remove_cluster(folder)
    cluster = SlurmCluster()
    try:
        yield cluster
    finally:
        cluster.stop()
