"""The data behind the browser of side-by-side texts."""

from typing import Any

import numpy as np

from rlhf.compare.judges import GOLD, REWARD_MODEL, label
from rlhf.compare.sentences import number
from rlhf.compare.statistics import disagreements, winners
from rlhf.compare.study import Study


def examples(study: Study) -> dict[str, Any]:
    """What the browser of side-by-side texts shows: numbers are rounded, texts are whole."""
    judges = list(study.scores)
    scores = list(study.scores.values())
    best = {name: winners(one) for name, one in study.scores.items()}
    both = GOLD in study.scores and REWARD_MODEL in study.scores
    opposed = disagreements(study.scores[GOLD], study.scores[REWARD_MODEL]) if both else np.zeros(len(study.prompts))
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
