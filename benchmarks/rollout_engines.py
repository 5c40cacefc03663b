"""How fast replies are sampled: our decode loop, transformers' `generate`, and its continuous batching.

    python benchmarks/rollout_engines.py [--turns 3] [--threads 2] [--device cuda]

The same 8.4M-parameter model, prompts and reply lengths for all three (benchmarks/ppo_inputs.py: replies of 8 to 64
tokens), turn by turn in one process; the first turn warms up and is not counted. Prints a Markdown table and writes
benchmarks/results/rollout_engines.json.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ppo_inputs import EOS, FULL, PAD, TINY, Inputs, load_inputs, write_inputs
from transformers import GenerationConfig

from rlhf.decoding import decode

RESULTS = Path(__file__).parent / "results" / "rollout_engines.json"
Run = Callable[[Inputs], list[list[int]]]


def ours(inputs: Inputs) -> list[list[int]]:
    """rlhf.decoding: prompts grouped by length, finished rows leave the batch."""
    uniforms = torch.rand(len(inputs.prompts), inputs.shape.longest_reply)
    with torch.no_grad():
        return decode(inputs.policy, inputs.prompts, uniforms, {EOS}, 1.0, len(inputs.prompts))


def plain(inputs: Inputs) -> list[list[int]]:
    """transformers' `generate`: one batch, padded on the left, until the last row has ended."""
    padded = inputs.tokenizer.pad({"input_ids": inputs.prompts}, return_tensors="pt").to(inputs.policy.device)
    rows = inputs.policy.generate(**padded, generation_config=_sampling(inputs))[:, padded["input_ids"].shape[1] :]
    return [[token for token in row if token != PAD] for row in rows.tolist()]


def continuous(inputs: Inputs) -> list[list[int]]:
    """transformers' continuous batching: `generate_batch`, a paged cache, rows come and go."""
    found = inputs.policy.generate_batch(inputs.prompts, generation_config=_sampling(inputs), progress_bar=False)
    return [output.generated_tokens for output in found.values()]


ENGINES: dict[str, Run] = {"ours": ours, "generate": plain, "continuous batching": continuous}


def _sampling(inputs: Inputs) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=inputs.shape.longest_reply, eos_token_id=EOS, pad_token_id=PAD
    )


def main() -> None:
    """Run the turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does it run at all")
    parser.add_argument("--out", type=Path, help="the default is benchmarks/results/rollout_engines.json; not --tiny")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        inputs = load_inputs(
            write_inputs(Path(folder) / "in", TINY if arguments.tiny else FULL, ends=True), value=False
        )
    inputs.policy.to(arguments.device).eval()
    turns = [{name: measure(engine, inputs) for name, engine in ENGINES.items()} for _ in range(arguments.turns + 1)][
        1:
    ]
    result = {
        "setup": {
            "device": arguments.device,
            "threads": arguments.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load": os.getloadavg()[0],
            "versions": {name: version(name) for name in ("torch", "transformers")},
        },
        "turns": turns,
        "ours_over": {
            name: statistics.median(
                turn["ours"]["tokens_per_second"] / turn[name]["tokens_per_second"] for turn in turns
            )
            for name in ENGINES
            if name != "ours"
        },
    }
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(turns))
    print(json.dumps(result["ours_over"]))


def measure(engine: Run, inputs: Inputs) -> dict[str, Any]:
    """One round of replies."""
    begin = time.perf_counter()
    replies = engine(inputs)
    seconds = time.perf_counter() - begin
    tokens = sum(map(len, replies))
    return {"seconds": seconds, "replies": len(replies), "tokens": tokens, "tokens_per_second": tokens / seconds}


def table(turns: list[dict[str, Any]]) -> str:
    """The medians in Markdown."""
    lines = ["| engine | tokens a second | tokens in all |", "| --- | --- | --- |"]
    for name in ENGINES:
        rate = statistics.median(turn[name]["tokens_per_second"] for turn in turns)
        lines.append(f"| {name} | {rate:,.0f} | {turns[0][name]['tokens']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
