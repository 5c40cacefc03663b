"""What the replies are like beside the baseline's, and what alignment cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.compare.answers import Answers
from rlhf.compare.as_json import interval_numbers, maybe_interval
from rlhf.compare.quality.lengths import length_quantiles, quantile_differences
from rlhf.compare.quality.replies import Replies, quality, quality_differences
from rlhf.compare.quality.words import sentences, view, warnings
from rlhf.compare.sections.section import Section
from rlhf.compare.study import Study
from rlhf.intervals import Interval


@dataclass(frozen=True)
class QualityConfig:
    """What is measured of quality beside the replies' own texts."""


def build(study: Study, report: dict[str, Any]) -> dict[str, Any] | None:
    """`policies`: each one's figures; `differences`: of each other one, its figures less the baseline's."""
    baseline, *others = study.names
    replies = {answer.name: _replies(answer) for answer in study.answers}
    lengths = {answer.name: answer.lengths for answer in study.answers}
    bootstrap = study.bootstrap
    return {
        "policies": {
            name: _figures(quality(replies[name], bootstrap))
            | {"length_quantiles": _quantiles(length_quantiles(lengths[name], bootstrap))}
            for name in study.names
        },
        "differences": {
            name: _figures(quality_differences(replies[name], replies[baseline], bootstrap))
            | {"length_quantiles": _quantiles(quantile_differences(lengths[name], lengths[baseline], bootstrap))}
            for name in others
        },
    }


def _replies(answer: Answers) -> Replies:
    # Words are counted, not tokens, so that policies with tokenizers of their own can be set side by side.
    return Replies(answer.texts, lengths=answer.lengths, finished=answer.finished)


def _figures(found: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {name: maybe_interval(interval) for name, interval in found.items()}


def _quantiles(found: Mapping[float, Interval]) -> dict[str, Any]:
    return {f"{at:.0%}": interval_numbers(interval) for at, interval in found.items()}


SECTION = Section("quality", "What the replies are like", build, view, warnings=warnings, says=sentences)
