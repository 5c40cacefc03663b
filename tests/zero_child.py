"""One rank that runs jobs one after another and says how many bytes of its DeepSpeed engine it holds.

[torchrun --nproc_per_node 2] tests/zero_child.py JOBS.json

JOBS.json is a list of {"argv": [...], "memory": FOLDER or null}; FOLDER/rank-N.json then has what `held` gives.
"""

import gc
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerate.state import AcceleratorState
from torch import Tensor

from rlhf.cli import main


class Memory:
    """The largest number of bytes seen of each part, by a look before and one after each optimizer step."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}

    def watch(self) -> None:
        """Look at every engine of this process whenever it steps: gradients are there before, moments after."""
        from deepspeed.runtime.engine import DeepSpeedEngine

        step: Any = DeepSpeedEngine.step

        def watched(engine: Any, *args: Any, **kwargs: Any) -> Any:
            self._keep(held(engine))
            result = step(engine, *args, **kwargs)
            self._keep(held(engine))
            return result

        DeepSpeedEngine.step = watched

    def _keep(self, parts: dict[str, int]) -> None:
        self.parts = {name: max(size, self.parts.get(name, 0)) for name, size in parts.items()}


def held(engine: Any) -> dict[str, int]:
    """Bytes of this rank's tensors: `parameters`, `gradients`, `optimizer`, and what they promise to be.

    A storage counts once, in the first part that it belongs to. `optimizer` is Adam's two moments and, where it is
    no view of the parameters, their float32 copy. The promises (`promised/...`) are table 1 of Rajbhandari et al.
    2020 (arXiv:1910.02054) in float32, with DeepSpeed's padding: see `promised`.
    """
    seen: set[int] = set()
    zero = engine.optimizer
    parameters = list(engine.module.parameters())
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    gradients = [parameter.grad for parameter in parameters]
    gradients += [x for group in zero.averaged_gradients.values() for x in group or []]
    gradients += [getattr(zero, "grad_partitions_flat_buffer", None), *(x.grad for x in flat)]
    states = [x for state in zero.optimizer.state.values() for x in state.values() if _is_moment(x)]
    own = [tensor for p in parameters for tensor in (p.data, getattr(p, "ds_tensor", None))]
    return {
        "parameters": _bytes(own, seen),
        "gradients": _bytes(gradients, seen),
        "optimizer": _bytes([*flat, *states], seen),
        **{f"promised/{name}": size for name, size in promised(engine).items()},
    }


def promised(engine: Any) -> dict[str, int]:
    """Bytes a rank in float32: 4 a weight for parameters and gradients, 12 for Adam, each whole or a rank's share.

    ZeRO-1 shares out Adam's part, ZeRO-2 the gradients too, ZeRO-3 also the parameters. ZeRO-1 and 2 pad each
    parameter group to a multiple of twice the ranks, ZeRO-3 each parameter to one of the ranks. ZeRO-3 besides keeps
    whole what is smaller than its persistence threshold, and its share of the parameters is the float32 copy: 8
    instead of 12 bytes for Adam.
    """
    ranks, stage = engine.dp_world_size, engine.zero_optimization_stage()
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    whole = sum(_numel(p) for p in parameters)
    if stage == 3:
        share = sum(-(-_numel(p) // ranks) for p in parameters)
        kept = sum(_numel(p) for p in parameters if p.ds_persist)
        return {"weights": whole, "parameters": 4 * (share + kept), "gradients": 4 * share, "optimizer": 8 * share}
    align = 2 * ranks
    padded = sum(-(-sum(map(_numel, group)) // align) * align for group in engine.optimizer.bit16_groups)
    share = padded // ranks
    gradients = share if stage == 2 else whole
    return {"weights": whole, "parameters": 4 * padded, "gradients": 4 * gradients, "optimizer": 12 * share}


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1  # not the count of steps


def _bytes(tensors: Iterable[Tensor | None], seen: set[int]) -> int:
    """Bytes of the storages under these tensors that `seen` has not, which then has them."""
    total = 0
    for tensor in tensors:
        if tensor is None or tensor.numel() == 0 or (at := tensor.untyped_storage().data_ptr()) in seen:
            continue
        seen.add(at)
        total += tensor.untyped_storage().nbytes()
    return total


def run(jobs: list[dict[str, Any]]) -> None:
    """Do the jobs in this process, and in this process group."""
    memory = Memory()
    if any(job["memory"] for job in jobs):
        memory.watch()
    for job in jobs:
        memory.parts = {}
        main(job["argv"])
        if job["memory"]:
            place = Path(job["memory"])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(memory.parts))
        gc.collect()
        AcceleratorState._reset_state(reset_partial_state=True)  # else the next job has this one's DeepSpeed settings


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
