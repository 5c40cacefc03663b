"""Does the demo's fast PPO lose gold? Its own settings, also in bf16, beside a value model of its own and four passes.

    OMP_NUM_THREADS=1 python benchmarks/ppo_passes.py --folder 'runs/bench-demo-{seed}' --seeds 0 1 2 3 4

Takes up the demos of benchmarks/demo.py, trains `best` in bf16, and `full`, from the same start on the same reward,
prompts and number of replies, and has gold judge all on the demo's held-out prompts. What is finished is read and not
run again. Prints Markdown and writes benchmarks/results/ppo_passes.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from figures import figure

from rlhf.config import packaged, read_yaml
from rlhf.demo.run import DEMO_STAGES, RECIPE
from rlhf.loop import STAGES, run_recipe

RESULTS = Path(__file__).parent / "results" / "ppo_passes.json"
# As ppo_vs_trl.py's configuration `full`.
FULL = {"value_model_kind": "separate", "num_ppo_epochs": 4, "num_mini_batches": 4}
BF16 = {"bf16": True}
RUNS = {"best": "ppo", "best_bf16": "ppo.bf16", "full": "ppo.full"}


def main() -> None:
    """Run what is not finished, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/bench-demo-{seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    rows = [measure(Path(arguments.folder.format(seed=seed)), seed) for seed in arguments.seeds]
    RESULTS.write_text(json.dumps({"full": FULL, "best_bf16": BF16, "seeds": rows}, indent=2) + "\n")
    print(table(rows))


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One seed: `best_bf16` and `full` trained beside the demo's own runs, and what gold says of all."""
    stages = dict(read_yaml(packaged(RECIPE))["stages"])
    stages["ppo.bf16"] = stages["ppo"] | BF16
    stages["ppo.full"] = stages["ppo"] | FULL
    policies = ["sft=sft/", *(f"{name}={run}/" for name, run in RUNS.items())]
    stages["compare.passes"] = stages["compare"] | {"policies": policies}
    recipe = folder / "passes.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    runs = run_recipe(str(recipe), str(folder), {name: {"seed": seed} for name in stages}, STAGES | DEMO_STAGES)
    report = json.loads((folder / "compare.passes" / "report.json").read_text())
    seconds = {name: runs[run].seconds for name, run in RUNS.items()}
    return {"seed": seed, "policies": report["policies"], "pairs": report["pairs"], "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    """Win rates over SFT and gold of both, and the training's seconds."""
    lines = [
        "| seed | settings | beats SFT, gold | gold | KL, nats | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name in RUNS:
            policy = row["policies"][name]
            cells = [figure(policy[key]) for key in ("win_rate", "gold", "kl")]
            lines.append(f"| {row['seed']} | {name} | {' | '.join(cells)} | {row['seconds'][name]:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
