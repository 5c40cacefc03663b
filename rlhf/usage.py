"""What a run used: time, devices, memory, energy and tokens, over all its attempts where it was resumed."""

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

NOTED = "usage.json"  # what attempts so far used; only an unfinished run's folder has it
_NOTED_EVERY = 15.0  # seconds
_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Usage:
    """What a run used.

    Args:
        seconds: wall-clock, of all attempts; what a killed one used since its last note is not in it (15 s at most).
        device: the accelerator's name, or `cpu`.
        num_processes: ranks.
        device_hours: seconds times ranks, in hours; a rank has one accelerator, or its share of the CPUs.
        peak_memory_gib: the largest rank's: what its accelerator held allocated, else its resident memory.
        energy_wh: of the accelerators (NVML) or the CPU packages (RAPL, everything that ran on them); None where
            the machine does not say.
        tokens_generated: tokens sampled from a policy.
        tokens_trained: tokens that gradients were taken on, prompts included, each pass counted.
        num_attempts: 1, and one more for each time it was resumed.
    """

    seconds: float = 0.0
    device: str = "cpu"
    num_processes: int = 1
    device_hours: float = 0.0
    peak_memory_gib: float = 0.0
    energy_wh: float | None = None
    tokens_generated: int = 0
    tokens_trained: int = 0
    num_attempts: int = 0

    def after(self, earlier: "Usage") -> "Usage":
        """This attempt's after those before it."""
        energies = [one.energy_wh for one in (self, earlier) if one.num_attempts]
        return replace(
            self,
            seconds=self.seconds + earlier.seconds,
            device_hours=self.device_hours + earlier.device_hours,
            peak_memory_gib=max(self.peak_memory_gib, earlier.peak_memory_gib),
            energy_wh=None if None in energies else sum(energy for energy in energies if energy is not None),
            num_attempts=self.num_attempts + earlier.num_attempts,
        )


class Meter:
    """Measures one attempt at a run, from when it is made."""

    def __init__(self, folder: Path, notes: bool) -> None:
        """`notes`: write to the folder every 15 seconds what was used, for the attempt after a kill (one rank does)."""
        self.began = time.monotonic()
        self.earlier = _noted(folder / NOTED)
        self.energy = _energy_wh()
        self._folder, self._notes, self._stop = folder, notes, Event()
        _forget_peaks()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps notes meanwhile."""
        thread = Thread(target=self._keep_notes, daemon=True) if self._notes else None
        if thread:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if thread:
                thread.join()
                if not self._finished:
                    self._note()

    _finished = False

    def finish(self, tokens_generated: int, tokens_trained: int) -> Usage:
        """What the run used. All ranks must call it: memory and energy are of all of them."""
        self._stop.set()
        self._finished = True
        ranks = _of_all_ranks((_peak_memory(), _since(self.energy, _energy_wh())))
        energies = [energy for _, energy in ranks]
        used = replace(
            self._so_far(),
            peak_memory_gib=round(max(memory for memory, _ in ranks), 4),
            energy_wh=None if None in energies else round(sum(energy for energy in energies if energy is not None), 4),
            tokens_generated=tokens_generated,
            tokens_trained=tokens_trained,
        ).after(self.earlier)
        if self._notes:
            (self._folder / NOTED).unlink(missing_ok=True)
        return replace(used, seconds=round(used.seconds, 1), device_hours=round(used.device_hours, 6))

    def _so_far(self) -> Usage:
        seconds, processes = time.monotonic() - self.began, int(os.environ.get("WORLD_SIZE", "1"))
        return Usage(
            seconds,
            _device(),
            processes,
            seconds * processes / 3600,
            _peak_memory(),
            _since(self.energy, _energy_wh()),
            num_attempts=1,
        )

    def _keep_notes(self) -> None:
        while not self._stop.wait(_NOTED_EVERY):
            self._note()

    def _note(self) -> None:
        if not self._folder.is_dir():
            return
        part = self._folder / f".{NOTED}.new"
        with suppress(OSError):  # a full disk is the run's to report
            part.write_text(json.dumps(asdict(self._so_far().after(self.earlier))), encoding="utf-8")
            part.replace(self._folder / NOTED)


def read_usage(recorded: dict[str, Any]) -> Usage | None:
    """The Usage of a run's record; None where it was made before usage was recorded."""
    known = {field.name for field in fields(Usage)}
    return Usage(**{key: value for key, value in recorded.items() if key in known}) if recorded else None


def _noted(path: Path) -> Usage:
    try:
        return read_usage(json.loads(path.read_text(encoding="utf-8"))) or Usage()
    except (OSError, ValueError, TypeError, AttributeError):
        return Usage()


def _cuda() -> Any:
    """torch.cuda where it is there and was used; torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _device() -> str:
    cuda = _cuda()
    return str(cuda.get_device_name()) if cuda else "cpu"


def _forget_peaks() -> None:
    cuda = _cuda()
    if cuda:
        cuda.reset_peak_memory_stats()
    with suppress(OSError):  # other stages of this process came before: Linux forgets their peak
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory() -> float:
    """GiB."""
    cuda = _cuda()
    if cuda:
        return cuda.max_memory_allocated() / 2**30
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return int(found[1]) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _energy_wh() -> float | None:
    """A counter in Wh: of this rank's GPU, else, for the first rank of a machine, of its CPUs."""
    if _cuda():
        return _gpu_energy_wh()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return 0.0
    counters = sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
    try:
        readings = [int(path.read_text(encoding="ascii")) for path in counters if path.parent.name.count(":") == 1]
    except (OSError, ValueError):
        return None
    return sum(readings) / 3.6e9 if readings else None


def _gpu_energy_wh() -> float | None:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        at = sys.modules["torch"].cuda.current_device()
        name = visible[at].strip() if at < len(visible) and visible[at].strip() else str(at)
        by_index = name.isdigit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 3.6e6
    except Exception:  # NVML is a nicety: whatever it lacks, the run goes on without
        return None


def _since(before: float | None, now: float | None) -> float | None:
    # A counter that ran over its end says nothing any more.
    return None if before is None or now is None or now < before else now - before


def _of_all_ranks(mine: tuple[float, float | None]) -> list[tuple[float, float | None]]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
