"""Does the demo's fast PPO lose gold? Its own settings beside a value model of its own and four passes a round.

    OMP_NUM_THREADS=1 python benchmarks/ppo_passes.py --folder 'runs/bench-demo-{seed}' --seeds 0 1 2 3 4

Takes finished demos (benchmarks/demo.py), trains `full` from the same start on the same reward, prompts and number of
replies, and has gold judge both on the demo's held-out prompts. Finished runs are read and not run again. Prints
Markdown and writes benchmarks/results/ppo_passes.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from figures import figure

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ppo_passes.json"
RECIPE = HERE.parent / "configs" / "recipes" / "demo.yaml"
# As ppo_vs_trl.py's configuration `full`.
FULL = {"value_model_kind": "separate", "num_ppo_epochs": 4, "num_mini_batches": 4}


def main() -> None:
    """Run what is not finished, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/bench-demo-{seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    rows = [measure(Path(arguments.folder.format(seed=seed)), seed) for seed in arguments.seeds]
    RESULTS.write_text(json.dumps({"full": FULL, "seeds": rows}, indent=2) + "\n")
    print(table(rows))


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One seed: `full` trained beside the demo's own runs, and what gold says of both."""
    stages = yaml.safe_load(RECIPE.read_text())["stages"]
    placed = {key: _place(folder, value, stages) for key, value in (stages["ppo"] | FULL).items()}
    rlhf("ppo", folder / "ppo-full", placed | {"seed": seed})
    compared = {key: _place(folder, value, stages) for key, value in stages["compare"].items()}
    names = {"sft": "sft", "best": "ppo", "full": "ppo-full"}
    compared["policies"] = [f"{name}={folder / run}" for name, run in names.items()]
    rlhf("compare", folder / "compare-passes", compared | {"seed": seed})
    report = json.loads((folder / "compare-passes" / "report.json").read_text())
    seconds = {
        name: json.loads((folder / names[name] / "run.json").read_text())["seconds"] for name in ("best", "full")
    }
    return {"seed": seed, "policies": report["policies"], "pairs": report["pairs"], "seconds": seconds}


def _place(folder: Path, value: Any, stages: dict[str, Any]) -> Any:
    """A recipe's `stage/file` as a path into the finished demo."""
    if isinstance(value, list):
        return [_place(folder, item, stages) for item in value]
    is_run = isinstance(value, str) and value.partition("/")[0] in stages and "/" in value
    return str(folder / value.rstrip("/")) if is_run else value


def rlhf(verb: str, output: Path, settings: dict[str, Any]) -> None:
    """Run one stage into `output` unless it is finished there."""
    record = output / "run.json"
    if record.exists() and json.loads(record.read_text())["finished"]:
        return
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings | {"output_dir": str(output)}))
    subprocess.run([sys.executable, "-m", "rlhf", verb, "--config", str(config)], check=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Win rates over SFT and gold of both, and the training's seconds."""
    lines = [
        "| seed | settings | beats SFT, gold | gold | KL, nats | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name in ("best", "full"):
            policy = row["policies"][name]
            cells = [figure(policy[key]) for key in ("win_rate", "gold", "kl")]
            lines.append(f"| {row['seed']} | {name} | {' | '.join(cells)} | {row['seconds'][name]:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
