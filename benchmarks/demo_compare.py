"""A study of DPO and PPO on the demo: frontiers from sweeps and checkpoints, verdicts by gold and by simulated people.

    OMP_NUM_THREADS=1 python benchmarks/demo_compare.py --seeds 0 1 2 3 4

Each seed takes about three demos' time (the demo's own stages, two more DPO and two more PPO runs, 24 points). What
is finished in --runs is read and not run again; seeds of an earlier call stay in the results. Prints Markdown, writes
benchmarks/results/demo_compare.json and docs/figures/demo_frontier.svg.
"""

import argparse
import json
import os
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo_compare_figure import draw
from demo_study import BEST_OF, BETAS, KL_COEFS, NUM_VOTES, run_study
from figures import figure

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "demo_compare.json"
FIGURE = HERE.parent / "docs" / "figures" / "demo_frontier.svg"


def main() -> None:
    """Run what is not finished, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="/tmp/demo-study/seed-{seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tiny", action="store_true", help="sizes that show the wiring and not the result")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    seeds = [row for row in earlier(arguments.out) if row["seed"] not in arguments.seeds]
    for seed in arguments.seeds:
        folder = Path(arguments.runs.format(seed=seed))
        runs = run_study(folder, seed, arguments.tiny)
        seeds.append(measured(folder, seed) | {"seconds": {name: run.seconds for name, run in runs.items()}})
        seeds.sort(key=lambda row: row["seed"])
        write(seeds, arguments)
    print(policies_table(seeds), equal_kl_table(seeds), over_optimisation_table(seeds), votes_table(seeds), sep="\n\n")


def earlier(results: Path) -> list[dict[str, Any]]:
    """The seeds that an earlier call has written."""
    return json.loads(results.read_text())["seeds"] if results.exists() else []


def write(seeds: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON and the figure of the seeds so far."""
    result = {
        "setup": {
            "betas_beside_the_demos": BETAS,
            "kl_coefs_beside_the_demos": KL_COEFS,
            "best_of_n": BEST_OF,
            "num_votes": NUM_VOTES,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        },
        "same_verdict": {name: dict(same_verdicts(seeds, name)) for name in ("people", "pair")},
        "seeds": seeds,
    }
    for path, text in (
        (arguments.out, json.dumps(result, indent=2) + "\n"),
        (arguments.figure, draw({row["seed"]: row["frontier"] for row in seeds})),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def measured(folder: Path, seed: int) -> dict[str, Any]:
    """What one seed's reports say."""
    reports = {
        name: json.loads((folder / f"compare{name}" / "report.json").read_text()) for name in ("", ".people", ".pair")
    }
    return {
        "seed": seed,
        "verdict": reports[""]["verdict"],
        "policies": reports[""]["policies"],
        "frontier": reports[""]["frontier"],
        "people": by_pair(reports[".people"]),
        "pair": by_pair(reports[".pair"]),
    }


def by_pair(report: dict[str, Any]) -> list[dict[str, Any]]:
    """For each two policies that people judged: what gold, the reward model and people say, on the same prompts."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in report["pairs"]:
        said = {key: pair[key] for key in ("win_rate", "verdict", "num_votes") if key in pair}
        found.setdefault((pair["a"], pair["b"]), {})[pair["judge"]] = said
    return [{"a": a, "b": b} | by for (a, b), by in found.items() if "people" in by]


def same_verdicts(seeds: list[dict[str, Any]], votes: str) -> Counter[str]:
    """How often people's verdict is gold's, over all pairs and seeds."""
    counted: Counter[str] = Counter()
    for row in seeds:
        for pair in row[votes]:
            gold, people = pair["gold"]["verdict"], pair["people"]["verdict"]
            if gold == people:
                counted["same"] += 1
            elif "undecided" in (gold, people):
                counted["people undecided" if people == "undecided" else "gold undecided"] += 1
            else:
                counted["opposite"] += 1
    return counted


def policies_table(seeds: list[dict[str, Any]]) -> str:
    """The three policies and what best-of-n reaches, in Markdown."""
    lines = ["| seed | policy | beats SFT, gold | gold | reward model's score | KL, nats |", "| --- " * 6 + "|"]
    for row in seeds:
        for name, policy in row["policies"].items():
            cells = [figure(policy[key]) for key in ("win_rate", "gold", "score", "kl")]
            lines.append(f"| {row['seed']} | {name} | {' | '.join(cells)} |")
        best = row["frontier"]["points"][-1]
        cells = ["", figure(best["gold"]), figure(best["score"]), f"at most {best['kl']['mean']:.2f}"]
        lines.append(f"| {row['seed']} | best of {best['setting']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equal_kl_table(seeds: list[dict[str, Any]]) -> str:
    """Each two methods at equal KL, and the areas under their frontiers, in Markdown."""
    lines = [
        "| seed | at equal KL | nats | gold, first less second: the best | all points | area, gold x nats | more |"
    ]
    lines.append("| --- " * 7 + "|")
    for row in seeds:
        for pair in row["frontier"]["equal_kl"]:
            cells = [str(row["seed"]), f"{pair['a']}, {pair['b']}"]
            if pair["reason"]:
                cells += ["", pair["reason"], "", "", ""]
            else:
                cells += [f"{pair['low']:.2f} to {pair['high']:.2f}", figure(pair["difference"], 3)]
                cells.append(figure(pair["all_points"]["difference"], 3))
                cells += [figure(pair["area"], 3), pair["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def over_optimisation_table(seeds: list[dict[str, Any]]) -> str:
    """The runs whose gold surely falls while the score rises, in Markdown."""
    lines = ["| seed | run | gold is highest at, nats | seen at | change in gold | change in score |"]
    lines.append("| --- " * 6 + "|")
    for row in seeds:
        for one in row["frontier"]["over_optimisation"]:
            if one["reason"] is None:
                cells = [str(row["seed"]), one["run"], f"{one['kl']:.2f} ({one['setting']})", f"{one['seen_at']:.2f}"]
                lines.append(f"| {' | '.join([*cells, figure(one['fall']), figure(one['rise'])])} |")
    return "\n".join(lines) if len(lines) > 2 else "No run is known to be over-optimised."


def votes_table(seeds: list[dict[str, Any]]) -> str:
    """The verdicts of gold and of the simulated people, in Markdown."""
    lines = ["| seed | votes | pair | first's win rate by gold | by people | by the reward model | verdicts |"]
    lines.append("| --- " * 7 + "|")
    for row in seeds:
        for votes in ("people", "pair"):
            for pair in row[votes]:
                says = [pair[judge] for judge in ("gold", "people", "reward_model")]
                rates = [figure(one["win_rate"]) for one in says]
                verdicts = f"gold: {says[0]['verdict']}; people: {says[1]['verdict']}"
                count = str(pair["people"]["num_votes"])
                cells = [str(row["seed"]), count, f"{pair['a']}, {pair['b']}", *rates, verdicts]
                lines.append(f"| {' | '.join(cells)} |")
    told = {name: dict(same_verdicts(seeds, name)) for name in ("people", "pair")}
    return "\n".join([*lines, "", f"400 votes over three pairs: {told['people']}; 400 on one pair: {told['pair']}"])


if __name__ == "__main__":
    main()
