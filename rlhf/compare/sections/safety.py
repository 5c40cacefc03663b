"""Before and after alignment: refusals wanted and unwanted, toxic replies, stereotypes, groups of people."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.safety.classifier import Classifier, check_classifier
from rlhf.compare.safety.groups import GroupGap, group_column, group_gap, read_bold
from rlhf.compare.safety.measuring import (
    REFERENCE,
    GroupTable,
    Measured,
    RefusalTable,
    Rows,
    StereotypeTable,
    ToxicityTable,
    Wanted,
    marked_rows,
    measure_safety,
)
from rlhf.compare.safety.refusals import Refusals, harmful_prompts, refusal_difference, refusal_rates
from rlhf.compare.safety.stereotypes import read_stereotypes, stereotype_changes, stereotype_shares
from rlhf.compare.safety.words import sentences, view, warnings
from rlhf.compare.sections.section import Section
from rlhf.compare.study import Context, Study
from rlhf.data.split import check_splits
from rlhf.errors import UserError
from rlhf.intervals import Interval
from rlhf.records import Prompt, read_jsonl

Numbers = TypeVar("Numbers")


@dataclass(frozen=True)
class SafetyConfig:
    """What is looked at beside who is better: does a policy refuse what it should, and whom does it hurt."""

    safety_prompts: str | None = field(
        default=None,
        metadata={"help": "JSONL file of prompts whose meta says `harmful`, true or false: who refuses which."},
    )

    stereotypes: list[str] = field(
        default_factory=list,
        metadata={"help": "Pairs of sentences: CrowS-Pairs' csv, WinoBias's folder, BBQ's folder or a jsonl of it."},
    )
    bold: str | None = field(
        default=None, metadata={"help": "One of BOLD's *_prompt.json: how unlike replies about groups of people are."}
    )
    bold_per_group: int | None = field(
        default=100, metadata={"help": "The first so many prompts of each group of that file."}
    )
    toxicity_classifier: str | None = field(
        default=None,
        metadata={"help": "Folder of a sequence classifier that flags toxic replies; a word list if unset."},
    )
    toxicity_label: str = field(
        default="toxic", metadata={"help": "The label of that classifier that means toxic, as its config names it."}
    )
    sentiment_classifier: str | None = field(
        default=None,
        metadata={"help": "Folder of a sequence classifier that scores replies to bold; the reward model if unset."},
    )
    sentiment_label: str = field(
        default="positive", metadata={"help": "The label of that classifier that is its score, as its config names it."}
    )
    regard_classifier: str | None = field(
        default=None,
        metadata={"help": "Folder of a sequence classifier that scores the regard of replies to bold; none if unset."},
    )
    regard_label: str = field(
        default="positive", metadata={"help": "The label of that classifier that is its score, as its config names it."}
    )

    @property
    def toxicity(self) -> Classifier | None:
        """What flags toxic replies, None for the lexicon."""
        return _classifier(self.toxicity_classifier, self.toxicity_label)

    @property
    def sentiment(self) -> Classifier | None:
        """What scores replies to `bold`, None for the reward model."""
        return _classifier(self.sentiment_classifier, self.sentiment_label)

    @property
    def regard(self) -> Classifier | None:
        """What scores how replies to `bold` regard people, None for nothing."""
        return _classifier(self.regard_classifier, self.regard_label)

    @property
    def classifiers(self) -> dict[str, Classifier]:
        """Those that are given, by the name of their settings."""
        every = {"toxicity": self.toxicity, "sentiment": self.sentiment, "regard": self.regard}
        return {key: one for key, one in every.items() if one is not None}

    def inputs(self) -> dict[str, str | None]:
        """The files and folders that are read, by name."""
        pairs = {f"stereotypes {number}": path for number, path in enumerate(self.stereotypes)}
        classifiers = {f"{key}_classifier": one.path for key, one in self.classifiers.items()}
        return {"safety_prompts": self.safety_prompts, "bold": self.bold, **pairs, **classifiers}


def _classifier(folder: str | None, label: str) -> Classifier | None:
    return None if folder is None else Classifier(folder, label)


def check(config: Any, policies: Mapping[str, str]) -> None:
    """Raise UserError for files that are missing or of another format."""
    settings, compare = config.safety, config.compare
    if settings.safety_prompts is None:
        prompts = read_jsonl(compare.prompts, Prompt)[: compare.num_prompts]
        harmful_prompts([prompts[row] for row in marked_rows(prompts)])
    else:
        _check_prompts(settings.safety_prompts)
        for path in compare.train_data:
            check_splits([settings.safety_prompts, path])
    for path in settings.stereotypes:
        read_stereotypes(path)
    if settings.bold is not None:
        _check_bold(settings, compare)
    for key, classifier in settings.classifiers.items():
        if key != "toxicity" and settings.bold is None:
            raise UserError(f"{key}_classifier: scores replies to BOLD's prompts; give --bold FILE, or leave it out")
        check_classifier(classifier, key, compare.trust_remote_code)


def _check_bold(settings: SafetyConfig, compare: Any) -> None:
    size = settings.bold_per_group
    if size is not None and size < 1:
        raise UserError(f"bold_per_group: is {size}, must be at least 1")
    if compare.reward_model is None and settings.sentiment is None and settings.regard is None:
        raise UserError(
            "bold: there is nothing to score the replies with; give --reward_model RUN, --sentiment_classifier FOLDER "
            "or --regard_classifier FOLDER"
        )
    groups = set(group_column(read_bold(settings.bold or "", size)))
    if len(groups) < 2:
        found = f"{len(groups)} group{'s' if len(groups) != 1 else ''}"
        raise UserError(f"{settings.bold}: has prompts of {found}; a gap needs at least two")


def _check_prompts(path: str) -> None:
    prompts = read_jsonl(path, Prompt)
    seen: set[str] = set()
    for prompt in prompts:
        if not prompt.messages or prompt.messages[-1].get("role") == "assistant":
            raise UserError(
                f"{path}: prompt `{prompt.id}` does not wait for a reply; its last message must not be the assistant's"
            )
        if prompt.id in seen:
            raise UserError(f"{path}: two prompts have the id `{prompt.id}`; give each its own")
        seen.add(prompt.id)
    try:
        harmful_prompts(prompts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def measure(context: Context) -> Measured:
    """Everything asked for; what took long lies in the run's folder `safety`."""
    settings: SafetyConfig = context.config.safety
    return measure_safety(
        context,
        Wanted(
            settings.safety_prompts,
            settings.stereotypes,
            settings.bold,
            settings.bold_per_group,
            settings.toxicity,
            settings.sentiment,
            settings.regard,
        ),
    )


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """By part: each policy's figures, and how they differ from the baseline's and the reference's, prompt by prompt.

    None where nothing was asked for and no reply is flagged.
    """
    measured: Measured | None = study.measured.get("safety")
    if measured is None:
        return None
    parts: dict[str, Any] = {}
    if measured.refusals is not None:
        parts["refusals"] = _refusals(study, measured, measured.refusals)
    if measured.stereotypes:
        parts["stereotypes"] = [_stereotypes(study, measured, table) for table in measured.stereotypes]
    if measured.groups:
        parts["groups"] = [_groups(study, measured, table) for table in measured.groups]
    if parts or measured.toxicity.by or any(flagged.any() for flagged in measured.toxicity.flagged.values()):
        parts["toxicity"] = _toxicity(study, measured, measured.toxicity)
        parts["flags"] = _flags(study, measured.toxicity)
    return parts or None


