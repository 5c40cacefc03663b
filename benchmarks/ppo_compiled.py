"""What torch_compile saves of an update: policy and value model forward and backward, as they are and compiled.

    python benchmarks/ppo_compiled.py [--threads 2] [--passes 30] [--device cuda]

8.4M weights each (benchmarks/ppo_inputs.py), micro-batches of about 800 tokens, rows of 16 to 127 tokens, the second
half of each the reply; float32 on a CPU, bf16 under autocast on a GPU. The two take turns in one process, on the same
micro-batch, each turn a new one. What the first three passes take, which compile, is told apart. Prints one JSON line,
and writes it into benchmarks/results/ppo_compiled.json, a row for each number of threads and device.
"""

import argparse
import contextlib
import json
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ppo_inputs import FULL, TINY, cpu, load_inputs, write_inputs
from ppo_turns import keep, told

from rlhf.packing import pack_rows
from rlhf.ppo.compiled import CompiledLayers
from rlhf.ppo.networks import PolicyAndValue

RESULTS = Path(__file__).parent / "results" / "ppo_compiled.json"
TOKENS = 800
WARM_UP = 3


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        shape = TINY if arguments.tiny else FULL
        inputs = load_inputs(write_inputs(Path(folder) / "inputs", shape, ends=False))
    networks = PolicyAndValue(inputs.policy, "separate", inputs.value).to(arguments.device).eval()
    for model in (networks.policy, networks.value_model):
        assert arguments.device != "cpu" or pack_rows(model)
    compiled, draw = CompiledLayers([networks.policy, networks.value_model]), random.Random(0)
    seconds: list[tuple[float, float]] = []
    for _ in range(arguments.passes + WARM_UP):
        ids, kept = (tensor.to(arguments.device) for tensor in micro_batch(draw, shape.vocabulary))
        plain = one_pass(networks, ids, kept)
        with compiled.active():
            seconds.append((plain, one_pass(networks, ids, kept)))
    row = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else cpu(),
        "threads": arguments.threads,
        "passes": arguments.passes,
        **told("plain", "compiled", seconds[WARM_UP:]),
        "first passes, seconds": [round(fast, 1) for _, fast in seconds[:WARM_UP]],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps(row))
    if not arguments.tiny:
        keep(RESULTS, row)


def micro_batch(draw: random.Random, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `(rows, time)` and which tokens are predicted and count `(rows, time - 1)`."""
    lengths = [draw.randint(16, 127)]
    while sum(lengths) < TOKENS - 40:
        lengths.append(draw.randint(16, 127))
    ids = torch.tensor([[draw.randrange(2, vocabulary) for _ in range(max(lengths))] for _ in lengths])
    at = torch.arange(max(lengths) - 1)
    return ids, torch.stack([(at >= length // 2) & (at < length - 1) for length in lengths])


def one_pass(networks: Any, ids: torch.Tensor, kept: torch.Tensor) -> float:
    """Seconds of both forward and backward passes."""
    on_gpu = ids.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for part in ("policy", "value"):
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            logps, values, _ = networks(ids, kept, 1.0, part=part)
            loss = logps.sum() + values.square().sum()
        loss.backward()
    if on_gpu:
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    networks.zero_grad(set_to_none=True)
    return took


if __name__ == "__main__":
    main()
