"""The data behind the browser of side-by-side texts."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.judges import GOLD, REWARD_MODEL, label
from rlhf.compare.page.flags import flags
from rlhf.compare.sentences import number
from rlhf.compare.statistics import disagreements, winners
from rlhf.compare.study import Study


def examples(study: Study, report: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the browser of side-by-side texts shows: numbers are rounded, texts are whole.

    `report` holds what sections flag; without it no reply is flagged.
    """
    judges = list(study.scores)
    scores = list(study.scores.values())
    best = {name: winners(one) for name, one in study.scores.items()}
    both = GOLD in study.scores and REWARD_MODEL in study.scores
    opposed = disagreements(study.scores[GOLD], study.scores[REWARD_MODEL]) if both else np.zeros(len(study.prompts))
    contradiction = contradictions(study.scores)
    flagged = flags(report or {})
    means = scores[0].mean(2)  # (policies, prompts)
    return {
        "policies": study.names,
        "judges": [{"key": name, "label": label(name)} for name in judges],
        "prompts": [
            {
                "id": prompt.id,
                "messages": [[message["role"], message["content"]] for message in prompt.messages],
                "best": {name: best[name][at] for name in judges},
                "disagree": bool(opposed[at]),
                "difference": round(float(means[:, at].max() - means[:, at].min()), 6),
                "contradiction": round(float(contradiction[at]), 6),
                "flags": [flagged.get((prompt.id, name), []) for name in study.names],
                "policies": [
                    [
                        {
                            "text": response.text,
                            "tokens": response.sampling["num_tokens"],
                            "finished": response.sampling["finished"],
                            "scores": [number(float(one[policy, at, index])) for one in scores],
                        }
                        for index, response in enumerate(answer.responses[at])
                    ]
                    for policy, answer in enumerate(study.answers)
                ],
            }
            for at, prompt in enumerate(study.prompts)
        ],
    }


def contradictions(scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """How strongly two judges contradict each other on each prompt, (prompts,); 0 where none does.

    A judge's margin between two policies is the difference of their mean scores, in units of the root mean square of
    all its margins, so that judges on different scales can be compared. Where two judges prefer different policies,
    the smaller of both margins counts: a contradiction is as strong as the less sure of the two. Of all pairs of
    judges and of policies it is the largest.

    Args:
        scores: by judge, (policies, prompts, responses).
    """
    num_policies, num_prompts, _ = next(iter(scores.values())).shape
    pairs = list(combinations(range(num_policies), 2))
    strongest = np.zeros(num_prompts)
    if not pairs:
        return strongest
    margins = []
    for one in scores.values():
        means = one.mean(2)
        margin = np.array([means[a] - means[b] for a, b in pairs])  # (pairs, prompts)
        size = np.sqrt(np.mean(margin**2))
        margins.append(margin / size if size > 0 else margin)
    for one, other in combinations(margins, 2):
        smaller = np.minimum(np.abs(one), np.abs(other))
        strongest = np.maximum(strongest, np.where(one * other < 0, smaller, 0.0).max(0))
    return strongest
