"""A lock of PyTorch's compiler whose holder was killed is taken over; one that is held, or may be, is waited for."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf import extension_lock
from rlhf.extension_lock import Baton, drop_left_locks, is_left
from tests import launch_cases as cases

PATIENCE = 60  # seconds
HOLD = """
import sys
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
sys.stdin.read()
"""
IN_TURN = """
import os, sys, time
from pathlib import Path
from rlhf.extension_lock import Baton
lock = Path(sys.argv[1])
for _ in range(5):
    baton = Baton(lock, wait_seconds=0.001)
    assert baton.try_acquire()
    os.mkdir(lock.parent / "inside")  # fails where two are in
    time.sleep(0.002)  # stay a while, so that another one let in would meet it
    os.rmdir(lock.parent / "inside")
    baton.release()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    place = tmp_path / "py311_cpu" / "some_op"
    place.mkdir(parents=True)
    return place / "lock"


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock as PyTorch has it, until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def had_after(lock: Path, end: Callable[[], None]) -> bool:
    """Whether a baton waits for its lock until `end` is called, and then has it."""
    baton = Baton(lock, wait_seconds=0.01)
    waiter = threading.Thread(target=baton.try_acquire, daemon=True)
    waiter.start()
    waiter.join(2.5)  # more than two looks for the holder
    waited = waiter.is_alive()
    end()
    waiter.join(PATIENCE)
    assert not waiter.is_alive() and lock.exists()
    baton.release()
    assert not lock.exists()
    return waited


def test_a_free_lock_is_had_at_once_and_released(lock: Path) -> None:
    baton = Baton(str(lock), warn_after_seconds=5)
    assert baton.try_acquire() is True
    assert lock.exists() and not is_left(lock)
    baton.wait()  # PyTorch calls it where the lock was not had
    baton.release()
    assert not lock.exists()


def test_a_lock_whose_holder_was_killed_is_taken_over(lock: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with holder(lock) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert is_left(lock)
    assert Baton(lock).try_acquire()
    err = capfd.readouterr().err
    assert err == f"rlhf: {lock} was left by a run that was killed while it compiled; removed it\n"


def test_a_held_lock_is_waited_for(lock: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with holder(lock) as process:
        assert not is_left(lock)
        assert had_after(lock, process.kill)
    assert "was left" in capfd.readouterr().err

    mine = Baton(lock)
    assert mine.try_acquire()
    assert had_after(lock, mine.release)
    assert capfd.readouterr().err == ""  # released, not left


def test_a_lock_that_another_process_made_meanwhile_is_not_removed(lock: Path) -> None:
    lock.touch()
    seen = extension_lock._which(lock)
    assert seen
    lock.rename(lock.with_name("gone"))  # its inode is not free for the next one
    lock.touch()
    assert not extension_lock._remove(lock, seen) and lock.exists()
    now = extension_lock._which(lock)
    assert now and extension_lock._remove(lock, now) and not lock.exists()
    assert not extension_lock._remove(lock, now)


def test_who_waits_long_says_so(lock: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(extension_lock, "_TELL", 1.5)
    with holder(lock) as process:
        assert had_after(lock, process.kill)
    err = capfd.readouterr().err
    assert re.match(rf"rlhf: waits for {lock}: another process compiles \([2-9] s so far\)\n", err)

    monkeypatch.setattr(extension_lock, "_OF_ONE_MACHINE", set[str]())
    lock.touch()
    assert had_after(lock, lock.unlink)
    assert re.match(
        rf"rlhf: waits for {lock}: who has it is not seen from here, another machine or user perhaps "
        r"\([2-9] s so far\); after 900 s it counts as left; remove it where no run is starting\n",
        capfd.readouterr().err,
    )


def test_a_compiler_that_outlives_its_killed_holder_is_waited_for(lock: Path) -> None:
    lock.touch()
    ninja = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=lock.parent)

    def end() -> None:
        ninja.communicate(b"\n")

    assert had_after(lock, end)


# CI is root. No other way makes a file of another user.
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_another_user_s_lock_is_left_after_a_quarter_of_an_hour(lock: Path) -> None:
    lock.touch()
    assert is_left(lock)
    os.chown(lock, 12345, -1)
    assert not is_left(lock)  # that user's processes may not be seen
    assert had_after(lock, lambda: os.utime(lock, (time.time() - 901,) * 2))


def test_on_a_disk_that_machines_may_share_a_lock_is_left_after_a_quarter_of_an_hour(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network disk can be mounted here: this one's type is struck from the list of those of one machine."""
    lock.touch()
    kind = extension_lock._file_system(lock)
    monkeypatch.setattr(extension_lock, "_OF_ONE_MACHINE", extension_lock._OF_ONE_MACHINE - {kind})
    assert not is_left(lock)
    with holder(lock.with_name("other")):
        os.utime(lock, (time.time() - 899,) * 2)
        assert not is_left(lock)
        os.utime(lock, (time.time() - 901,) * 2)
        assert is_left(lock)


def test_the_file_system_is_the_innermost_one(full_disk: Path) -> None:
    assert extension_lock._file_system(full_disk / "lock") == "tmpfs"


def test_of_many_who_find_a_lock_that_was_left_each_has_it_alone(lock: Path) -> None:
    lock.touch()
    ranks = [
        subprocess.Popen([sys.executable, "-c", IN_TURN, str(lock)], stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 6, said
    assert sum("was left" in text for text in said) == 1
    assert list(lock.parent.iterdir()) == []


def test_locks_of_killed_builds_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = {name: tmp_path / "py311_cpu" / name / "lock" for name in ("left", "held", "old")}
    for lock in locks.values():
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(locks["old"], (1000, 1000))
    with locks["held"].open():  # as torch's FileBaton does
        assert drop_left_locks(since=2000) == [locks["left"]]
    assert not locks["left"].exists() and locks["held"].exists() and locks["old"].exists()
    assert drop_left_locks(since=time.time() + 60) == []


@pytest.mark.slow
def test_a_launch_after_one_that_was_killed_as_it_compiled_does_not_wait(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start of DeepSpeed takes the lock, also where all is compiled already."""
    extensions = tmp_path / "extensions"
    built = Path.home() / ".cache" / "torch_extensions" / f"py3{sys.version_info.minor}_cpu"
    if built.is_dir():  # else it is compiled here
        shutil.copytree(built, extensions, ignore=shutil.ignore_patterns("lock"))
    lock = extensions / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    done = cases.launch(["--gpus", "2", "--zero", "2"], cases.sft(tmp_path, policy_folder, max_steps=2))
    assert done.returncode == 0, done.stderr
    logs = [path.read_text() for path in sorted((tmp_path / "run.launch" / "logs").glob("rank-*.log"))]
    assert sum(f"{lock} was left by a run that was killed while it compiled" in log for log in logs) == 1
    assert not lock.exists()
