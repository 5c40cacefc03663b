"""The lock under which PyTorch compiles an extension (DeepSpeed's Adam, its shared memory): one left is taken over.

PyTorch's lock is a file that its holder makes, keeps open and removes. A holder that is killed leaves it, and every
later start of this user waits for it without end, with nothing printed (`torch.utils.file_baton`).
"""

import os
import sys
import time
from pathlib import Path

import psutil

_OF_ONE_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "apfs"}
_COMPILES = 900.0  # seconds; no extension of DeepSpeed's takes so long
_POLL = 0.1  # seconds
_LOOK = 1.0  # seconds between two looks for the holder
_TELL = 60.0  # seconds between two lines of one who waits; a launcher takes silence for a hang


class Baton:
    """In the place of `torch.utils.file_baton.FileBaton`: who comes later has its turn too.

    Once the lock is had the build has nothing left to do (0.2 s), or is done where the one before could not.
    """

    def __init__(self, lock_file_path: str | Path, wait_seconds: float = _POLL, **_: object) -> None:
        self._lock = Path(lock_file_path)
        self._poll = wait_seconds
        self._file: int | None = None

    def try_acquire(self) -> bool:
        """True, once the lock is had: its holder has released it, or is gone."""
        left: tuple[int, int] | None = None
        begun = told = time.monotonic()
        while True:
            try:
                self._file = os.open(self._lock, os.O_CREAT | os.O_EXCL)
                return True
            except FileExistsError:
                pass
            before, left = left, _which(self._lock) if is_left(self._lock) else None
            # PyTorch's own closes the file a moment before it removes it: two looks must find the same.
            if left is not None and left == before and _remove(self._lock, left):
                _say(f"{self._lock} was left by a run that was killed while it compiled; removed it")
                continue
            if time.monotonic() - told >= _TELL:
                told = time.monotonic()
                self._tell(told - begun)
            until = time.monotonic() + _LOOK
            while self._lock.exists() and time.monotonic() < until:
                time.sleep(self._poll)  # another process's doing, of which only the file tells

    def _tell(self, waited: float) -> None:
        if is_held(self._lock):
            _say(f"waits for {self._lock}: another process compiles ({waited:.0f} s so far)")
        else:
            _say(
                f"waits for {self._lock}: who has it is not seen from here, another machine or user perhaps "
                f"({waited:.0f} s so far); after {_COMPILES:.0f} s it counts as left; "
                "remove it where no run is starting"
            )

    def wait(self) -> None:
        """Nothing: `try_acquire` has waited."""

    def release(self) -> None:
        """Remove the lock, and only then close it: at no moment does it look left."""
        self._lock.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)
            self._file = None


def take_over_left_locks() -> None:
    """Have PyTorch compile under `Baton` from now on in this process."""
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = Baton


def is_left(lock: Path) -> bool:
    """Whether there is a lock, and nobody at work under it.

    Processes of other users and machines can't be seen: on a disk that machines may share, and where the lock is
    another user's, one counts as left after 15 minutes.
    """
    try:
        stat = lock.stat()
    except FileNotFoundError:
        return False
    unseen = stat.st_uid != os.geteuid() or _file_system(lock) not in _OF_ONE_MACHINE
    return not (unseen and time.time() - stat.st_mtime < _COMPILES) and not is_held(lock)


def is_held(lock: Path) -> bool:
    """Whether a process of this machine has the lock open, or compiles in its folder: ninja outlives who started it."""
    path = lock.resolve()
    return any(_is_at_work(process, path) for process in psutil.process_iter())


def drop_left_locks(since: float) -> list[Path]:
    """Remove the locks made `since` (seconds of the epoch) that no process of this machine holds, and return them.

    For a launcher whose ranks are all ended: programs that use PyTorch's own lock would wait for them.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    found = sorted(path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern))
    new = [(path, which) for path in found if (which := _which(path)) and which[1] >= since * 1e9]
    return [path for path, which in new if not is_held(path) and _remove(path, which)]


def _is_at_work(process: psutil.Process, lock: Path) -> bool:
    try:
        return process.cwd() == str(lock.parent) or str(lock) in [file.path for file in process.open_files()]
    except psutil.Error:
        return False


def _which(lock: Path) -> tuple[int, int] | None:
    """What tells a lock from the next one of the same name."""
    try:
        stat = lock.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _remove(lock: Path, which: tuple[int, int]) -> bool:
    """Whether it was still that lock, and is gone: another process may have removed it and made its own meanwhile."""
    if _which(lock) != which:
        return False
    lock.unlink(missing_ok=True)
    return True


def _file_system(path: Path) -> str:
    """The type of the file system under a path, as `ext4`."""
    parents = {str(parent) for parent in path.resolve().parents}
    mounts = [part for part in psutil.disk_partitions(all=True) if part.mountpoint in parents]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""


def _say(text: str) -> None:
    print(f"rlhf: {text}", file=sys.stderr, flush=True)
