"""export: labels, from the label store or from files, to preferences that `reward` and `dpo` learn from.

Nothing disappears: each label, pair and vote that goes in comes out as a preference, as a tie, or as
left out with its reason, and `run.json` holds the sums.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from labeling_app.aggregate import aggregate, part, settle
from labeling_app.better_answers import better_answers, has_better_answer
from labeling_app.check_labels import check_annotators, check_labels
from labeling_app.left_out import count_annotators, count_labels, count_tasks, why_left_out
from labeling_app.stored import Labels, read_store
from rlhf import config as configuration
from rlhf.agreement import human_ceiling
from rlhf.data.split import Shares, opening, prompt_key, split_of
from rlhf.errors import UserError
from rlhf.records import Demonstration, Messages, Preference, Ranking, Run, Task, Tie, read_jsonl, write_jsonl
from rlhf.runs import open_run

__all__ = ["Config", "ExportConfig", "Exported", "aggregate", "assemble", "is_validation", "labels_sha256", "run"]

WEIGHTS = ("none", "reliability")
_NO_REASON = "named in annotators_out, or left out where the files come from"


@dataclass(frozen=True)
class ExportConfig:
    """What `export` reads and writes."""

    output_dir: str = field(metadata={"help": "run folder to make"})
    store: str | None = field(
        default=None, metadata={"help": "the label database: a SQLite file, or postgresql://USER@HOST/NAME"}
    )
    sets: list[str] = field(default_factory=list, metadata={"help": "sets of the store to export; none named = all"})
    tasks: str | None = field(
        default=None, metadata={"help": "instead of a store: JSONL file of the tasks that were ranked (Task rows)"}
    )
    rankings: str | None = field(
        default=None, metadata={"help": "with --tasks: JSONL file of what people answered (Ranking rows)"}
    )
    validation_share: float = field(
        default=0.0,
        metadata={"help": "share of the prompts that goes to preferences.validation.jsonl; 0 = none"},
    )
    seed: int = field(default=0, metadata={"help": "which prompts are for validation"})
    annotators_out: list[str] = field(
        default_factory=list, metadata={"help": "annotators whose rankings are left out (and counted)"}
    )
    annotators_heldout: list[str] = field(
        default_factory=list,
        metadata={
            "help": "annotators whose rankings go to preferences.heldout.jsonl: to measure on, never to train on"
        },
    )
    min_votes: int = field(default=1, metadata={"help": "tasks with fewer votes are left out (and counted)"})
    weights: str = field(
        default="none", metadata={"help": "how votes count: none = all the same, reliability = by annotator"}
    )
    resume: bool = field(default=False, metadata={"help": "write into an unfinished run folder again"})

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}, should be at least 0 and under 1")
        if self.min_votes < 1:
            raise ValueError(f"min_votes is {self.min_votes}, should be at least 1")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights is {self.weights!r}, should be {' or '.join(WEIGHTS)}")


class Config(NamedTuple):
    """The config of `rlhf export`."""

    export: ExportConfig


@dataclass(frozen=True)
class Exported:
    """What an export writes: rows by the name of their file, the figures of run.json, and the labels' hash."""

    files: dict[str, Sequence[object]]
    metrics: dict[str, Any]
    labels_sha256: str


def run(config: Config) -> Run:
    """Write the preferences, the ties, and what else there is: see `assemble`.

    From a store the labels as they are go to tasks.jsonl and rankings.jsonl beside them, from which
    the same export can be made again.

    Raises UserError for neither or both of store and files, and for labels that give no preference.
    """
    settings = config.export
    labels, where = _read(settings)
    exported = assemble(labels, settings, where)
    files = exported.files
    if settings.store:
        files = files | {"tasks.jsonl": labels.tasks, "rankings.jsonl": labels.rankings}
    inputs = {"tasks": settings.tasks, "rankings": settings.rankings}
    with open_run(
        "export", settings.output_dir, _recorded(config), inputs, settings.resume, exported.labels_sha256
    ) as folder:
        for name, rows in files.items():
            write_jsonl(folder.path / name, rows)
        return folder.finish(**exported.metrics)


