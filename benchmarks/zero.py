"""ZeRO-1, 2 and 3 on two CPU ranks against one process: losses, and the bytes that each rank holds.

python benchmarks/zero.py

What tests/test_zero.py does with 37,000 weights and 4 steps, here with 3.3 million and 12 steps: sft, reward,
dpo and ppo, real DeepSpeed and gloo, float32. Prints the two tables of docs/results.md.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from tests import zero_cases as cases

OUT = Path(__file__).parent / "results" / "zero.json"
STEPS, BATCH = 12, 8
PATIENCE = 1800.0  # seconds, for the four trainings of a verb


def make_policy(folder: Path) -> Path:
    """A random Llama, 256 wide, with 4 layers."""
    import torch

    from rlhf.models import load_tokenizer, new_llama
    from tests.tiny import tiny_policy

    tokenizer = load_tokenizer(str(tiny_policy(folder)))
    torch.manual_seed(0)
    model = new_llama(tokenizer, hidden_size=256, num_layers=4, num_heads=4, max_length=256)
    model.save_pretrained(folder)
    return folder


def measure(verb: str, policy: Path, place: Path) -> list[dict[str, Any]]:
    """One row a stage: losses beside the single process's, and each rank's bytes beside the promised ones."""
    place.mkdir()
    cases.train(place, verb, policy, STEPS, BATCH, PATIENCE)
    alone, rows = cases.losses(place / "alone"), []
    for zero in cases.STAGES:
        losses, ranks = cases.losses(place / f"zero{zero}"), cases.memory(place, zero)
        weights = ranks[0]["weights"]
        rows.append(
            {
                "verb": verb,
                "zero": zero,
                "weights": weights,
                "losses_alone": alone,
                "losses": losses,
                "largest_difference": max(abs(a - b) for a, b in zip(alone, losses, strict=True)),
                "held": [{part: held[part] for part in (*cases.PARTS, "gathered")} for held in ranks],
                "promised": cases.promised(weights, zero),
            }
        )
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Both tables in Markdown; bytes in MB (1e6) of the rank that holds most."""
    lines = ["| trainer | losses from | to | ZeRO-1 | ZeRO-2 | ZeRO-3 |", "| --- | --- | --- | --- | --- | --- |"]
    for verb in dict.fromkeys(row["verb"] for row in rows):
        of_verb = [row for row in rows if row["verb"] == verb]
        ends = (of_verb[0]["losses_alone"][at] for at in (0, -1))
        figures = [f"{end:.3f}" for end in ends] + [f"{row['largest_difference']:.1e}" for row in of_verb]
        lines.append(f"| {' | '.join([verb, *figures])} |")
    lines += ["", "| trainer | ZeRO | weights | parameters | gradients | optimizer | while computing |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        most = {part: max(held[part] for held in row["held"]) for part in (*cases.PARTS, "gathered")}
        parts = [f"{most[part] / 1e6:.2f} ({row['promised'][part] / 1e6:.2f})" for part in cases.PARTS]
        figures = [row["verb"], str(row["zero"]), f"{row['weights']:,}", *parts, f"{most['gathered'] / 1e6:.2f}"]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=cases.VERBS, default=cases.VERBS, help="trainers to run")
    chosen = parser.parse_args().only
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        policy = make_policy(Path(name) / "policy")
        for verb in chosen:
            begin = time.monotonic()
            rows += measure(verb, policy, Path(name) / verb)
            print(f"{verb}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    if chosen == cases.VERBS:
        settings = {"ranks": cases.NUM_RANKS, "steps": STEPS, "batch": BATCH, "dtype": "float32"}
        versions = {library: version(library) for library in ("deepspeed", "transformers", "torch")}
        OUT.write_text(json.dumps({**settings, **versions, "rows": rows}, indent=1) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
