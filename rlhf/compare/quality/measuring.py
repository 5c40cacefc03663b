"""Everything of quality that a model must be loaded for: one at a time, each at most once, and kept in the folder."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf.compare.answers import Answers, same_place
from rlhf.compare.frontier.measuring import START
from rlhf.compare.quality.likelihoods import Likelihood, load_fluency_model, reply_ids, reply_likelihoods
from rlhf.compare.study import Context
from rlhf.models import Policy
from rlhf.records import read_jsonl, write_jsonl
from rlhf.runs import read_run

Row = TypeVar("Row")


@dataclass(frozen=True)
class Measured:
    """What models say.

    Args:
        fluency: by policy, the Likelihood of each reply, prompt by prompt.
        fluency_model: the name of the model that said so, None for the reference.
    """

    fluency: dict[str, list[Likelihood]] = field(default_factory=dict)
    fluency_model: str | None = None


def measure_models(context: Context) -> Measured:
    """All that the settings ask for. What lies whole in the run folder, of the same models and texts, is read."""
    settings = context.config.quality
    measuring = _Measuring(context)
    models = dict(context.policies)
    if not any(same_place(path, context.reference) for path in models.values()):
        models[START] = context.reference
    judge = settings.fluency_model or context.reference
    fluency: dict[str, list[Likelihood]] = {}
    for path in models.values():
        if same_place(path, judge) and not fluency:
            fluency = measuring.fluency(path)
    named = settings.fluency_model
    name = None if named is None else Path(named).name or Path(named).resolve().name
    return Measured(fluency or measuring.fluency(judge), name)


@dataclass
class _Measuring:
    """The model that is loaded, and what is measured with it."""

    context: Context
    _path: str | None = None
    _policy: Policy | None = None

    def fluency(self, judge: str) -> dict[str, list[Likelihood]]:
        """By policy, how likely the judge finds each of its replies."""
        return {answer.name: self._fluency(judge, answer) for answer in self.context.answers}

    def _fluency(self, judge: str, answer: Answers) -> list[Likelihood]:
        questions = self.context.questions
        replies = [reply for row in answer.responses for reply in row]
        messages = [prompt.messages for prompt in questions.prompts for _ in range(questions.num_responses)]
        ids = reply_ids(_model_id(judge), messages, replies)

        def measure() -> list[Likelihood]:
            loaded = self._loaded(judge)
            return reply_likelihoods(loaded, answer.name, ids, messages, replies, questions.batch_size)

        return self._kept(f"fluency.{answer.name}.jsonl", Likelihood, ids, measure)

    def _kept(self, file: str, kind: type[Row], ids: Sequence[str], measure: Callable[[], list[Row]]) -> list[Row]:
        """The rows on disk where they are of these ids, in order; else measured, and written whole."""
        path = self.context.folder / file
        if path.is_file():
            there: list[Any] = read_jsonl(path, kind)
            if [row.id for row in there] == list(ids):
                return there
        rows = measure()
        write_jsonl(path, rows)
        return rows

    def _loaded(self, path: str) -> Policy:
        if self._policy is None or self._path != path:
            self._policy = None
            _free_memory()
            questions = self.context.questions
            self._policy = load_fluency_model(path, questions.dtype, questions.trust_remote_code)
            self._path = path
        return self._policy


def _model_id(path: str) -> str:
    return read_run(path).id if (Path(path) / "run.json").is_file() else path


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