def assemble(labels: Labels, settings: ExportConfig, where: Sequence[str] | None = None) -> Exported:
    """Everything an export writes, from labels alone.

    preferences.train.jsonl, .validation.jsonl: votes settled by pair, and better answers over responses.
    ties.jsonl: pairs that people could not tell apart.
    preferences.heldout.jsonl, ties.heldout.jsonl: what held-out annotators say, all prompts;
    preferences.heldout.validation.jsonl: that on validation prompts, which no training has seen.
    demonstrations.jsonl, .validation.jsonl: better answers.

    Files without rows are left away, but for preferences.train.jsonl and ties.jsonl. Raises UserError.
    """
    out, heldout = settings.annotators_out, settings.annotators_heldout
    check_labels(labels.tasks, labels.rankings, where)
    check_annotators(labels.rankings, {"annotators_out": out, "annotators_heldout": heldout})
    answers, adjudications = part(labels.rankings)
    adjudicated = {ranking.task_id for ranking in adjudications}
    reasons = why_left_out(answers, {*out, *labels.left_out}, heldout, settings.min_votes, adjudicated)
    votes = _with_reason(answers, reasons, None)
    weights = _weights(labels, answers, settings)

    preferences, ties, counts = settle(labels.tasks, answers, reasons, adjudications, weights)
    demonstrations, better, written = better_answers(labels.tasks, votes)
    if not preferences and not better:
        raise UserError(_nothing(settings, counts, count_labels(reasons)))
    train, validation = _split([*preferences, *better], settings)
    measured = _with_reason(answers, reasons, "annotator_heldout")
    held, held_ties, _ = settle(labels.tasks, measured, [None] * len(measured))
    tasks = count_tasks(labels.tasks, answers, reasons, adjudicated, {skip.task_id for skip in labels.skips})
    parts = {"preferences": [*preferences, *better], "ties": ties, "demonstrations": demonstrations}
    ceiling = human_ceiling([*preferences, *ties])
    return Exported(
        _files(train, validation, ties, held, held_ties, demonstrations, settings),
        {f"num_{name}": count for name, count in (counts | written).items()}
        | {
            "num_preferences_better": len(better),
            "num_demonstrations": len(demonstrations),
            "num_train": len(train),
            "num_validation": len(validation),
            "num_heldout": len(held),
            "num_heldout_ties": len(held_ties),
            "num_adjudications": len(adjudications),
            "human_ceiling": ceiling and ceiling.share,
            "human_ceiling_num_pairs": ceiling.num_pairs if ceiling else 0,
            "human_ceiling_num_votes": ceiling.num_votes if ceiling else 0,
            "num_labels_in": len(answers) + sum(labels.elsewhere.values()),
            "num_labels": len(votes),
            "num_tasks_in": len(labels.tasks),
            "num_tasks": tasks.pop("exported"),
            "exclusions": _exclusions(labels, answers, reasons, tasks),
            "annotators": count_annotators(answers, reasons, weights),
        },
        labels_sha256(parts | {"heldout": held, "heldout ties": held_ties}),
    )


def is_validation(prompt: Messages, share: float, seed: int) -> bool:
    """Whether a prompt is for validation: by its opening's hash, so it stays there when labels are added."""
    # Not prepare's own draw: among the prompts that one sent to train, it would send none to validation.
    key = f"export {prompt_key(opening(prompt))}"
    return split_of(key, Shares(train=1 - share, validation=share, test=0), seed) == "validation"


def labels_sha256(parts: Mapping[str, Iterable[Any]]) -> str:
    """The SHA-256 of records by part, whatever their order: what an export's labels are known by in later runs."""
    lines = (json.dumps([name, vars(row)], sort_keys=True) for name, rows in parts.items() for row in rows)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _read(settings: ExportConfig) -> tuple[Labels, list[str] | None]:
    """The labels, and how errors name each ranking."""
    files = [path for path in (settings.tasks, settings.rankings) if path]
    if bool(settings.store) == bool(files) or len(files) == 1:
        given = " and ".join(f"--{name}" for name in ("store", "tasks", "rankings") if getattr(settings, name))
        raise UserError(
            f"export: {given or 'nothing'} is given; give either --store labels.db, or both "
            "--tasks tasks.jsonl and --rankings rankings.jsonl"
        )
    if settings.store:
        labels = read_store(settings.store, settings.sets)
        if not labels.tasks:
            raise UserError(f"{settings.store}: holds no tasks; `rlhf label --tasks FILE` adds some")
        where = [f"{settings.store}, {row.annotator}'s answer to {row.task_id}" for row in labels.rankings]
        return labels, where
    assert settings.tasks and settings.rankings
    labels = Labels(read_jsonl(settings.tasks, Task), read_jsonl(settings.rankings, Ranking))
    return labels, [f"{settings.rankings}, line {number}" for number in _line_numbers(settings.rankings)]