def _flags(study: Study, table: ToxicityTable) -> list[dict[str, str]]:
    """Whose replies to which prompts are marked as toxic in the browser of texts."""
    why = "toxic by the lexicon" if table.by is None else f"toxic by {table.by}"
    return [
        {"prompt": prompt.id, "policy": name, "why": why}
        for name in study.names
        for prompt, row in zip(study.prompts, table.flagged[name], strict=True)
        if row.any()
    ]


def _refusals(study: Study, measured: Measured, table: RefusalTable) -> dict[str, Any]:
    bootstrap = dataclasses.replace(study.bootstrap, clusters=table.clusters)

    def own(refused: NDArray[np.float64]) -> dict[str, Any]:
        return _by_kind(refusal_rates(refused, table.harmful, bootstrap))

    def change(after: NDArray[np.float64], before: NDArray[np.float64]) -> dict[str, Any]:
        return _by_kind(refusal_difference(after, before, table.harmful, bootstrap))

    return {"prompts": table.prompts} | _figures(study, measured, table.refused, own, change)


def _by_kind(found: Refusals) -> dict[str, Any]:
    return {"wanted": maybe_interval(found.wanted), "unwanted": maybe_interval(found.unwanted)}


def _toxicity(study: Study, measured: Measured, table: ToxicityTable) -> dict[str, Any]:
    def own(flagged: NDArray[np.float64]) -> dict[str, Any]:
        return {"flagged": interval_numbers(study.bootstrap.interval(flagged, (0.0, 1.0)))}

    def change(after: NDArray[np.float64], before: NDArray[np.float64]) -> dict[str, Any]:
        return {"flagged": interval_numbers(study.bootstrap.interval(after.mean(1) - before.mean(1), (-1.0, 1.0)))}

    return {"by": table.by} | _figures(study, measured, table.flagged, own, change)


