"""What the replies are like beside the baseline's, and what alignment cost."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.answers import Answers
from rlhf.compare.as_json import interval_numbers, maybe_interval, plain
from rlhf.compare.judges import GOLD, REWARD_MODEL
from rlhf.compare.quality.calibration import calibration, win_probability
from rlhf.compare.quality.harness import Harness, check_harness, figure_difference, figure_interval
from rlhf.compare.quality.lengths import length_draws, length_quantiles, quantile_differences
from rlhf.compare.quality.likelihoods import fluency_tokenizer, likelihood_sums, read_demonstrations, same_tokens
from rlhf.compare.quality.measuring import HeldOut, Measured, Tasks, measure_models
from rlhf.compare.quality.ratios import exponential, less_one, ratio, ratio_difference
from rlhf.compare.quality.relevance import other_prompts, relevance_numbers
from rlhf.compare.quality.replies import Replies, quality, quality_differences
from rlhf.compare.quality.tasks import read_tasks
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.sections.section import Section
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Context, Study
from rlhf.data.split import check_splits
from rlhf.intervals import Interval
from rlhf.records import Prompt, read_jsonl


@dataclass(frozen=True)
class QualityConfig:
    """What is measured of quality beside the replies' own texts."""

    fluency_model: str | None = field(
        default=None,
        metadata={"help": "A base whose perplexity of the replies says how fluent they are; by default the reference."},
    )
    heldout: str | None = field(
        default=None,
        metadata={"help": "JSONL file of demonstrations held out from SFT: what policies lost on them is the tax."},
    )
    tasks: str | None = field(
        default=None,
        metadata={"help": "JSONL file of prompts with `answer` or `tests` in their meta: who answers right, greedily."},
    )
    lm_eval: list[str] = field(
        default_factory=list,
        metadata={"help": "Tasks of lm-evaluation-harness by name; needs `pip install lm-eval`."},
    )
    relevance: bool = field(
        default=False,
        metadata={"help": "Whether replies fit their prompts and their sentences an order, under the same model."},
    )

    def inputs(self) -> dict[str, str | None]:
        """The files that are read, by name."""
        return {"heldout": self.heldout, "tasks": self.tasks}


def check(config: Any, policies: Mapping[str, str]) -> None:
    """Raise UserError for settings that cannot be, and for files and models that are not there."""
    settings, trust = config.quality, config.compare.trust_remote_code
    if settings.fluency_model is not None:
        fluency_tokenizer(settings.fluency_model, trust)
    if settings.heldout is not None:
        read_demonstrations(settings.heldout)
    if settings.tasks is not None:
        read_tasks(settings.tasks)
    check_harness(settings.lm_eval)
    if settings.relevance:
        other_prompts(read_jsonl(config.compare.prompts, Prompt)[: config.compare.num_prompts])
    for path in filter(None, (settings.heldout, settings.tasks)):
        for trained_on in config.compare.train_data:
            check_splits([path, trained_on])


def measure(context: Context) -> Measured:
    """What models must be loaded for: `fluency.<policy>.jsonl` in the run folder, and `heldout`, `tasks`, `lm_eval`."""
    return measure_models(context)


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`policies`: each one's figures; `differences`: of each other one, its figures less the baseline's."""
    baseline, *others = study.names
    replies = {answer.name: _replies(answer) for answer in study.answers}
    lengths = {answer.name: answer.lengths for answer in study.answers}
    bootstrap = study.bootstrap
    draws = {name: length_draws(lengths[name], bootstrap) for name in study.names}
    measured: Measured = study.measured.get("quality") or Measured()
    return {
        "policies": {
            name: _figures(quality(replies[name], bootstrap))
            | {"length_quantiles": _quantiles(length_quantiles(lengths[name], bootstrap, draws[name]))}
            for name in study.names
        },
        "differences": {
            name: _figures(quality_differences(replies[name], replies[baseline], bootstrap))
            | {
                "length_quantiles": _quantiles(
                    quantile_differences(lengths[name], lengths[baseline], bootstrap, (draws[name], draws[baseline]))
                )
            }
            for name in others
        },
        "fluency": _fluency(measured, study, baseline) if measured.fluency else None,
        "relevance": _relevance(measured, study) if measured.swaps else None,
        "heldout": None if measured.heldout is None else _held_out(measured.heldout, study),
        "tasks": None if measured.tasks is None else _tasks(measured.tasks, study),
        "lm_eval": _harness(measured.harness, study) if measured.harness else None,
        "calibration": _calibration(study),
    }


def _replies(answer: Answers) -> Replies:
    # Words are counted, not tokens, so that policies with tokenizers of their own can be set side by side.
    return Replies(answer.texts, lengths=answer.lengths, finished=answer.finished)


def _figures(found: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {name: maybe_interval(interval) for name, interval in found.items()}


def _fluency(measured: Measured, study: Study, baseline: str) -> dict[str, Any]:
    """By policy nats a token, the perplexity, and how much `more` than the baseline's that is, a share of it."""
    clusters = len(study.prompts)
    sums = {name: likelihood_sums(rows, clusters) for name, rows in measured.fluency.items()}
    rows = {}
    for name, own in sums.items():
        nll = ratio(*own, study.bootstrap)
        more = None if name == baseline else ratio_difference(own, sums[baseline], study.bootstrap)
        rows[name] = {
            "nll": maybe_interval(nll),
            "perplexity": None if nll is None else interval_numbers(exponential(nll)),
            "nll_difference": maybe_interval(more),
            "more": None if more is None else interval_numbers(less_one(exponential(more))),
            "num_tokens": int(own[1].sum()),
        }
    return {"model": measured.fluency_model, "policies": rows}


