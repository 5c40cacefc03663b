"""Trainings of test_zero.py and benchmarks/zero.py, with the bytes that each rank's DeepSpeed engine holds.

python tests/zero_child.py JOBS.json: a list of {"ranks": N, "argv": the verb's command line, "memory": FOLDER or null},
done one after the other, each in processes of its own. Prints the exit codes of each. What ranks print themselves is
in JOBS.json.N.log; FOLDER/rank-N.json has the most bytes that `held` found.
"""

import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from rlhf.cli import main
from tests.other_ranks import run


def measured(place: Path, argv: list[str]) -> None:
    """Do the verb, and write what this rank's engine held at most after a backward pass, and around its step."""
    most: dict[str, int] = {}
    backward, step = DeepSpeedEngine.backward, DeepSpeedEngine.step

    def look(engine: Any) -> None:
        for name, size in held(engine).items():
            most[name] = max(size, most.get(name, 0))

    def watched_backward(engine: Any, *args: Any, **options: Any) -> Any:
        most["gathered"] = max(_bytes((p.data for p in engine.module.parameters()), set()), most.get("gathered", 0))
        loss = backward(engine, *args, **options)
        look(engine)  # between two micro-batches: the gradients that accumulate
        return loss

    def watched_step(engine: Any, *args: Any, **options: Any) -> None:
        step(engine, *args, **options)
        look(engine)  # Adam has its moments

    DeepSpeedEngine.backward, DeepSpeedEngine.step = watched_backward, watched_step
    main(argv)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(most))


def alone(argv: list[str]) -> None:
    """Do the verb as a plain process, in no group."""
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(key, None)
    main(argv)


def held(engine: Any) -> dict[str, int]:
    """Bytes of this rank's tensors: `parameters`, `gradients`, `optimizer`, and the number of all `weights`.

    Storages are counted, each once, in the first part that it belongs to. `optimizer` is Adam's two moments and the
    copy of the parameters that it steps on. `expected/...` is `expected`'s.
    """
    seen: set[int] = set()
    zero = engine.optimizer
    parameters = list(engine.module.parameters())
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    gradients = [parameter.grad for parameter in parameters]
    for groups in (zero.averaged_gradients, getattr(zero, "all_grad_tensors", {})):
        gradients += [x for group in groups.values() for x in group or []]
    gradients += [getattr(zero, "grad_partitions_flat_buffer", None), *(x.grad for x in flat)]
    moments = [x for state in zero.optimizer.state.values() for x in state.values() if _is_moment(x)]
    own = [tensor for p in parameters for tensor in (p.data, getattr(p, "ds_tensor", None))]
    return {
        "parameters": _bytes(own, seen),
        "gradients": _bytes(gradients, seen),
        "optimizer": _bytes([*flat, *moments], seen),
        "weights": sum(_numel(parameter) for parameter in parameters),
        **{f"expected/{name}": size for name, size in expected(engine).items()},
    }


def expected(engine: Any) -> dict[str, int]:
    """Bytes of this rank in float32 by DeepSpeed's rules of sharing out.

    4 a weight for parameters and gradients and 12 for Adam, each whole or this rank's share. ZeRO-1 shares out Adam's
    part, ZeRO-2 also the gradients, ZeRO-3 also the parameters. ZeRO-1 and 2 pad each parameter group to a multiple
    of twice the ranks, and in ZeRO-2 both ranks keep the whole gradient of a weight that lies on their border. ZeRO-3
    pads each parameter to a multiple of the ranks, and keeps whole what is smaller than its persistence threshold.
    """
    zero, ranks, stage = engine.optimizer, engine.dp_world_size, engine.zero_optimization_stage()
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    whole = sum(_numel(p) for p in parameters)
    if stage == 3:
        share = sum(-(-_numel(p) // ranks) for p in parameters)
        kept = sum(_numel(p) for p in parameters if p.ds_persist)
        return {"parameters": 4 * (share + kept), "gradients": 4 * share, "optimizer": 12 * share}
    align = 2 * ranks
    groups = [sum(map(_numel, group)) for group in zero.bit16_groups]
    padded = sum(-(-group // align) * align for group in groups)
    mine = sum(_numel(p) for group in zero.params_in_partition for p in group)
    if engine.global_rank == ranks - 1:
        mine += padded - whole
    gradients = mine if stage == 2 else whole
    return {"parameters": 4 * padded, "gradients": 4 * gradients, "optimizer": 12 * padded // ranks}


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


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    for at, job in enumerate(json.loads(jobs.read_text())):
        verb = partial(measured, Path(job["memory"])) if job["memory"] else alone
        print(json.dumps(run(job["ranks"], job["argv"], Path(f"{jobs}.{at}.log"), verb)), flush=True)
