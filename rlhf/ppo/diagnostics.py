"""`rlhf doctor RUN`: what a PPO run's metrics say, in plain words: what is healthy, what is not, what to change.

Thresholds are rules of thumb, each with its reason. Sources: Schulman 2016, "The Nuts and Bolts of Deep
RL Research"; Spinning Up's PPO (Achiam 2018); Gao et al. 2023, "Scaling laws for reward model
overoptimization". Where none is named, none is known.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import UserError
from rlhf.ppo import checks_policy as policy
from rlhf.ppo import checks_training as training
from rlhf.ppo.findings import FEW_ROUNDS_OF_HALF, Check, Finding
from rlhf.ppo.series import Row, by_step
from rlhf.runs import read_run

if TYPE_CHECKING:
    from rich.table import Table

CHECKS = (
    Check("skipped updates", "updates_skipped", training.skipped, needed=0),
    Check("first-minibatch ratio", "ratio/first_deviation", training.first_ratio, needed=1),
    Check("KL at the start", "kl", training.first_kl, needed=1),
    Check("score", "score", policy.score, FEW_ROUNDS_OF_HALF),
    Check("gold against score", "guard/gold", policy.gold, needed=0),
    Check("KL and its ceiling", "kl", policy.ceiling, needed=1),
    Check("update size", "approx_kl", training.update_size, trained=True),
    Check("clip fraction", "clip_fraction", training.clip, trained=True),
    Check("explained variance", "explained_variance", training.value),
    Check("replies that end", "eos_rate", policy.eos),
    Check("reply length", "length", policy.length),
    Check("entropy", "entropy", policy.entropy),
    Check("time", "seconds/rollout", training.time, needed=1),
)


def examine(folder: str | Path) -> list[Finding]:
    """The findings on a PPO run folder, finished or not.

    Raises UserError where it is no run folder, not a PPO run, or holds no metrics yet.
    """
    run = read_run(folder)
    if run.stage != "ppo":
        raise UserError(f"{folder}: is a {run.stage} run; doctor reads PPO runs: give the output_dir of `rlhf ppo`")
    path = Path(folder) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # torn: by a kill, or because it is being written now
    if not by_step(rows):
        raise UserError(f"{path}: holds no metrics yet; wait for the first round, then ask again")
    return diagnose(rows, run.config)


def diagnose(rows: list[Row], config: Row) -> list[Finding]:
    """Every check on the rows of metrics.jsonl; `config` is run.json's."""
    rounds = by_step(rows)
    return [check(rounds, config) for check in CHECKS]


def table(findings: Sequence[Finding]) -> "Table":
    """The findings for the console, worst first, readable at 80 columns; mends only where not good."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    styles = {"bad": "bold red", "watch": "yellow", "unknown": "dim", "good": "green"}
    counts = [f"{sum(f.verdict == verdict for f in findings)} {verdict}" for verdict in styles]
    shown = Table(box=box.SIMPLE_HEAD, caption=", ".join(counts), caption_justify="left", padding=(0, 1, 1, 0))
    shown.add_column("verdict", min_width=7)
    shown.add_column("figure", max_width=24)
    shown.add_column("what it means")
    for finding in sorted(findings, key=lambda finding: list(styles).index(finding.verdict)):
        sentence = Text(finding.meaning)
        if finding.verdict != "good":
            sentence.append(f"\n-> {finding.mend}", style="bold")
        figure = Text.assemble((finding.name, "bold"), "\n", finding.figure)
        shown.add_row(Text(finding.verdict, styles[finding.verdict]), figure, sentence)
    return shown