def _relevance(measured: Measured, study: Study) -> dict[str, Any]:
    numbers = relevance_numbers(measured.swaps, len(study.prompts), study.bootstrap)
    return {"model": measured.fluency_model, "policies": numbers}


def _held_out(heldout: HeldOut, study: Study) -> dict[str, Any]:
    """By policy nats a token, and how much more that is than the reference's, also as a share of it: the tax."""
    bootstrap = dataclasses.replace(study.bootstrap, clusters=heldout.clusters)
    before = likelihood_sums(heldout.reference, len(heldout.clusters))
    rows = {}
    for name, likelihoods in heldout.policies.items():
        own = likelihood_sums(likelihoods, len(heldout.clusters))
        more, share = None, None
        if same_tokens(likelihoods, heldout.reference):
            more, share = ratio_difference(own, before, bootstrap), ratio(own[0], before[0], bootstrap)
        rows[name] = {
            "nll": maybe_interval(ratio(*own, bootstrap)),
            "difference": maybe_interval(more),
            "tax": None if share is None else interval_numbers(less_one(share)),
            "num_tokens": int(own[1].sum()),
        }
    return {
        "file": heldout.file,
        "sha256": heldout.sha256,
        "num_demonstrations": len(heldout.clusters),
        "reference": {"nll": maybe_interval(ratio(*before, bootstrap)), "num_tokens": int(before[1].sum())},
        "policies": rows,
    }


def _tasks(tasks: Tasks, study: Study) -> dict[str, Any]:
    """By policy the share of right answers, of all tasks and of each kind, and the difference to the baseline's."""
    bootstrap = dataclasses.replace(study.bootstrap, clusters=tasks.clusters)
    correct = {name: np.array([row.correct for row in rows]) for name, rows in tasks.policies.items()}
    baseline = study.names[0]
    kinds = list(dict.fromkeys(tasks.checks))
    rows = {}
    for name, own in correct.items():
        less = None if name == baseline else bootstrap.interval(own - correct[baseline], (-1.0, 1.0))
        rows[name] = {
            "accuracy": interval_numbers(bootstrap.interval(own, (0.0, 1.0))),
            "difference": maybe_interval(less),
            "finished": interval_numbers(
                bootstrap.interval(np.array([float(row.finished) for row in tasks.policies[name]]), (0.0, 1.0))
            ),
            "by_check": {kind: interval_numbers(_share_of(kind, tasks, own, bootstrap)) for kind in kinds},
        }
    return {
        "file": tasks.file,
        "sha256": tasks.sha256,
        "num_tasks": len(tasks.checks),
        "checks": {kind: tasks.checks.count(kind) for kind in kinds},
        "policies": rows,
    }


def _share_of(kind: str, tasks: Tasks, correct: NDArray[np.float64], bootstrap: Bootstrap) -> Interval:
    places = [at for at, check in enumerate(tasks.checks) if check == kind]
    own = dataclasses.replace(bootstrap, clusters=[tasks.clusters[at] for at in places])
    return own.interval(correct[places], (0.0, 1.0))


def _harness(harness: Mapping[str, Harness], study: Study) -> dict[str, Any]:
    """By policy the harness's figures, each with its interval and the difference to the baseline's."""
    confidence = study.bootstrap.confidence
    base = {(one.task, one.metric): one for one in harness[study.names[0]].figures}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, told in harness.items():
        rows[name] = []
        for one in told.figures:
            other = base.get((one.task, one.metric)) if name != study.names[0] else None
            less = None if other is None else figure_difference(one, other, confidence)
            figure = interval_numbers(figure_interval(one, confidence))
            rows[name].append(
                {"task": one.task, "metric": one.metric, "figure": figure, "difference": maybe_interval(less)}
            )
    return {"version": harness[study.names[0]].version, "policies": rows}


def _calibration(study: Study) -> dict[str, Any] | None:
    """Whether the reward model's difference in score is the log-odds that gold prefers the first of two replies.

    Of every two policies all pairs of replies to one prompt that are not the same text.
    """
    if GOLD not in study.scores or REWARD_MODEL not in study.scores:
        return None
    said, came, places = [], [], []
    score, gold = study.scores[REWARD_MODEL], study.scores[GOLD]
    texts = np.array([answer.texts for answer in study.answers], dtype=object)  # (policies, prompts, responses)
    for a, b in combinations(range(len(texts)), 2):
        pairs = texts[a][:, :, None] != texts[b][:, None, :]  # (prompts, responses of a, responses of b)
        said.append(win_probability(score[a][:, :, None], score[b][:, None, :])[pairs])
        came.append((np.sign(gold[a][:, :, None] - gold[b][:, None, :])[pairs] + 1) / 2)
        places.append(np.nonzero(pairs)[0])
    if not said or not any(one.size for one in said):
        return None
    clusters = range(len(study.prompts)) if study.bootstrap.clusters is None else study.bootstrap.clusters
    of_pairs = [clusters[at] for at in np.concatenate(places).tolist()]
    bootstrap = dataclasses.replace(study.bootstrap, clusters=of_pairs)
    found = calibration(np.concatenate(said), np.concatenate(came), bootstrap)
    return {
        "num_pairs": len(of_pairs),
        "ece": interval_numbers(found.ece),
        "brier": interval_numbers(found.brier),
        "bins": [
            {
                "low": one.low,
                "high": one.high,
                "num_pairs": one.num_pairs,
                "said": plain(one.said),
                "came": interval_numbers(one.came),
            }
            for one in found.bins
        ],
    }


def _quantiles(found: Mapping[float, Interval]) -> dict[str, Any]:
    return {f"{at:.0%}": interval_numbers(interval) for at, interval in found.items()}


SECTION = Section("quality", "What the replies are like", build, view, measure, warnings, check, sentences)
