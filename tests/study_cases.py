"""Studies from scores by hand, for the tests of all that is made of them."""

from typing import Any

import numpy as np

from rlhf.compare.answers import Answers
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.study import Study
from rlhf.records import Prompt, Response

EVIL = (
    "<script>document.title='owned'</script> ${7*7} {{7*7}} </script><img src=x onerror=\"document.title='owned'\">"
    " <!-- --> \u2028 & 'q'"
)
ARABIC = "افصل الجهاز ثم أعد توصيله"


def study(
    gold: list[list[float]] | None, score: list[list[float]] | None, names: list[str] | None = None, **how: Any
) -> Study:
    """A study from scores by hand, (policies, prompts); texts, lengths and KL are made up."""
    scores = {key: np.array(one)[:, :, None] for key, one in [("gold", gold), ("reward_model", score)] if one}
    num_policies, num_prompts, _ = next(iter(scores.values())).shape
    names = names or ["sft", "dpo", "ppo", "rloo"][:num_policies]
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": f"Question {n}"}]) for n in range(num_prompts)]
    answers = []
    for at, name in enumerate(names):
        sampling = {"num_tokens": 10 + at, "finished": how.get("finished", True), "kl": how.get("kl", 2.0 * at)}
        rows = [[Response(f"{name}{n}", f"p{n}", f"Answer {n} of {at}", "run", sampling)] for n in range(num_prompts)]
        answers.append(Answers(name, rows))
    settings = {
        "policies": names,
        "baseline": names[0],
        "reference": names[0],
        "judges": list(scores),
        "decided_by": next(iter(scores)),
        "gold": "rubric:score" if gold else None,
        "reward_model": "reward" if score else None,
        "prompts": "prompts.jsonl",
        "num_prompts": num_prompts,
        "num_responses": 1,
        "max_new_tokens": 64,
        "temperature": 1.0,
        "batch_size": 8,
        "dtype": "float32",
        "seed": 0,
        "confidence": 0.95,
        "num_bootstrap": 500,
        "length_unit": "tokens",
        "held_out": {"files": [], "not_found": [], "unknown": []},
    }
    return Study(prompts, answers, scores, Bootstrap(num_bootstrap=500), settings)


def wins(share: float, n: int = 100) -> list[list[float]]:
    """Scores of two policies of which the second wins this share of n prompts."""
    return [[0.0] * n, [1.0 if at < share * n else -1.0 for at in range(n)]]


def evil_study() -> Study:
    """Names, prompts and responses that would be markup, if they were not escaped."""
    made = study(wins(0.2, 40), wins(0.9, 40), names=["sft", "<b>{{7*7}}"])
    prompts = [Prompt(EVIL, [{"role": "user", "content": EVIL}]), *made.prompts[1:]]
    rows = made.answers[1].responses
    rows[0] = [Response("r", EVIL, EVIL, "run", rows[0][0].sampling)]
    rows[1] = [Response("r", "p1", ARABIC, "run", rows[1][0].sampling)]
    return Study(prompts, made.answers, made.scores, made.bootstrap, made.settings)
