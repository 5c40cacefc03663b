"""Our length-controlled win rate beside alpaca_eval's own, on the same verdicts.

    python benchmarks/alpaca_eval_parity.py --data ../shared/data

Real ones: people's rankings of four answers (QA-feedback, each two of the four as policies) and their choices between
two replies (HH, the sides drawn by lot). Made ones: a judge who likes length, with and without known difficulty, with
verdicts that are shares as a language model's log-probabilities are. alpaca_eval 0.6.6 runs in an environment of
its own, which this makes (half a minute, PyPI). Prints Markdown, writes benchmarks/results/alpaca_eval.json.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from rlhf.compare.length_control import length_controlled
from rlhf.compare.statistics import Bootstrap

VERSION = "0.6.6"
# With newer ones it does not start, or its regression is refused.
REQUIREMENTS = [f"alpaca_eval=={VERSION}", "scikit-learn<1.6", "pandas<2.3", "setuptools<81"]
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "alpaca_eval.json"
GOAL = 1e-3
Study = dict[str, list[float]]


def main() -> None:
    """Collect studies, have both say their numbers, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of qa-feedback and hh-rlhf")
    parser.add_argument("--peer", type=Path, default=Path("runs/alpaca-eval"), help="where its environment is made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    studies = dict([*qa_feedback(arguments.data), hh(arguments.data), *made()])
    theirs = ask_alpaca_eval(studies, environment(arguments.peer))
    rows = {name: beside(study, theirs[name]) for name, study in studies.items()}
    arguments.out.write_text(json.dumps({"alpaca_eval": VERSION, "studies": rows}, indent=2) + "\n")
    print(table(rows))


def environment(folder: Path) -> Path:
    """Its Python; made where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *REQUIREMENTS]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        (folder / "ready").touch()
    return python


def ask_alpaca_eval(studies: dict[str, Study], python: Path) -> dict[str, Any]:
    """What it says of each study."""
    with tempfile.TemporaryDirectory() as name:
        asked, told = Path(name) / "in.json", Path(name) / "out.json"
        asked.write_text(json.dumps(studies))
        command = [str(python.absolute()), str(HERE / "alpaca_eval_peer.py"), str(asked), str(told)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return json.loads(told.read_text())


def qa_feedback(data: Path) -> Iterator[tuple[str, Study]]:
    """People's verdicts on answers 1 to 4 of each question, two at a time."""
    with gzip.open(data / "qa-feedback" / "dev_feedback.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    for number, (a, b) in enumerate(combinations((1, 2, 3, 4), 2)):
        wins = [{0: 0.5, 1: 1.0, 2: 0.0}[row["preference"][number]] for row in rows]
        lengths = [[float(len(row[f"prediction {one}"])) for row in rows] for one in (a, b)]
        yield f"QA-feedback, {a} and {b}", {"wins": wins, "a_lengths": lengths[0], "b_lengths": lengths[1]}


def hh(data: Path) -> tuple[str, Study]:
    """People's choices between two replies; by lot which of them is a's."""
    with gzip.open(data / "hh-rlhf" / "harmless-base.test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    wins = np.random.default_rng(0).integers(2, size=len(rows)).astype(float)
    lengths = [[len(row[side].rpartition("\n\nAssistant:")[2]) for row in rows] for side in ("chosen", "rejected")]
    chosen, rejected = np.array(lengths, dtype=float)
    a, b = np.where(wins == 1, chosen, rejected), np.where(wins == 1, rejected, chosen)
    return "HH, sides by lot", {"wins": wins.tolist(), "a_lengths": a.tolist(), "b_lengths": b.tolist()}


def made() -> Iterator[tuple[str, Study]]:
    """A judge who likes length; a is longer on most prompts, and a little better."""
    for count, difficult in ((805, False), (5000, False), (5000, True)):
        draw = np.random.default_rng(count)
        b = draw.integers(200, 2000, count).astype(float)
        a = np.clip(b + draw.normal(300, 500, count), 1, None).round()
        hard = draw.normal(0, 1, count)
        logit = 0.3 + 1.2 * np.tanh((a - b) / np.std(a - b, ddof=1)) + 0.5 * hard * difficult
        wins = np.clip(expit(logit + draw.normal(0, 2, count)).round(6), 1e-6, 1 - 1e-6)
        study = {"wins": wins.tolist(), "a_lengths": a.tolist(), "b_lengths": b.tolist()}
        yield (
            f"made, {count:,} prompts{', difficulty known' if difficult else ''}",
            study | ({"difficulty": hard.tolist()} if difficult else {}),
        )


def beside(study: Study, theirs: dict[str, float]) -> dict[str, float]:
    """Their numbers and ours, all as shares."""
    wins, a, b = study["wins"], study["a_lengths"], study["b_lengths"]
    bootstrap = Bootstrap([str(at) for at in range(len(wins))], 0.95, 2000, 0)
    default = length_controlled(wins, a, b, bootstrap, study.get("difficulty"))
    free = length_controlled(wins, a, b, bootstrap, study.get("difficulty"), ridge=0)
    low, high = default.raw.low, default.raw.high
    assert low is not None and high is not None  # hundreds of prompts
    return {
        "prompts": len(wins),
        "ours": default.raw.mean,
        "alpaca_eval": theirs["win_rate"] / 100,
        "ours_standard_error": (high - low) / (2 * 1.959964),
        "alpaca_eval_standard_error": theirs["standard_error"] / 100,
        "ours_controlled": default.controlled.mean,
        "alpaca_eval_controlled": theirs["controlled"] / 100,
        "ours_controlled_free": free.controlled.mean,
        "alpaca_eval_controlled_free": theirs["controlled_free"] / 100,
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """In Markdown, with the largest differences."""
    lines = [
        "| verdicts | prompts | win rate, ours and theirs | length-controlled, as each comes | without penalties |",
        "| --- " * 5 + "|",
    ]
    for name, row in rows.items():
        pairs = [
            f"{row[f'ours{what}']:.4f} {row[f'alpaca_eval{what}']:.4f}"
            for what in ("", "_controlled", "_controlled_free")
        ]
        lines.append(f"| {name} | {row['prompts']:,} | {' | '.join(pairs)} |")
    lines.append("")
    for what, title in (
        ("", "win rate"),
        ("_standard_error", "standard error"),
        ("_controlled", "length-controlled, as each comes"),
        ("_controlled_free", "length-controlled, without penalties"),
    ):
        largest = max(abs(row[f"ours{what}"] - row[f"alpaca_eval{what}"]) for row in rows.values())
        lines.append(f"{title}: they differ by at most {largest:.1e}{'' if largest <= GOAL else f', over {GOAL:g}'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
