"""The demo on several seeds: what it shows, how long it takes, and whether a seed repeats itself.

    python benchmarks/demo.py --folder 'runs/bench-demo-{seed}' --seeds 0 1 2 --repeat

Finished runs are read and not run again. Prints a Markdown table and writes benchmarks/results/demo.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import figure, reward_row

RESULTS = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    """Run, collect, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/bench-demo-{seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeat", action="store_true", help="run the first seed once more and compare the reports")
    arguments = parser.parse_args()
    rows = [measure(seed, arguments.folder.format(seed=seed)) for seed in arguments.seeds]
    result: dict[str, Any] = {"seeds": rows}
    if arguments.repeat:
        first = arguments.folder.format(seed=arguments.seeds[0])
        again = f"{first}-again"
        measure(arguments.seeds[0], again)
        reports = [(Path(folder) / "compare" / "report.json").read_bytes() for folder in (first, again)]
        result["same_seed_same_report"] = reports[0] == reports[1]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows))
    if arguments.repeat:
        print(f"\ntwo runs of seed {arguments.seeds[0]}: report.json is the same: {result['same_seed_same_report']}")


def measure(seed: int, folder: str) -> dict[str, Any]:
    """One seed's figures, from its run folder, after running what is not finished there."""
    subprocess.run([sys.executable, "-m", "rlhf", "demo", "--seed", str(seed), "--output_dir", folder], check=True)
    root = Path(folder)
    report = json.loads((root / "compare" / "report.json").read_text())
    runs = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/run.json")}
    reward = runs["reward"]["metrics"]
    return {
        "seed": seed,
        "seconds": {name: run["seconds"] for name, run in runs.items()},
        "accuracy": reward["accuracy"],
        "longer_wins": reward["longer_wins"],
        "human_ceiling": reward["human_ceiling"],
        "policies": report["policies"],
        "pairs": report["pairs"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: the reward models, then the policies."""
    lines = ["| seed | reward accuracy | longer wins | human ceiling | seconds |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"{reward_row(row['seed'], row)} {sum(row['seconds'].values()):.0f} |")
    lines += ["", "| seed | policy | beats SFT, gold | gold | reward model's score | KL, nats | replies that end |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for name, policy in row["policies"].items():
            cells = [figure(policy[key]) for key in ("win_rate", "gold", "score", "kl", "finished")]
            lines.append(f"| {row['seed']} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
