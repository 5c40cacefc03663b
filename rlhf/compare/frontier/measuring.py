"""Points of reward against KL, measured: what the report has not generated yet is, and is kept in the run folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.answers import Answers, Questions, answer_all, same_place
from rlhf.compare.frontier.candidates import Candidate, differing_settings, find_candidates
from rlhf.compare.frontier.points import Point
from rlhf.compare.frontier.pool import BEST_OF_N, best_of_n_points
from rlhf.compare.judges import REWARD_MODEL, score_texts
from rlhf.compare.study import Context

START = "start"


@dataclass(frozen=True)
class Curve:
    """One method's points.

    Args:
        points: in the order of runs and steps; `run` is the training run.
        steps: of the checkpoint of each point, None for the finished run.
        settings: by run, what its training was told that the method's other runs were not.
    """

    points: list[Point]
    steps: list[int | None]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Everything that the frontier is made from.

    Args:
        curves: by method; best-of-n is the last, where asked for.
        start: the reference, at KL 0; None where it is no policy of the run and nothing else had to be generated.
        num_start: how many responses a prompt the start's mean is of.
        decided_by: the judge behind `gold` of the points.
        proxy: the judge behind their `score`, that best-of-n selects by; None where it is the deciding one.
        left_out: keys of policies without KL to the reference.
        num_prompts: all points are of these first prompts.
    """

    curves: dict[str, Curve]
    start: Point | None
    num_start: int
    decided_by: str
    proxy: str | None
    left_out: list[str]
    num_prompts: int


def measure_points(
    context: Context, sweeps: Sequence[str], with_checkpoints: bool, best_of_n: int | None, num_prompts: int | None
) -> Measured | None:
    """All points of the settings; None where no policy but the reference has a KL to it."""
    decided_by = next(iter(context.scores))
    proxy = REWARD_MODEL if REWARD_MODEL in context.scores and decided_by != REWARD_MODEL else None
    questions = dataclasses.replace(context.questions, prompts=context.questions.prompts[:num_prompts])
    measuring = _Measuring(context, questions, [decided_by] if proxy is None else [decided_by, proxy])
    candidates = find_candidates(context.policies, context.reference, sweeps, with_checkpoints)
    tables = measuring.tables(candidates)
    curves: dict[str, Curve] = {}
    for candidate in candidates:
        if (table := tables.get(candidate.key)) is not None:
            curve = curves.setdefault(candidate.method, Curve([], []))
            curve.points.append(table.point(candidate.run, candidate.setting))
            curve.steps.append(candidate.step)
    if not curves:
        return None
    for method, curve in curves.items():
        runs = {one.run: one.path for one in candidates if one.method == method and one.step is None}
        curve.settings.update(differing_settings(runs))
    asked = with_checkpoints or bool(sweeps)
    pool = measuring.pool(best_of_n) if best_of_n is not None else measuring.start(asked)
    start = None if pool is None else pool.point(START, START)
    if best_of_n is not None:
        assert pool is not None, "the reference has a KL to itself"
        scores = [pool.scores[judge] for judge in (proxy or decided_by, decided_by)]
        points = best_of_n_points(scores[0], scores[1])[1:]  # best of 1 is the start
        curves[BEST_OF_N] = Curve(points, [None] * len(points))
    left_out = [one.key for one in candidates if one.key not in tables]
    num_start = 0 if pool is None else pool.num_responses
    return Measured(curves, start, num_start, decided_by, proxy, left_out, len(questions.prompts))


@dataclass(frozen=True)
class _Table:
    """One policy's KL and scores, each (prompts, responses)."""

    kl: NDArray[np.float64]
    scores: Mapping[str, NDArray[np.float64]]

    @property
    def num_responses(self) -> int:
        return self.kl.shape[1]

    def point(self, run: str, setting: str) -> Point:
        deciding, *proxy = self.scores.values()
        return Point.measured(run, setting, self.kl, deciding, proxy[0] if proxy else None)


@dataclass(frozen=True)
class _Measuring:
    context: Context
    questions: Questions
    judges: list[str]

    def tables(self, candidates: Sequence[Candidate]) -> dict[str, _Table]:
        """By key the policies that have a KL to the reference."""
        context = self.context
        compared = {one.key: at for one in candidates if (at := self._compared(one.path)) is not None}
        further = {one.key: one.path for one in candidates if one.key not in compared}
        found = {key: self._of_compared(at) for key, at in compared.items()}
        if further:
            answers = answer_all(further, context.reference, self.questions, context.folder)
            found |= self._scored(answers)
        return {key: table for key, table in found.items() if table is not None}

    def start(self, generate: bool) -> _Table | None:
        """The reference as it was compared; where it was not, its new answers, if it may `generate` them."""
        if (at := self._compared(self.context.reference)) is not None:
            return self._of_compared(at)
        return self._of_reference(START, self.questions) if generate else None

    def pool(self, size: int) -> _Table | None:
        """So many answers of the reference to each prompt."""
        return self._of_reference(BEST_OF_N, dataclasses.replace(self.questions, num_responses=size))

    def _of_reference(self, name: str, questions: Questions) -> _Table | None:
        reference = self.context.reference
        return self._scored(answer_all({name: reference}, reference, questions, self.context.folder))[name]

    def _compared(self, path: str) -> int | None:
        names = [name for name, other in self.context.policies.items() if same_place(other, path)]
        places = {answer.name: at for at, answer in enumerate(self.context.answers)}
        return places[names[0]] if names else None

    def _of_compared(self, at: int) -> _Table | None:
        rows = len(self.questions.prompts)
        kl = self.context.answers[at].kl
        if kl is None:
            return None
        return _Table(kl[:rows], {judge: self.context.scores[judge][at][:rows] for judge in self.judges})

    def _scored(self, answers: Sequence[Answers]) -> dict[str, _Table | None]:
        texts = [answer.texts for answer in answers]
        prompts = self.questions.prompts
        scores = {judge: score_texts(judge, self.context.judges[judge], prompts, texts) for judge in self.judges}
        return {
            answer.name: None
            if answer.kl is None
            else _Table(answer.kl, {judge: table[at] for judge, table in scores.items()})
            for at, answer in enumerate(answers)
        }
