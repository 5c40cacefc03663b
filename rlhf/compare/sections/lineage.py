"""Each policy back to its labels, annotators, data, settings and code."""

from typing import Any

from rlhf.compare.judges import REWARD_MODEL, label
from rlhf.compare.sections.section import Section
from rlhf.compare.study import Context, Study
from rlhf.lineage import Ancestor, Lineage, trace
from rlhf.runs import settings_of

# What one looks up first of a run; the rest is in report.json and in the run's own run.json.
_SHOWN = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "loss_type", "beta", "kl_coef", "num_ppo_epochs", "num_responses", "temperature", "max_new_tokens", "use_peft",
    "lora_r", "dtype", "bf16", "seed",
)  # fmt: skip


def measure(context: Context) -> dict[str, Lineage]:
    """The lineage of every policy and of the reward model, by name."""
    models = dict(context.policies)
    if (reward_model := context.config.compare.reward_model) is not None:
        models[REWARD_MODEL] = reward_model
    return {name: trace(path) for name, path in models.items()}


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`models`: by name the ids of its runs, parents first, and those `missing`; `runs`: what each was made of."""
    lineages: dict[str, Lineage] = study.measured.get("lineage") or {}
    if not any(lineage.runs for lineage in lineages.values()):
        return None
    return {
        "models": {name: {"runs": list(one.runs), "missing": one.missing} for name, one in lineages.items()},
        "runs": {id: _numbers(ancestor) for lineage in lineages.values() for id, ancestor in lineage.runs.items()},
    }


def _numbers(ancestor: Ancestor) -> dict[str, Any]:
    run = ancestor.run
    annotators = run.metrics.get("num_annotators")
    return {
        "stage": run.stage,
        "parents": run.parents,
        "data_sha256": run.data_sha256,
        "labels_sha256": run.labels_sha256,
        "num_annotators": annotators,
        "num_votes": run.metrics.get("num_votes") if annotators else None,
        "git_sha": run.git_sha,
        "versions": run.versions,
        "settings": settings_of(run),
    }


def view(report: dict[str, Any]) -> dict[str, Any]:
    """The chain of each model, and a row for each run."""
    models, runs = report["lineage"]["models"], report["lineage"]["runs"]
    return {
        "chains": [
            {
                "name": name if name in report["policies"] else label(name),
                "stages": [_link(runs[id]) for id in one["runs"]],
                "missing": one["missing"],
            }
            for name, one in models.items()
        ],
        "runs": [
            {
                "id": id,
                "stage": run["stage"],
                "of": [name for name, one in models.items() if id in one["runs"]],
                "data": [(name, sha[:12]) for name, sha in run["data_sha256"].items()],
                "code": (run["git_sha"] or "unknown")[:10],
                "settings": [(key, run["settings"][key]) for key in _SHOWN if run["settings"].get(key) is not None],
                "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
            }
            for id, run in runs.items()
        ],
    }


def _link(run: dict[str, Any]) -> str:
    if run["num_annotators"]:
        votes = f"{run['num_votes']:,} votes of " if run["num_votes"] is not None else ""
        people = f"{run['num_annotators']} annotator{'s' if run['num_annotators'] != 1 else ''}"
        return f"{run['stage']} ({votes}{people})"
    return run["stage"]


def warnings(report: dict[str, Any]) -> list[str]:
    """Training data that lies nowhere any more, so that nobody can say whether the prompts are held out from it."""
    missing = report["settings"]["held_out"]["not_found"]
    if not missing:
        return []
    return [
        f"Whether the prompts are held out is not known of {', '.join(missing)}: that file is no longer where the run "
        "read it, or has changed since."
    ]


SECTION = Section("lineage", "Where the policies come from", build, view, measure, warnings)
