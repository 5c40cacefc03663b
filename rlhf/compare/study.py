"""What a comparison measured: every policy's answers and every judge's scores on the same prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.answers import Answers, Questions
from rlhf.compare.judges import LLM_JUDGE, PEOPLE
from rlhf.compare.llm_judge.policies import LanguageJudge
from rlhf.compare.people import People
from rlhf.compare.statistics import Bootstrap
from rlhf.records import Prompt, RewardFunction


@dataclass(frozen=True)
class Context:
    """What a section may measure with, once every policy has answered and every judge has scored.

    Args:
        config: all settings, `Config` of rlhf.compare.run.
        policies: name to path of those that are models here, the baseline first; files and servers have only answers.
        reference: the path of the SFT start.
        questions: what every policy was asked.
        answers: what each policy wrote, files and servers among them, the baseline first.
        judges: reward functions by name, the deciding one first.
        scores: by judge, (policies, prompts, responses).
        bootstrap: how intervals are made.
        folder: the run's, where a section keeps what took long, so that a resumed run does not do it again.
    """

    config: Any
    policies: Mapping[str, str]
    reference: str
    questions: Questions
    answers: list[Answers]
    judges: Mapping[str, RewardFunction]
    scores: dict[str, NDArray[np.float64]]
    bootstrap: Bootstrap
    folder: Path


@dataclass(frozen=True)
class Study:
    """All that was measured: `scores` is by judge, (policies, prompts, responses), the deciding judge first.

    `people` is what the labeling app's annotators say, where they were asked; `measured` what sections measured
    beside, by the section's key; `language` what a language-model judge says.
    """

    prompts: list[Prompt]
    answers: list[Answers]
    scores: dict[str, NDArray[np.float64]]
    bootstrap: Bootstrap
    settings: dict[str, Any]
    people: People | None = None
    language: LanguageJudge | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The policies' names, the baseline first."""
        return [answer.name for answer in self.answers]

    @property
    def verdicts(self) -> dict[str, dict[tuple[str, str], NDArray[np.float64]]]:
        """What judges say that compare two responses: by judge and the names of two policies, (prompts,), how often
        the first wins, ties half; NaN on prompts that a judge did not see."""
        found: dict[str, dict[tuple[str, str], NDArray[np.float64]]] = {}
        if self.language is not None:
            found[LLM_JUDGE] = self.language.wins
        if self.people is not None:
            found[PEOPLE] = {names: one.wins for names, one in self.people.pairs.items()}
        return found
