"""What a nat of KL buys: PPO, DPO and best-of-n on a known reward and a real model.

    python benchmarks/sentiment.py --model ../shared/models/chat-3m --data ../shared/data/uci-sentiment-sentences

36 minutes of one core a seed. chat-3m is made positive: a sentiment scorer fitted on half of the sentences
is the reward (the proxy), one fitted on the other half judges (the gold). The model's folder must hold
`chat_val.txt`, whose users' turns are the prompts. What is finished in --folder is read and not run again.
Prints Markdown tables, writes benchmarks/results/sentiment.json and docs/figures/sentiment.svg.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentiment_arms as arms
import sentiment_world as world_of
import torch
from figures import figure
from sentiment_figure import KNOBS, draw
from transformers.utils import logging

from rlhf.intervals import mean_interval

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sentiment.json"
FIGURE = HERE.parent / "docs" / "figures" / "sentiment.svg"


def main() -> None:
    """Run what is not finished, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="../shared/models/chat-3m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/uci-sentiment-sentences"))
    parser.add_argument("--folder", default="runs/bench-sentiment-{seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each draws scorers, prompts, replies anew")
    parser.add_argument("--kl_coefs", type=float, nargs="+", default=[0.2, 0.07])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--rounds", type=int, default=52, help="of PPO; 52 score as many replies as DPO's pairs take")
    parser.add_argument("--held_out", type=int, default=200, help="prompts that every point is measured on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # of loading a model, fifty times
    seeds = [run_seed(seed, arguments) for seed in arguments.seeds]
    setup = {
        "model": Path(arguments.model).name,
        "max_new_tokens": arms.MAX_NEW_TOKENS,
        "ppo": {"rounds": arguments.rounds, "replies_a_round": arms.ROUND, "kl_coefs": arguments.kl_coefs},
        "dpo": {"candidates": arms.CANDIDATES, "pairs_a_prompt": arms.PAIRS, "betas": arguments.betas},
        "best_of_n": {"pool": arms.POOL},
        "replies_a_held_out_prompt": arms.REPLIES,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    for path, text in (
        (arguments.out, json.dumps({"setup": setup, "seeds": seeds}, indent=2) + "\n"),
        (arguments.figure, draw(seeds[0]["points"], seeds[0]["seed"])),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(scorers_table(seeds) + "\n\n" + points_table(seeds))


def run_seed(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One seed's scorers and points."""
    folder = Path(arguments.folder.format(seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    proxys, golds = world_of.halves(world_of.sentences(arguments.data), seed)
    train, held_out = world_of.prompts(Path(arguments.model) / "chat_val.txt", arguments.held_out, seed)
    proxy, gold = world_of.fit(proxys), world_of.fit(golds)
    world = arms.World(arguments.model, folder, seed, train, held_out, proxy, gold)
    print(f"seed {seed}: {len(train)} prompts to train on, {len(held_out)} held out; best-of-n", flush=True)
    points, agreement = arms.best_of_n(world)
    for beta in arguments.betas:
        print(f"seed {seed}: dpo, beta {beta:g}", flush=True)
        points += arms.dpo(world, beta)
    for kl_coef in arguments.kl_coefs:
        print(f"seed {seed}: ppo, kl_coef {kl_coef:g}", flush=True)
        points += arms.ppo(world, kl_coef, arguments.rounds)
    return {
        "seed": seed,
        "prompts": {"train": len(train), "held_out": len(held_out)},
        "scorers": {
            "sentences_each": [len(proxys), len(golds)],
            # Each is tested on the other's sentences, which it has not seen.
            "proxy_accuracy": asdict(mean_interval(proxy.accuracy(golds), bounds=(0, 1))),
            "gold_accuracy": asdict(mean_interval(gold.accuracy(proxys), bounds=(0, 1))),
            "agreement": agreement,
        },
        "cpu_seconds": world.seconds(),
        "points": points,
    }


def scorers_table(seeds: list[dict[str, Any]]) -> str:
    """How good the two scorers are, and how far they agree, in Markdown."""
    lines = ["| seed | proxy's accuracy | gold's accuracy | correlation on replies |", "| --- | --- | --- | --- |"]
    for row in seeds:
        scorers = row["scorers"]
        cells = [str(row["seed"]), *(figure(scorers[f"{name}_accuracy"]) for name in ("proxy", "gold"))]
        lines.append(f"| {' | '.join(cells)} | {scorers['agreement']['correlation']:.2f} |")
    return "\n".join(lines)


def points_table(seeds: list[dict[str, Any]]) -> str:
    """Every best-of-n and every finished run in Markdown; their checkpoints are in the JSON and the figure."""
    lines = ["| seed | policy | KL, nats | proxy | gold | tokens a reply | replies that end |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in seeds:
        for point in row["points"]:
            if not point["last"]:
                continue
            bound = point["arm"] == "best-of-n"
            name = "best of" if bound else f"{point['arm']}, {KNOBS[point['arm']]}"
            kl = f"at most {point['kl']['mean']:.2f}" if bound else figure(point["kl"])
            cells = [
                str(row["seed"]),
                f"{name} {point['setting']:g}",
                kl,
                *(figure(point[key]) for key in ("proxy", "gold")),
            ]
            cells += [figure(point["length"], 1), figure(point["finished"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
