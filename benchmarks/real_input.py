"""The loop on real human preferences and a real small model; reward alone on ranked answers.

    python benchmarks/real_input.py --data ../shared/data --model ../shared/models/chat-3m

Finished stages are read and not run again. Prints Markdown and writes benchmarks/results/real_input.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import reward_row

RESULTS = Path(__file__).parent / "results" / "real_input.json"


def main() -> None:
    """Run both recipes, collect, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="../shared/models/chat-3m")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-real"))
    arguments = parser.parse_args()
    hh, qa = arguments.folder / "hh", arguments.folder / "qa"
    pairs = arguments.data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
    ranked = arguments.data / "qa-feedback" / "dev_feedback.json.gz"
    recipe("hh_harmless", hh, ["--prepare.input", str(pairs), "--sft.model_name_or_path", arguments.model])
    recipe("qa_feedback", qa, ["--prepare.input", str(ranked), "--reward.model_name_or_path", arguments.model])
    result = {"hh_harmless": figures(hh), "qa_feedback": figures(qa)}
    report = json.loads((hh / "compare" / "report.json").read_text())
    result["hh_harmless"]["compare"] = {"policies": report["policies"], "pairs": report["pairs"]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def recipe(name: str, folder: Path, flags: list[str]) -> None:
    """Run one recipe, or what is left of it."""
    command = [sys.executable, "-m", "rlhf", "recipe", f"configs/recipes/{name}.yaml", "--output_dir", str(folder)]
    subprocess.run([*command, *flags], check=True)


def figures(folder: Path) -> dict[str, Any]:
    """Every stage's metrics and seconds."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}
    return {name: {"seconds": run["seconds"], **run["metrics"]} for name, run in runs.items()}


def table(result: dict[str, Any]) -> str:
    """The reward models' accuracies in Markdown."""
    lines = ["| data | accuracy | longer wins | human ceiling | pairs |", "| --- | --- | --- | --- | --- |"]
    for name, stages in result.items():
        reward = stages["reward"]
        lines.append(f"{reward_row(name, reward, digits=3)} {reward['eval_pairs']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
