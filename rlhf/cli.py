"""The verbs: `rlhf <verb> --config configs/<verb>.yaml [--key value]`."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, is_disk_full, nearest

# What each verb does, in the order in which a newcomer meets them.
VERBS = {
    "demo": "run the whole loop on an embedded help desk, offline, in minutes",
    "prepare": "raw files -> clean records, split by prompt",
    "pretrain": "a small model from scratch on plain text",
    "sft": "imitate demonstrations",
    "sample": "K responses a prompt, ready to rank",
    "select": "which of those tasks are worth asking people about",
    "label": "people rank responses in the browser; also: label invite, backup, restore",
    "export": "rankings -> preferences",
    "reward": "learn a score from preferences",
    "dpo": "train a policy on preferences",
    "ppo": "train a policy on the scores of its own replies",
    "compare": "which policy is better, and how sure are we: one report",
    "watch": "a comparison in the browser while it runs: progress, win rates so far, the report",
    "launch": "any of these trainings on many GPUs, checked, watched and restarted",
    "recipe": "run the stages of a recipe one after another, resumable",
    "chat": "talk to one policy, or to two side by side, in the browser",
    "serve": "an OpenAI-compatible server on a policy",
    "plan": "will a training fit, with which sharding, and how long will it take",
    "doctor": "what a PPO run's figures say about its health, and what to change",
    "configs": "list the configs that come with rlhf, or copy them here",
}

# The next command to type; {out} is the run's folder.
NEXT = {
    "prepare": "rlhf sft --demonstrations {out}/demonstrations.train.jsonl --model_name_or_path MODEL",
    "pretrain": "rlhf sft --model_name_or_path {out} --demonstrations DEMONSTRATIONS.jsonl",
    "sft": "rlhf sample --policies {out} --prompts PROMPTS.jsonl",
    "sample": "rlhf label --tasks {out}/tasks.jsonl",
    "select": "rlhf label --tasks {out}/tasks.jsonl",
    "export": "rlhf reward --preferences {out}/preferences.train.jsonl --model_name_or_path SFT_RUN",
    "reward": "rlhf dpo --preferences PREFERENCES.jsonl --model_name_or_path SFT_RUN",
    "ppo": "rlhf compare --policies SFT_RUN DPO_RUN {out} --prompts PROMPTS.jsonl --reward_model REWARD_RUN",
    "dpo": "rlhf compare --policies SFT_RUN {out} --prompts PROMPTS.jsonl --reward_model REWARD_RUN",
    "compare": "open {out}/report.html",
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb. A UserError is one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What libraries warn each other about; nobody who types a verb can act on it.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        _dispatch(argv)
    except UserError as error:
        print(f"rlhf: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rlhf: stopped; what is on disk is whole, go on with --resume true", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(f"rlhf: no space left on the disk ({error}); free some and run again", file=sys.stderr)
        sys.exit(2)


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    if argv[0] == "--version":
        import rlhf

        print(rlhf.__version__)
        return
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        raise UserError(f"unknown verb `{verb}`{nearest(verb, list(VERBS))}; `rlhf --help` lists them")
    if verb == "configs":
        _configs(rest)
    elif verb == "plan":
        _plan(rest)
    elif verb == "doctor":
        _doctor(rest)
    elif verb == "demo":
        _demo(rest)
    elif verb == "recipe":
        _recipe(rest)
    elif verb == "launch":
        _launch(rest)
    elif verb in ("chat", "serve"):
        _talk(verb, rest)
    elif verb == "watch":
        _watch(rest)
    elif verb == "label":
        _label(rest)
    else:
        _stage(verb, rest)


def _usage() -> str:
    lines = ["usage: rlhf <verb> --config configs/<verb>.yaml [--key value ...]", ""]
    lines += [f"  {verb:<9} {what}" for verb, what in VERBS.items()]
    lines += ["", "`rlhf <verb> --help` lists the verb's keys. `rlhf demo` is the place to start."]
    return "\n".join(lines)


def _stage(verb: str, argv: list[str]) -> None:
    import importlib

    from rlhf.config import packaged, parse
    from rlhf.loop import STAGES, run_stage

    default = f"configs/{verb}.yaml"
    config_type = importlib.import_module(STAGES[verb]).Config
    config = parse(config_type, argv, default if packaged(default).is_file() else None)
    run = run_stage(verb, config)
    _show(run, _output_dir(config))


def _recipe(argv: list[str]) -> None:
    """`--output_dir DIR` and `--STAGE.KEY VALUE ...` are laid over the recipe."""
    from rlhf.loop import run_recipe

    path, flags = _recipe_flags(argv)
    output_dir = flags.pop("output_dir", [None])[0]
    settings: dict[str, dict[str, Any]] = {}
    for flag, values in flags.items():
        stage, _, key = flag.rpartition(".")
        if not stage:
            raise UserError(f"unknown flag `--{flag}`; a recipe takes --output_dir DIR and --STAGE.KEY VALUE")
        settings.setdefault(stage, {})[key] = values if len(values) > 1 else values[0]
    runs = run_recipe(path, output_dir, settings, announce=_announce)
    print(f"\n{path}: {len(runs)} stages done")


def _launch(argv: list[str]) -> None:
    """`rlhf launch [--key value ...] -- VERB ...`; the exit code is the verb's."""
    from rlhf.launcher.command import run

    code = run(argv)
    if code:
        sys.exit(code)


