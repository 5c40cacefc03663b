"""What it saves of an update to train policy and value model at once: turn by turn with one after the other.

    python benchmarks/ppo_abreast.py [--threads 2] [--passes 30]

8.4M weights each (benchmarks/ppo_inputs.py), float32, minibatches of 16 episodes, drawn anew each turn: prompts of 8
to 64 tokens, replies of 64 (`full`) or 8 to 64 (`ragged`). One after the other they take micro-batches of up to 1,024
tokens, at once of up to 640, as PPO does by default. Prints one JSON line, and writes it into
benchmarks/results/ppo_abreast.json, a row for each processor and number of threads.
"""

import argparse
import json
import random
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ppo_inputs import FULL, TINY, Shape, cpu, load_inputs, write_inputs
from ppo_turns import keep, told

from rlhf.abreast import abreast
from rlhf.hardware import denormals_flushed, give_back_freed_memory
from rlhf.packing import CPU_TOKENS, pack_rows
from rlhf.ppo.config import CPU_TOKENS_EACH
from rlhf.ppo.networks import PolicyAndValue
from rlhf.ppo.rollout import Episode, micro_batches, pack

RESULTS = Path(__file__).parent / "results" / "ppo_abreast.json"
PARTS = ("policy", "value")
WARM_UP = 2


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    give_back_freed_memory()
    shape = TINY if arguments.tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        inputs = load_inputs(write_inputs(Path(folder) / "inputs", shape, ends=False))
    networks = PolicyAndValue(inputs.policy, "separate", inputs.value).eval()
    assert pack_rows(networks.policy) and pack_rows(networks.value_model)
    with denormals_flushed():
        row = {
            "device": cpu(),
            "threads": arguments.threads,
            "passes": arguments.passes,
            **{name: compare(networks, shape, name == "ragged", arguments.passes) for name in ("full", "ragged")},
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    print(json.dumps(row))
    if not arguments.tiny:
        keep(RESULTS, row)


def compare(networks: Any, shape: Shape, ragged: bool, passes: int) -> dict[str, Any]:
    """Milliseconds a minibatch both ways, and the first over the second."""
    draw, seconds = random.Random(0), list[tuple[float, float]]()
    for _ in range(passes + WARM_UP):
        episodes = minibatch(draw, shape, ragged)
        seconds.append((in_turn(networks, episodes), at_once(networks, episodes)))
    return told("in turn", "at once", seconds[WARM_UP:])


def minibatch(draw: random.Random, shape: Shape, ragged: bool) -> list[Episode]:
    """A quarter of a round's episodes."""

    def words(low: int, high: int) -> list[int]:
        return [draw.randrange(2, shape.vocabulary) for _ in range(draw.randint(low, high))]

    shortest = shape.shortest_reply if ragged else shape.longest_reply
    return [
        Episode(words(shape.shortest_prompt, shape.longest_prompt), words(shortest, shape.longest_reply), True)
        for _ in range(shape.episodes // shape.minibatches)
    ]


def in_turn(networks: Any, episodes: list[Episode]) -> float:
    """Seconds of the passes of one model after the other, all threads in each operation."""
    return _timed(networks, partial(learn, networks, episodes, CPU_TOKENS, PARTS))


def at_once(networks: Any, episodes: list[Episode]) -> float:
    """Seconds of both models' passes, each with its half of the threads."""
    calls = [partial(learn, networks, episodes, CPU_TOKENS_EACH, (part,)) for part in PARTS]
    return _timed(networks, partial(abreast, calls))


def learn(networks: Any, episodes: list[Episode], limit: int, parts: tuple[str, ...]) -> None:
    """Forward and backward passes of some parts over all micro-batches."""
    lengths = [episode.length for episode in episodes]
    for group in micro_batches(lengths, list(range(len(episodes))), limit, padded=False):
        ids, kept = pack([episodes[at] for at in group], "cpu")
        for part in parts:
            logps, values, _ = networks(ids, kept, 1.0, part=part)
            (logps.sum() + values.square().sum()).backward()


def _timed(networks: Any, passes: Any) -> float:
    began = time.perf_counter()
    passes()
    took = time.perf_counter() - began
    networks.zero_grad(set_to_none=True)
    return took


if __name__ == "__main__":
    main()
