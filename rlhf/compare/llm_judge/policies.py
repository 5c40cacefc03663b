"""A language model judges policies: every two of them, on every prompt, in both orders."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rlhf.compare.answers import Answers
from rlhf.compare.llm_judge.endpoint import JudgeEndpoint
from rlhf.compare.llm_judge.judging import judge_pairs
from rlhf.compare.llm_judge.questions import Verdict, load_template
from rlhf.compare.llm_judge.verdicts import JudgeSummary, PairItem, summarise
from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.records import Prompt

CACHE = "judge.jsonl"


class JudgeFile(NamedTuple):
    """What the YAML file of a language-model judge may hold."""

    judge: JudgeEndpoint


@dataclass(frozen=True)
class LanguageJudge:
    """What a language model said of the policies.

    Args:
        model: its name at the endpoint.
        template: the prompt that it was given.
        wins: by the names of two policies, in their order: (prompts,), how often the first wins, ties half.
        as_first: of every pair of responses, 1 where the first policy's is better with it shown first; NaN where
            the judge gave no verdict.
        as_second: the same with it shown second.
        prompts: the prompt of each of those.
        summary: verdicts, flips, tokens and cost.
    """

    model: str
    template: str
    wins: dict[tuple[str, str], NDArray[np.float64]]
    as_first: NDArray[np.float64]
    as_second: NDArray[np.float64]
    prompts: list[int]
    summary: JudgeSummary

    @property
    def numbers(self) -> dict[str, Any]:
        """What report.json says of it as a whole. What it cost depends on the endpoint, but not on the run."""
        return {"model": self.model, "template": self.template} | dataclasses.asdict(self.summary)


def read_judge(path: str, folder: str | Path) -> JudgeEndpoint:
    """The judge of a YAML file of JudgeEndpoint's keys; its answers are kept in `folder` where it names no cache.

    Raises UserError for a file that is missing or holds other keys, and for a template that cannot be read.
    """
    endpoint = parse(JudgeFile, [], path).judge
    load_template(endpoint.template)
    return endpoint if endpoint.cache else dataclasses.replace(endpoint, cache=str(Path(folder) / CACHE))


def judge_policies(endpoint: JudgeEndpoint, prompts: Sequence[Prompt], answers: Sequence[Answers]) -> LanguageJudge:
    """The judge's verdict on every two policies: the n-th response of one against the n-th of the other.

    A template that shows a reference answer takes `meta.reference` of the prompts. Raises UserError as `judge_pairs`.
    """
    places: list[tuple[int, int, int]] = []
    items: list[PairItem] = []
    for a, b in combinations(range(len(answers)), 2):
        for at, prompt in enumerate(prompts):
            reference = prompt.meta.get("reference")
            for one, other in zip(answers[a].responses[at], answers[b].responses[at], strict=True):
                places.append((a, b, at))
                items.append(PairItem(prompt.messages, one.text, other.text, reference))
    with tqdm(desc=f"judge {endpoint.model}", unit=" questions") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        verdicts = judge_pairs(endpoint, items, progress)
    by_pair: dict[tuple[int, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (a, b, at), verdict in zip(places, verdicts, strict=True):
        by_pair[a, b][at].append(verdict.value)
    names = [answer.name for answer in answers]
    return LanguageJudge(
        endpoint.model,
        endpoint.template,
        {
            (names[a], names[b]): np.array([fmean(found[at]) for at in range(len(prompts))])
            for (a, b), found in by_pair.items()
        },
        np.array([_value(verdict.verdicts[0], "A") for verdict in verdicts]),
        np.array([_value(verdict.verdicts[1], "B") for verdict in verdicts]),
        [at for _, _, at in places],
        summarise(verdicts),
    )


def _value(verdict: Verdict | None, place: str) -> float:
    """1 where the response shown at `place` is better, 0 where the other is."""
    if verdict is None:
        return float("nan")
    return 0.5 if verdict == "C" else float(verdict == place)


def check_two(policies: Sequence[str]) -> None:
    """Raises UserError where there are no two policies to judge."""
    if len(policies) < 2:
        raise UserError("llm_judge: compares two policies at least; name another one in policies, or leave it out")