def _recipe_flags(argv: list[str]) -> tuple[str, dict[str, list[str]]]:
    flags: dict[str, list[str]] = {}
    name = "config"
    for word in argv:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = []
        else:
            flags.setdefault(name, []).append(word)
    for name, values in flags.items():
        if not values:
            raise UserError(f"--{name}: needs a value")
    if "config" not in flags:
        raise UserError("no recipe named; as in `rlhf recipe configs/recipes/hh_harmless.yaml`")
    return flags.pop("config")[0], flags


def _demo(argv: list[str]) -> None:
    from rlhf.config import parse
    from rlhf.demo.run import Config, run

    run(parse(Config, argv, None), _announce)


def _talk(verb: str, argv: list[str]) -> None:
    import importlib

    from rlhf.config import packaged, parse

    runs: list[str] = []
    while argv and not argv[0].startswith("--"):
        runs.append(argv.pop(0))
    module = importlib.import_module(f"rlhf.{verb}")
    default = f"configs/{verb}.yaml"
    flags = ["--policies", *runs] if runs else []
    module.run(parse(module.Config, [*flags, *argv], default if packaged(default).is_file() else None))


def _watch(argv: list[str]) -> None:
    """`rlhf watch RUN [--host HOST] [--port PORT]`."""
    from rlhf.compare.live.page import Config, run
    from rlhf.config import parse

    given = ["--run", *argv] if argv and not argv[0].startswith("-") else argv
    run(parse(Config, given, "configs/watch.yaml"))


def _label(argv: list[str]) -> None:
    """`rlhf label` opens the app; `rlhf label invite|backup|restore` tend its store."""
    from labeling_app import label, tend
    from rlhf.config import parse

    if argv and not argv[0].startswith("-"):
        tend.main(argv)
        return
    label.run(parse(label.Config, argv, "configs/label.yaml"))


def _doctor(argv: list[str]) -> None:
    from rich.console import Console

    from rlhf.ppo.diagnostics import examine, table

    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("doctor: give one run folder, as in `rlhf doctor runs/ppo`")
    Console().print(table(examine(argv[0])))


def _plan(argv: list[str]) -> None:
    """`rlhf plan VERB`: the verb's own config and flags, and the planner's."""
    import importlib

    from rlhf.loop import STAGES
    from rlhf.planner import plan

    plan.run(importlib.import_module(STAGES[plan.check_verb(argv)]).Config, argv)


def _configs(argv: list[str]) -> None:
    """`rlhf configs` lists, `rlhf configs FOLDER` copies them there."""
    import shutil

    from rlhf.config import packaged

    root = packaged("configs/sft.yaml").parent
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if not argv:
        for path in files:
            print(f"configs/{path.relative_to(root)}")
        return
    target = Path(argv[0])
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: exists and is not empty; name a new folder")
    shutil.copytree(root, target, dirs_exist_ok=True)
    print(f"{len(files)} files copied to {target}")


def _announce(name: str, number: int, total: int, run: Any) -> None:
    from rich.console import Console

    console = Console()
    if run is None:
        console.rule(f"[bold]{number}/{total}  {name}", align="left")
    else:
        console.print(f"[dim]{name}: {run.seconds:.0f} s", highlight=False)


def _output_dir(config: tuple[Any, ...]) -> str:
    return str(next(part.output_dir for part in config if hasattr(part, "output_dir")))


def _show(run: Any, output_dir: str) -> None:
    """A short table of the run's metrics and the next command."""
    from rlhf.runs import is_main_process

    if not is_main_process():
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{run.stage}: {output_dir}  ({run.seconds:.0f} s)", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for key, value in run.metrics.items():
        if (text := _metric(value)) is not None:
            printable = "".join(sign if sign.isprintable() else " " for sign in text)  # reasons that people wrote
            table.add_row(key.replace("_", " "), Text(printable))
    console = Console()
    console.print(table)
    if run.stage in NEXT:
        console.print("next: " + NEXT[run.stage].format(out=output_dir), highlight=False, soft_wrap=True)


def _metric(value: Any) -> str | None:
    if isinstance(value, dict):
        if {"mean", "low", "high", "n"} <= set(value):
            if value["mean"] is None:
                return None
            return f"{value['mean']:.3f}  (95% interval {value['low']:.3f} to {value['high']:.3f}, n = {value['n']:,})"
        parts = [f"{key.replace('_', ' ')} {_metric(item)}" for key, item in value.items() if item not in (None, 0, {})]
        return ", ".join(parts) or None
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return None if value is None else str(value)
