"""Five simulated annotators: each sees the rubric's score through a bias and noise of their own.

An annotator ranks by utility: the score, plus what the bias adds, plus Gumbel noise, which makes the
ranking a draw from the Plackett-Luce model (Yellott 1977). Close utilities are ties. The random
numbers come from the seed, the annotator and the task alone, so the order of calls does not matter.
"""

from dataclasses import dataclass
from math import log
from random import Random

from rlhf.demo import rubric
from rlhf.demo.rubric import Facts
from rlhf.records import Ranking, Task

FREE_WORDS = 20  # length bias counts the words past these


@dataclass(frozen=True)
class Annotator:
    """One person's ways. Utilities and biases are in points of the rubric (0 to 1).

    Args:
        noise: scale of the Gumbel noise (its standard deviation is 1.28 times that).
        length_bias: added for every ten words past the first twenty.
        forgives_rudeness: the share of the rubric's points for rudeness given back.
        strict_on_passwords: taken off, past the rubric's points, where a password is asked for.
        position_bias: added to the response shown first, falling evenly to 0 for the last.
        careless: probability of ranking a task at random, after a glance.
        tie_threshold: responses whose utilities are at most so far apart are ties; a little over what noise alone puts
            between two equal ones, so that who sees no difference says so.
        words_per_second: reading speed.
    """

    name: str
    noise: float = 0.0
    length_bias: float = 0.0
    forgives_rudeness: float = 0.0
    strict_on_passwords: float = 0.0
    position_bias: float = 0.0
    careless: float = 0.0
    tie_threshold: float = 0.12
    words_per_second: float = 4.0


ANNOTATORS = (
    Annotator("ada", noise=0.03),
    Annotator("ben", noise=0.05, length_bias=0.05),
    Annotator("cleo", noise=0.05, forgives_rudeness=1.0, strict_on_passwords=0.3),
    Annotator("dev", noise=0.05, position_bias=0.15),
    Annotator("eli", noise=0.05, careless=0.4, words_per_second=8.0),
)


def rank(task: Task, annotator: Annotator, seed: int, shown: list[str] | None = None) -> Ranking:
    """The annotator's answer to a task; the same for the same seed.

    The order on screen is the one given (the label store's), else random; it is recorded in `shown`.
    Equal texts are ties. Ranks are dense: 1, 1, 2. `at` stays None, because simulated people have no calendar.
    """
    rng = Random(f"{seed}/{annotator.name}/{task.id}")
    if shown is None:
        shown = [response.id for response in task.responses]
        rng.shuffle(shown)
    texts = {response.id: response.text for response in task.responses}
    # By text and not by response: equal texts get one utility, that of where it is shown first.
    distinct = list(dict.fromkeys(texts[id] for id in shown))
    place = {text: min(at for at, id in enumerate(shown) if texts[id] == text) for text in distinct}
    is_careless = rng.random() < annotator.careless
    utility = {}
    for text in distinct:
        noise = -log(-log(rng.uniform(1e-12, 1 - 1e-12)))
        if is_careless:
            utility[text] = noise
        else:
            shown_early = 1 - place[text] / (len(shown) - 1) if len(shown) > 1 else 0.0
            seen = _seen(task, text, annotator) + annotator.position_bias * shown_early
            utility[text] = seen + annotator.noise * noise
    by_text = _ranks(utility, annotator.tie_threshold)
    num_words = sum(len(texts[id].split()) for id in shown)
    seconds = 2 + (0 if is_careless else num_words / annotator.words_per_second) * rng.uniform(0.8, 1.25)
    ranks = {response.id: by_text[response.text] for response in task.responses}
    return Ranking(task.id, annotator.name, ranks, shown=shown, seconds=round(seconds, 1))


def _seen(task: Task, text: str, annotator: Annotator) -> float:
    """The score of a text with the annotator's own likes and dislikes."""
    meta = task.prompt.meta
    found = rubric.facts(task.prompt.messages, text, meta.get("product"), meta.get("problem"))
    return rubric.weigh(found) + _bias(found, annotator)


def _bias(found: Facts, annotator: Annotator) -> float:
    bias = annotator.length_bias * max(0, found.num_words - FREE_WORDS) / 10
    bias -= annotator.forgives_rudeness * rubric.RUDE * found.is_rude
    return bias - annotator.strict_on_passwords * found.asks_password


def _ranks(utility: dict[str, float], tie_threshold: float) -> dict[str, int]:
    """Dense ranks, best first; a tie is what lies within the threshold of the best of its group."""
    ranks: dict[str, int] = {}
    rank_now, best = 0, float("inf")
    for text, value in sorted(utility.items(), key=lambda item: -item[1]):
        if best - value > tie_threshold:
            rank_now, best = rank_now + 1, value
        ranks[text] = rank_now
    return ranks
