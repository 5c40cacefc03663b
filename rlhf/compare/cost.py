"""What runs used, summed along a policy's lineage."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.lineage import Ancestor
from rlhf.usage import Usage, read_usage


@dataclass(frozen=True)
class Cost:
    """What some runs used together.

    Args:
        stages: each run's stage and seconds, in the order of the lineage.
        used: the sums; of memory the largest, energy None where a run's is not known.
    """

    stages: list[tuple[str, float]]
    used: Usage

    @property
    def device_hours(self) -> float:
        """Ranks times hours."""
        return self.used.device_hours

    @property
    def numbers(self) -> dict[str, Any]:
        """For cost.json."""
        used = self.used
        return {
            "stages": [{"stage": stage, "seconds": seconds} for stage, seconds in self.stages],
            "seconds": round(used.seconds, 1),
            "device": used.device,
            "device_hours": round(used.device_hours, 6),
            "tokens_generated": used.tokens_generated,
            "tokens_trained": used.tokens_trained,
            "peak_memory_gib": round(used.peak_memory_gib, 3),
            "energy_wh": None if used.energy_wh is None else round(used.energy_wh, 3),
        }


def cost_since(runs: Sequence[Ancestor], start: Container[str]) -> Cost | None:
    """What the runs used that are not part of `start` (ids); None where there are none, or one did not record it."""
    counted = [ancestor.run for ancestor in runs if ancestor.run.id not in start]
    usages = [read_usage(run.usage) for run in counted]
    known = [usage for usage in usages if usage is not None]
    if not known or len(known) < len(usages):
        return None
    energies = [usage.energy_wh for usage in known]
    accelerators = [usage.device for usage in known if usage.device != "cpu"]
    total = Usage(
        seconds=sum(usage.seconds for usage in known),
        device=accelerators[-1] if accelerators else "cpu",
        num_processes=max(usage.num_processes for usage in known),
        device_hours=sum(usage.device_hours for usage in known),
        peak_memory_gib=max(usage.peak_memory_gib for usage in known),
        energy_wh=None if None in energies else sum(energy for energy in energies if energy is not None),
        tokens_generated=sum(usage.tokens_generated for usage in known),
        tokens_trained=sum(usage.tokens_trained for usage in known),
        num_attempts=sum(usage.num_attempts for usage in known),
    )
    return Cost([(run.stage, used.seconds) for run, used in zip(counted, known, strict=True)], total)
