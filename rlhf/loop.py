"""Where stages meet: the table of verbs, and recipes that run several stages in a row, resumable."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.config import as_dict, from_values, load_function, packaged, read_yaml
from rlhf.errors import UserError, nearest
from rlhf.records import Ranking, RewardFunction, Run, Task
from rlhf.runs import check_output_dir, is_main_process, read_run

# Verb: its module. Each has `Config` and `run(config)`.
STAGES = {
    "prepare": "rlhf.data.prepare",
    "pretrain": "rlhf.pretrain",
    "sft": "rlhf.sft",
    "sample": "rlhf.sample",
    "select": "labeling_app.selection",
    "export": "labeling_app.export",
    "reward": "reward_model.train",
    "dpo": "rlhf.dpo",
    "ppo": "rlhf.ppo.run",
    "compare": "rlhf.compare.run",
}


def run_stage(verb: str, config: tuple[Any, ...], modules: dict[str, str] | None = None) -> Run:
    """Run one stage, and hand `compare` its judges and votes, `select` its scorers: all that one needs of another."""
    module = importlib.import_module((modules or STAGES)[verb])
    part = next(part for part in config if hasattr(part, "output_dir"))
    if part.output_dir is not None and is_main_process():  # other ranks may look when this one has begun to write
        check_output_dir(part.output_dir, any(getattr(part, "resume", False) for part in config))
    if verb == "compare":
        return module.run(config, judges(config[0]), people(config[0]))
    if verb == "select":
        return module.run(config, scorers(config[0]))
    return module.run(config)


def judges(settings: Any) -> dict[str, RewardFunction]:
    """The judges that compare's settings name: a reward model's folder, a gold `module:function`."""
    found: dict[str, RewardFunction] = {}
    if settings.reward_model:
        from rlhf.scoring import load_reward_model

        found["reward_model"] = load_reward_model(settings.reward_model, batch_size=settings.batch_size)
    if settings.gold:
        found["gold"] = load_function(settings.gold, "gold")
    for entry in settings.judges:
        name, equals, place = entry.partition("=")
        if not equals or not name or not place or name in (*found, "people", "llm_judge"):
            raise UserError(f"judges: `{entry}` is no name=module:function or name=RUN with a name of its own")
        found[name] = _judge(place, settings.batch_size)
    return found


def _judge(place: str, batch_size: int) -> RewardFunction:
    """A likelihood, a function, a reward model, or the mean of several."""
    from rlhf.compare.likelihood_judges import is_likelihood_judge, likelihood_judge
    from rlhf.scoring import load_reward_model

    if is_likelihood_judge(place):
        return likelihood_judge(place, batch_size)
    if ":" in place and not Path(place).exists():
        return load_function(place, "judges")
    models = [load_reward_model(path, batch_size=batch_size) for path in place.split(",")]
    if len(models) == 1:
        return models[0]

    def ensemble(prompts: Any, responses: Any, **columns: Any) -> list[float]:
        scores = [model(prompts, responses, **columns) for model in models]
        return [sum(row) / len(row) for row in zip(*scores, strict=True)]

    return ensemble


def people(settings: Any) -> tuple[list[Task], list[Ranking]] | None:
    """The comparisons that compare's settings name, and people's answers to them: a label store's path or URL."""
    if settings.people is None:
        return None
    from labeling_app.blind import read_votes

    return read_votes(settings.people)


def scorers(settings: Any) -> dict[str, RewardFunction]:
    """What select's settings name: reward models' folders, functions as `module:function`."""
    if settings.by == "random":
        return {}
    from rlhf.scoring import load_reward_model

    return {
        name: load_function(name, "reward")
        if ":" in name and not Path(name).exists()
        else load_reward_model(name, batch_size=settings.batch_size)
        for name in settings.reward
    }


def run_recipe(
    path: str,
    output_dir: str | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    modules: dict[str, str] | None = None,
    announce: Callable[[str, int, int, Run | None], None] = lambda *_: None,
) -> dict[str, Run]:
    """Run the stages of a recipe one after another; finished ones are passed over, a cut-off one goes on.

    A recipe is a YAML with `output_dir` and `stages`, a mapping from a stage's name to its settings.
    The name is the verb, or `verb.anything` where a verb comes twice. In the settings a path that
    begins with an earlier stage's name and a slash means that stage's run folder: `sft/`. `settings`
    are laid over the recipe's. Every stage's settings are checked before the first begins.
    """
    modules = modules or STAGES
    recipe = read_yaml(packaged(path))
    unknown = set(recipe) - {"output_dir", "stages"}
    if unknown:
        raise UserError(f"{path}: unknown key `{sorted(unknown)[0]}`; a recipe has output_dir and stages")
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{path}: has no stages; list them under `stages:`, a verb and its settings each")
    root = Path(output_dir or recipe.get("output_dir") or "")
    if root == Path():
        raise UserError(f"{path}: has no output_dir; set it, or give --output_dir runs/NAME")
    plan = _plan(path, stages, root, settings or {}, modules)
    for name, (verb, values) in plan.items():
        _config(path, name, verb, values, modules)
    runs: dict[str, Run] = {}
    for number, (name, (verb, values)) in enumerate(plan.items(), 1):
        # Made anew: TrainingArguments set process-wide state, which the next stage's have overwritten.
        config = _config(path, name, verb, values, modules)
        folder = root / name
        there = read_run(folder) if (folder / "run.json").is_file() else None
        if there is not None and there.finished:
            now = as_dict(config)
            changed = [key for key in values if key != "resume" and there.config.get(key) != now[key]]
            if changed:
                raise UserError(
                    f"{folder}: finished with another {', '.join(changed)}; remove it, or choose another --output_dir"
                )
            runs[name] = there
            continue
        announce(name, number, len(plan), None)
        runs[name] = run_stage(verb, config, modules)
        announce(name, number, len(plan), runs[name])
    return runs


def _plan(
    path: str, stages: dict[str, Any], root: Path, over: dict[str, dict[str, Any]], modules: dict[str, str]
) -> dict[str, tuple[str, dict[str, Any]]]:
    plan: dict[str, tuple[str, dict[str, Any]]] = {}
    if missing := [name for name in over if name not in stages]:
        raise UserError(f"{path}: has no stage `{missing[0]}`{nearest(missing[0], [str(name) for name in stages])}")
    for name, values in stages.items():
        verb = str(name).split(".")[0]
        if verb not in modules:
            raise UserError(f"{path}: unknown stage `{name}`{nearest(verb, list(modules))}")
        values = {**(values or {}), **over.get(name, {})}
        values = {key: _placed(value, list(plan), root) for key, value in values.items()}
        plan[name] = (verb, values | {"output_dir": str(root / name), "resume": (root / name / "run.json").is_file()})
    return plan


def _config(path: str, name: str, verb: str, values: dict[str, Any], modules: dict[str, str]) -> tuple[Any, ...]:
    config = from_values(importlib.import_module(modules[verb]).Config, values, f"{path}, stage {name}")
    if any(getattr(part, "live", False) for part in config):
        raise UserError(
            f"{path}, stage {name}: live: waits for Ctrl-C and would hold the recipe; leave it out, and look with "
            f"`rlhf watch {values['output_dir']}`"
        )
    return config


def _placed(value: Any, earlier: list[str], root: Path) -> Any:
    """Paths that begin with an earlier stage's name, put under the recipe's folder."""
    if isinstance(value, list):
        return [_placed(item, earlier, root) for item in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    name, equals, place = value.rpartition("=")  # compare's `name=path`
    return f"{name}{equals}{root / place}" if place.split("/")[0] in earlier else value
