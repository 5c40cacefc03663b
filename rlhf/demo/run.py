"""demo: the whole loop on the embedded help desk, offline, with one figure at the end."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.loop import STAGES, run_recipe
from rlhf.records import Run

# The demo's own stages beside the common ones; only here do annotators come from code.
DEMO_STAGES = {"demo-write": "rlhf.demo.write", "demo-rank": "rlhf.demo.rank", "demo-vote": "rlhf.demo.vote"}
RECIPE = "configs/recipes/demo.yaml"


@dataclass
class DemoConfig:
    """Where the demo runs, and from which seed."""

    output_dir: str | None = field(default=None, metadata={"help": "The demo's folder; runs/demo-SEED by default."})
    seed: int = field(default=0, metadata={"help": "Seed of every stage: data, weights, sampling, annotators."})
    fresh: bool = field(default=False, metadata={"help": "Remove the folder of an earlier demo first."})
    annotate: bool = field(
        default=False,
        metadata={"help": "Rank the responses yourself in the browser, in place of the simulated annotators."},
    )
    port: int = field(default=7861, metadata={"help": "Where the labeling app is, with --annotate true; 0 = any port."})


class Config(NamedTuple):
    """What `rlhf demo` takes."""

    demo: DemoConfig


def run(config: Config, announce: Callable[[str, int, int, Run | None], None] = lambda *_: None) -> dict[str, Run]:
    """Run (or go on with, or just show again) the demo, and print what it shows."""
    settings = config.demo
    root = Path(settings.output_dir or f"runs/demo-{settings.seed}{'-annotated' if settings.annotate else ''}")
    if settings.fresh and (root / "demo-write" / "run.json").is_file():
        shutil.rmtree(root)
    seeded = ["demo-write", "pretrain", "sft", "sample", "demo-rank", "export", "reward", "dpo", "ppo", "compare"]
    seeds: dict[str, dict[str, Any]] = {name: {"seed": settings.seed} for name in seeded}
    stages = STAGES | DEMO_STAGES
    if settings.annotate:
        stages["demo-rank"] = "rlhf.demo.annotate"
        seeds["demo-rank"]["port"] = settings.port
    runs = run_recipe(RECIPE, str(root), seeds, stages, announce)
    show(runs, root)
    return runs


def show(runs: dict[str, Run], root: Path) -> None:
    """The demo's figures, and where to look next."""
    from rich.console import Console
    from rich.table import Table

    report = json.loads((root / "compare" / "report.json").read_text(encoding="utf-8"))
    table = Table(title=f"What the demo showed, in {sum(run.seconds or 0 for run in runs.values()):.0f} s")
    for heading in ("", "value", "95% interval", "n"):
        table.add_column(heading, justify="left" if not heading else "right")

    def add(what: str, figure: dict[str, Any] | None) -> None:
        if figure:
            table.add_row(
                what, f"{figure['mean']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}", f"{figure['n']:,}"
            )

    reward = runs["reward"].metrics
    add("reward model: accuracy on held-out prompts", reward["accuracy"])
    add("  longer response wins (baseline)", reward["longer_wins"])
    add("  one annotator against the others (ceiling)", reward["human_ceiling"])
    for name, policy in report["policies"].items():
        add(f"{name}: gold score", policy["gold"])
        add(f"{name}: KL to sft, nats a reply", policy["kl"])
        add(f"{name}: win rate over the first, by gold", policy["win_rate"])
    console = Console()
    console.print(table)
    console.print(report["verdict"], highlight=False)
    console.print(f"next: open {root}/compare/report.html", highlight=False, soft_wrap=True)
    console.print(f"      rlhf chat {root}/dpo {root}/ppo", highlight=False, soft_wrap=True)