def _stereotypes(study: Study, measured: Measured, table: StereotypeTable) -> dict[str, Any]:
    def own(wins: NDArray[np.float64]) -> dict[str, Any]:
        return _by_type(stereotype_shares(table.pairs, wins, study.bootstrap))

    def change(after: NDArray[np.float64], before: NDArray[np.float64]) -> dict[str, Any]:
        return _by_type(stereotype_changes(table.pairs, before, after, study.bootstrap))

    return {"data": table.data} | _figures(study, measured, table.wins, own, change)


def _by_type(found: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: interval_numbers(one) for name, one in found.items()}


def _groups(study: Study, measured: Measured, table: GroupTable) -> dict[str, Any]:
    bootstrap = dataclasses.replace(study.bootstrap, clusters=table.clusters)
    low, high = table.bounds
    width = None if low is None or high is None else high - low

    def own(scores: NDArray[np.float64]) -> dict[str, Any]:
        return _gap(group_gap(scores, table.groups, bootstrap, table.bounds))

    def change(after: NDArray[np.float64], before: NDArray[np.float64]) -> dict[str, Any]:
        difference = (after.mean(1) - before.mean(1))[:, None]
        return _gap(group_gap(difference, table.groups, bootstrap, (None if width is None else -width, width)))

    named = {"data": table.data, "measure": table.measure, "by": table.by}
    return named | _figures(study, measured, table.scores, own, change)


def _gap(found: GroupGap) -> dict[str, Any]:
    return {
        "means": {name: interval_numbers(one) for name, one in found.means.items()},
        "highest": found.highest,
        "lowest": found.lowest,
        "gap": interval_numbers(found.gap),
        "expected": plain(found.expected),
        "p_value": plain(found.p_value),
    }


def _figures(
    study: Study,
    measured: Measured,
    rows: Rows,
    own: Callable[[NDArray[np.float64]], Numbers],
    change: Callable[[NDArray[np.float64], NDArray[np.float64]], Numbers],
) -> dict[str, Any]:
    """`policies`, `reference` where it is none of them, and the changes of each policy from another.

    `from_reference` is None where the reference is the baseline, or was not measured.
    """
    baseline, reference = study.names[0], measured.reference
    known = reference in rows and reference != baseline
    return {
        "policies": {name: own(rows[name]) for name in study.names},
        "reference": own(rows[REFERENCE]) if REFERENCE in rows else None,
        "from_baseline": {name: change(rows[name], rows[baseline]) for name in study.names[1:]},
        "from_reference": {name: change(rows[name], rows[reference]) for name in study.names if name != reference}
        if known
        else None,
    }


SECTION = Section("safety", "Before and after alignment", build, view, measure, warnings, check, sentences)
