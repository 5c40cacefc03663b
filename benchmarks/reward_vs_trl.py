"""Our reward stage, of both kinds, beside TRL's RewardTrainer as it is, on the same human pairs, over several splits.

    python benchmarks/reward_vs_trl.py --splits 0 1

TRL's arm reads the pairs as their file has them ("\\n\\nHuman: ...\\n\\nAssistant: ..."), the last 150 tokens of each
side, 2 epochs at 3e-4: the reference in docs/results.md. Ours is the reward stage of
configs/recipes/hh_harmless.yaml, from the same model: `ours` with its head's score, `implicit` with reward_kind
implicit. All are asked about the same held-out pairs. Finished arms are read and not run again; one takes about ten
minutes, implicit twice as long. Prints Markdown and writes
benchmarks/results/reward_vs_trl.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from figures import figure
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from rlhf.intervals import mean_interval
from rlhf.records import Preference, read_jsonl
from rlhf.scoring import RewardModel, load_reward_model

RESULTS = Path(__file__).parent / "results" / "reward_vs_trl.json"
LAST_TOKENS = 150
Scores = tuple[list[float], list[float]]  # of the chosen replies, of the rejected ones
SPEAKER = {"user": "Human", "assistant": "Assistant"}


def main() -> None:
    """Run every arm of every split, collect, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="../shared/models/chat-3m")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-reward"))
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    arguments = parser.parse_args()
    recipe = yaml.safe_load(Path("configs/recipes/hh_harmless.yaml").read_text())["stages"]
    for split in arguments.splits:
        folder = arguments.folder / str(split)
        pairs = arguments.data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
        rlhf("prepare", folder, recipe["prepare"] | {"input": str(pairs), "seed": split})
        for arm in arguments.arms:
            if not (folder / f"{arm}.json").exists():
                scores = ARMS[arm](folder, arguments.model, split, recipe["reward"])
                (folder / f"{arm}.json").write_text(json.dumps(scores))
    if set(arguments.arms) != set(ARMS):
        return
    result = summary(arguments.folder, arguments.splits)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def rlhf(verb: str, folder: Path, settings: dict[str, Any], name: str | None = None) -> Path:
    """Run one stage into `folder`/`name`, if it has none `folder`/verb, unless it is there."""
    output = folder / (name or verb)
    if not (output / "run.json").exists():
        config = folder / f"{name or verb}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(settings | {"output_dir": str(output)}))
        subprocess.run([sys.executable, "-m", "rlhf", verb, "--config", str(config)], check=True)
    return output


def ours(folder: Path, model: str, split: int, settings: dict[str, Any]) -> Scores:
    """The recipe's reward stage, started from the base model."""
    return stage(folder, model, split, settings, "reward")


def implicit(folder: Path, model: str, split: int, settings: dict[str, Any]) -> Scores:
    """The same with the other kind of reward, its beta as it comes."""
    return stage(folder, model, split, settings | {"reward_kind": "implicit"}, "implicit")


def stage(folder: Path, model: str, split: int, settings: dict[str, Any], name: str) -> Scores:
    """Our reward stage into `folder`/`name`, and its scores."""
    settings = settings | {
        "model_name_or_path": model,
        "chat_template_path": "configs/templates/user_bot.jinja",
        "preferences": str(folder / "prepare/preferences.train.jsonl"),
        "eval_preferences": str(folder / "prepare/preferences.test.jsonl"),
        "seed": split,
    }
    scorer = load_reward_model(str(rlhf("reward", folder, settings, name)), settings["max_length"])
    rows = held_out(folder)
    prompts = [row.prompt for row in rows]
    chosen = scorer(prompts, [row.chosen[-1]["content"] for row in rows])
    return chosen, scorer(prompts, [row.rejected[-1]["content"] for row in rows])


def trl(folder: Path, model: str, split: int, _: dict[str, Any]) -> Scores:
    """TRL's trainer with its defaults, on the last tokens of each side."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    network.config.pad_token_id = tokenizer.pad_token_id
    rows = read_jsonl(str(folder / "prepare/preferences.train.jsonl"), Preference)
    sides = {f"{side}_ids": [last_ids(tokenizer, row, side) for row in rows] for side in ("chosen", "rejected")}
    training = RewardConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=2,
        learning_rate=3e-4,
        seed=split,
        bf16=False,
        gradient_checkpointing=False,  # changes no figure, only the time
        save_strategy="no",
        report_to="none",
    )
    RewardTrainer(
        model=network, args=training, train_dataset=Dataset.from_dict(sides), processing_class=tokenizer
    ).train()
    scorer = RewardModel(network, tokenizer_for_scores(tokenizer), LAST_TOKENS)
    rows = held_out(folder)
    chosen, rejected = (
        scorer.score_ids([last_ids(tokenizer, row, side) for row in rows]) for side in ("chosen", "rejected")
    )
    return chosen, rejected


def tokenizer_for_scores(tokenizer: Any) -> Any:
    """The tokenizer with some template, which score_ids does not use and RewardModel asks for."""
    tokenizer.chat_template = tokenizer.chat_template or Path("configs/templates/user_bot.jinja").read_text()
    return tokenizer


def held_out(folder: Path) -> list[Preference]:
    """The pairs that neither arm trains on."""
    return read_jsonl(str(folder / "prepare/preferences.test.jsonl"), Preference)


def last_ids(tokenizer: Any, row: Preference, side: str) -> list[int]:
    """The end of one side, its turns written as in the file they came from."""
    turns = [*row.prompt, *getattr(row, side)]
    text = "".join(f"\n\n{SPEAKER[turn['role']]}: {turn['content']}" for turn in turns)
    return tokenizer(text)["input_ids"][-LAST_TOKENS:]


ARMS: dict[str, Callable[[Path, str, int, dict[str, Any]], Scores]] = {"trl": trl, "ours": ours, "implicit": implicit}
# What is set against what, pair by pair.
DIFFERENCES = {"ours - trl": ("ours", "trl"), "implicit - ours": ("implicit", "ours")}


def wins(folder: Path, arm: str) -> list[float]:
    """Of each held-out pair: 1 where the arm scores the chosen reply higher, 0.5 where both the same."""
    chosen, rejected = json.loads((folder / f"{arm}.json").read_text())
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(chosen, rejected, strict=True)]


def summary(folder: Path, splits: list[int]) -> dict[str, Any]:
    """Each arm's accuracy by split and over all, and the differences, pair by pair."""
    result: dict[str, Any] = {"splits": {}}
    pooled: dict[str, list[float]] = {name: [] for name in (*ARMS, *DIFFERENCES)}
    groups: list[str] = []
    for split in splits:
        each = {arm: wins(folder / str(split), arm) for arm in ARMS}
        for name, (one, other) in DIFFERENCES.items():
            each[name] = [a - b for a, b in zip(each[one], each[other], strict=True)]
        mine = [row.group_id for row in held_out(folder / str(split))]
        result["splits"][split] = {name: asdict(mean_interval(values, mine)) for name, values in each.items()}
        for name, values in each.items():
            pooled[name] += values
        groups += mine  # a prompt held out twice is one piece of evidence
    result["all"] = {name: asdict(mean_interval(values, groups)) for name, values in pooled.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """The accuracies in Markdown."""
    names = [*ARMS, *DIFFERENCES]
    lines = [f"| split | {' | '.join(names)} | prompts |", "| --- " * (len(names) + 2) + "|"]
    for name, row in [*result["splits"].items(), ("all", result["all"])]:
        cells = [figure(row[name], 3) for name in names]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ours']['n']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
