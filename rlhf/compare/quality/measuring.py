"""Everything of quality that a model must be loaded for: one at a time, each at most once, and kept in the folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf.compare.answers import Answers, same_place
from rlhf.compare.frontier.measuring import START
from rlhf.compare.quality.harness import Harness, harness_figures, harness_id
from rlhf.compare.quality.likelihoods import (
    Likelihood,
    demonstration_ids,
    demonstration_likelihoods,
    load_policy_or_base,
    read_demonstrations,
    reply_ids,
    reply_likelihoods,
)
from rlhf.compare.quality.relevance import Swaps, other_prompts, reordered
from rlhf.compare.quality.tasks import Answered, answer_tasks, how_checked, read_tasks, task_ids
from rlhf.compare.sources import folder_name
from rlhf.compare.study import Context
from rlhf.data.split import prompt_key
from rlhf.models import Policy, free_memory
from rlhf.records import Demonstration, Messages, Prompt, Response, read_jsonl, write_jsonl
from rlhf.runs import file_sha256, read_run

Row = TypeVar("Row")


@dataclass(frozen=True)
class _OfFile:
    """What models say of the rows of a file.

    Args:
        file: the file's name.
        sha256: of the file.
        clusters: what makes two rows the same, of each.
    """

    file: str
    sha256: str
    clusters: list[str]


@dataclass(frozen=True)
class HeldOut(_OfFile):
    """Demonstrations that no policy learned from, and how likely each model finds them.

    Args:
        reference: the Likelihood of each under the reference.
        policies: the same by policy.
    """

    reference: list[Likelihood]
    policies: dict[str, list[Likelihood]]


@dataclass(frozen=True)
class Tasks(_OfFile):
    """Tasks with known answers, and what each policy answered.

    Args:
        checks: how each is checked: number, text or code.
        policies: the answers by policy.
    """

    checks: list[str]
    policies: dict[str, list[Answered]]


@dataclass(frozen=True)
class Measured:
    """What models say.

    Args:
        fluency: by policy, the Likelihood of each reply, prompt by prompt.
        fluency_model: the name of the model that said so, None for the reference.
        heldout: of held-out demonstrations, where there are some.
        tasks: with known answers, where there are some.
        swaps: by policy its replies after other prompts and with their sentences in another order, where asked for.
        harness: by policy what lm-evaluation-harness says, where it was asked.
    """

    fluency: dict[str, list[Likelihood]] = field(default_factory=dict)
    fluency_model: str | None = None
    heldout: HeldOut | None = None
    tasks: Tasks | None = None
    harness: dict[str, Harness] = field(default_factory=dict)
    swaps: dict[str, Swaps] = field(default_factory=dict)


def measure_models(context: Context) -> Measured:
    """All that the settings ask for. What lies whole in the run folder, of the same models and texts, is read."""
    settings = context.config.quality
    measuring = _Measuring(context)
    models = dict(context.policies)
    if not any(same_place(path, context.reference) for path in models.values()):
        models[START] = context.reference
    judge = settings.fluency_model or context.reference
    demonstrations = [] if settings.heldout is None else read_demonstrations(settings.heldout)
    tasks = [] if settings.tasks is None else read_tasks(settings.tasks)
    fluency: dict[str, list[Likelihood]] = {}
    swaps: dict[str, Swaps] = {}
    answered: dict[str, list[Answered]] = {}
    heldout: dict[str, list[Likelihood]] = {}
    harness: dict[str, Harness] = {}
    for name, path in models.items():  # all of one model, then the next
        if demonstrations:
            heldout[name] = measuring.heldout(name, path, demonstrations)
        if tasks and name in context.policies:
            answered[name] = measuring.tasks(name, path, tasks)
        if same_place(path, judge) and not fluency:
            fluency = measuring.fluency(judge)
            swaps = measuring.swaps(judge, fluency) if settings.relevance else {}
        if settings.lm_eval and name in context.policies:
            harness[name] = measuring.harness(name, path, settings.lm_eval)
    fluency = fluency or measuring.fluency(judge)
    if settings.relevance and not swaps:
        swaps = measuring.swaps(judge, fluency)
    measuring.release()
    return Measured(
        fluency,
        folder_name(settings.fluency_model) if settings.fluency_model else None,
        _held_out(context, demonstrations, heldout) if demonstrations else None,
        _tasks(context, tasks, answered) if tasks else None,
        harness,
        swaps,
    )


def _held_out(context: Context, demonstrations: Sequence[Demonstration], found: dict[str, list[Likelihood]]) -> HeldOut:
    file: str = context.config.quality.heldout
    same = [name for name, path in context.policies.items() if same_place(path, context.reference)]
    policies = {name: found[name] for name in context.policies}
    return HeldOut(*_named(file, demonstrations), found[same[0] if same else START], policies)


def _tasks(context: Context, tasks: Sequence[Prompt], answered: dict[str, list[Answered]]) -> Tasks:
    return Tasks(*_named(context.config.quality.tasks, tasks), [how_checked(task) for task in tasks], answered)


def _named(file: str, rows: Sequence[Demonstration] | Sequence[Prompt]) -> tuple[str, str, list[str]]:
    return Path(file).name, file_sha256(file), [prompt_key(row.messages) for row in rows]


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
        replies = [reply for row in answer.responses for reply in row]
        return self._of_replies(judge, "fluency", answer.name, self._messages(), replies)

    def swaps(self, judge: str, fluency: Mapping[str, list[Likelihood]]) -> dict[str, Swaps]:
        """By policy, how likely the judge finds its replies after other prompts, and with other orders of sentences."""
        return {answer.name: self._swaps(judge, answer, fluency[answer.name]) for answer in self.context.answers}

    def _swaps(self, judge: str, answer: Answers, own: list[Likelihood]) -> Swaps:
        replies, asked = [reply for row in answer.responses for reply in row], self._messages()
        size = self.context.questions.num_responses
        others = [asked[size * to] for to in other_prompts(self.context.questions.prompts) for _ in range(size)]
        orders = [reordered(reply.text) for reply in replies]
        differ = [(at, one) for at, one in enumerate(orders) if one is not None]
        places = [at for at, _ in differ]
        both = [[dataclasses.replace(replies[at], text=texts[to]) for at, texts in differ] for to in (0, 1)]
        some = [asked[at] for at in places]
        return Swaps(
            own,
            self._of_replies(judge, "relevance", answer.name, others, replies),
            self._of_replies(judge, "ordered", answer.name, some, both[0]),
            self._of_replies(judge, "shuffled", answer.name, some, both[1]),
            places,
        )

    def _messages(self) -> list[Messages]:
        """The prompt of each reply."""
        questions = self.context.questions
        return [prompt.messages for prompt in questions.prompts for _ in range(questions.num_responses)]

    def _of_replies(
        self, judge: str, what: str, name: str, messages: Sequence[Messages], replies: Sequence[Response]
    ) -> list[Likelihood]:
        ids = reply_ids(_model_id(judge), messages, replies)

        def measure() -> list[Likelihood]:
            loaded, batch_size = self._loaded(judge), self.context.questions.batch_size
            return reply_likelihoods(loaded, name, ids, messages, replies, batch_size)

        return self._kept(f"{what}.{name}.jsonl", Likelihood, ids, measure)

    def heldout(self, name: str, path: str, rows: Sequence[Demonstration]) -> list[Likelihood]:
        """How likely the model at this path finds each demonstration."""
        ids = demonstration_ids(_model_id(path), rows)

        def measure() -> list[Likelihood]:
            batch_size = self.context.questions.batch_size
            return demonstration_likelihoods(self._loaded(path), name, ids, rows, batch_size)

        return self._kept(f"heldout.{name}.jsonl", Likelihood, ids, measure)

    def tasks(self, name: str, path: str, tasks: Sequence[Prompt]) -> list[Answered]:
        """What the policy at this path answers, checked."""
        questions = self.context.questions
        longest = questions.sampling.max_new_tokens
        ids = task_ids(_model_id(path), tasks, longest)

        def measure() -> list[Answered]:
            return answer_tasks(self._loaded(path), name, ids, tasks, longest, questions.batch_size)

        return self._kept(f"tasks.{name}.jsonl", Answered, ids, measure)

    def harness(self, name: str, path: str, asked: Sequence[str]) -> Harness:
        """What lm-evaluation-harness says of the policy at this path."""
        one_id = harness_id(_model_id(path), asked)

        def measure() -> list[Harness]:
            return [harness_figures(self._loaded(path), one_id, asked, self.context.questions.batch_size)]

        return self._kept(f"lm_eval.{name}.jsonl", Harness, [one_id], measure)[0]

    def _kept(self, file: str, kind: type[Row], ids: Sequence[str], measure: Callable[[], list[Row]]) -> list[Row]:
        """The rows on disk where they are of these ids, in order; else measured, and written whole; no file of none."""
        if not ids:
            return []
        path = self.context.folder / file
        if path.is_file():
            there: list[Any] = read_jsonl(path, kind)
            if [row.id for row in there] == list(ids):
                return there
        rows = measure()
        write_jsonl(path, rows)
        return rows

    def release(self) -> None:
        """Give the memory of the loaded model back."""
        self._policy = None
        free_memory()

    def _loaded(self, path: str) -> Policy:
        if self._policy is None or self._path != path:
            self.release()
            questions = self.context.questions
            self._policy = load_policy_or_base(path, questions.dtype, questions.trust_remote_code)
            self._path = path
        return self._policy


def _model_id(path: str) -> str:
    return read_run(path).id if (Path(path) / "run.json").is_file() else path