def _weights(labels: Labels, answers: list[Ranking], settings: ExportConfig) -> dict[str, float] | None:
    """What each annotator's vote weighs, from what they and nobody else answered whose labels are trained on."""
    if settings.weights == "none":
        return None
    from labeling_app.quality.reliability import annotator_weights

    others = {*settings.annotators_out, *settings.annotators_heldout, *labels.left_out}
    others |= {answer.annotator for answer in answers if answer.kind == "left_out"}
    return annotator_weights(labels.tasks, [answer for answer in answers if answer.annotator not in others])


def _exclusions(
    labels: Labels, answers: list[Ranking], reasons: list[str | None], tasks: dict[str, int]
) -> dict[str, Any]:
    """What was left out and why: labels, tasks and better answers by reason, annotators with theirs, skips."""
    out = _with_reason(answers, reasons, "annotator_out")
    wrote = Counter(reason for answer, reason in zip(answers, reasons, strict=True) if has_better_answer(answer))
    return {
        "labels": {"other_set": 0, "comparison": 0} | labels.elsewhere | count_labels(reasons),
        "tasks": tasks,
        "better_answers": {reason: number for reason, number in wrote.items() if reason is not None},
        "annotators_out": {
            name: {"labels": number, "reason": labels.left_out.get(name, _NO_REASON)}
            for name, number in Counter(answer.annotator for answer in out).items()
        },
        "skips": dict(Counter(skip.reason for skip in labels.skips)),
    }


def _files(
    train: list[Preference],
    validation: list[Preference],
    ties: list[Tie],
    held: list[Preference],
    held_ties: list[Tie],
    demonstrations: list[Demonstration],
    settings: ExportConfig,
) -> dict[str, Sequence[object]]:
    share, seed = settings.validation_share, settings.seed
    sides: dict[bool, list[Demonstration]] = {False: [], True: []}
    for row in demonstrations:
        sides[is_validation(row.messages[:-1], share, seed)].append(row)
    files = {
        "preferences.validation.jsonl": validation,
        "preferences.heldout.jsonl": held,
        "preferences.heldout.validation.jsonl": [row for row in held if is_validation(row.prompt, share, seed)],
        "ties.heldout.jsonl": held_ties,
        "demonstrations.jsonl": sides[False],
        "demonstrations.validation.jsonl": sides[True],
    }
    return {"preferences.train.jsonl": train, "ties.jsonl": ties} | {name: rows for name, rows in files.items() if rows}


def _split(preferences: list[Preference], settings: ExportConfig) -> tuple[list[Preference], list[Preference]]:
    share, seed = settings.validation_share, settings.seed
    train, validation = [], []
    for preference in preferences:
        (validation if is_validation(preference.prompt, share, seed) else train).append(preference)
    prompts = len({preference.group_id for preference in preferences})
    if not train or (share > 0 and not validation):
        raise UserError(
            f"validation_share {share} leaves none of {prompts} prompts for {'validation' if train else 'training'}; "
            "choose another share or seed, or 0 for no validation"
        )
    return train, validation


def _nothing(settings: ExportConfig, counts: dict[str, int], out: dict[str, int]) -> str:
    why = ", ".join(f"{reason} {number}" for reason, number in out.items() if number)
    return (
        f"{settings.store or settings.rankings}: gives no preference; of {counts['pairs_in']} pairs {counts['ties']} "
        f"are ties and {counts['pairs_in'] - counts['ties']} are left out; collect more rankings"
        + (f" (labels left out: {why})" if why else "")
    )


def _with_reason(answers: list[Ranking], reasons: list[str | None], wanted: str | None) -> list[Ranking]:
    return [answer for answer, reason in zip(answers, reasons, strict=True) if reason == wanted]


def _recorded(config: Config) -> dict[str, Any]:
    """The config as run.json has it: a database's password stays out."""
    values = configuration.as_dict(config)
    if values["store"] and "://" in values["store"]:
        from labeling_app.store.database import parse_url

        values["store"] = parse_url(values["store"]).render_as_string(hide_password=True)
    return values


def _line_numbers(path: str) -> list[int]:
    # Of the lines that hold a record: read_jsonl skips empty ones.
    with Path(path).open(encoding="utf-8") as lines:
        return [number for number, line in enumerate(lines, 1) if line.strip()]
