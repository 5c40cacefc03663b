"""Do replies fit their prompts, and are their sentences in an order: both as a base model sees it, by likelihoods."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.compare.as_json import maybe_interval
from rlhf.compare.quality.likelihoods import Likelihood
from rlhf.compare.quality.replies import intervals_of
from rlhf.compare.statistics import Bootstrap
from rlhf.data.split import prompt_key
from rlhf.errors import UserError
from rlhf.records import Prompt

_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


@dataclass(frozen=True)
class Swaps:
    """One policy's replies under the model, and what becomes of them, prompt by prompt.

    Args:
        own: of each reply after its prompt.
        other: of the same after another prompt.
        ordered: of each reply with two sentences or more that differ, its sentences with one space between them.
        shuffled: of the same sentences in another order.
        places: which reply each of `ordered` is.
    """

    own: list[Likelihood]
    other: list[Likelihood]
    ordered: list[Likelihood]
    shuffled: list[Likelihood]
    places: list[int]


def other_prompts(prompts: Sequence[Prompt]) -> list[int]:
    """For each prompt the next one that is another: after the last comes the first.

    Raises UserError where all prompts are the same.
    """
    keys = [prompt_key(prompt.messages) for prompt in prompts]
    if len(set(keys)) < 2:
        raise UserError("relevance: needs two prompts that differ; give more prompts, or leave it out")
    count = len(keys)
    return [next(to % count for to in range(at + 1, at + count) if keys[to % count] != keys[at]) for at in range(count)]


def reordered(text: str) -> tuple[str, str] | None:
    """The sentences of a text as they stand and in another order, the same each time; None where there is but one.

    Sentences end at a line's end, and at a full stop, question or exclamation mark before a space.
    """
    sentences = [one.strip() for one in _END.split(text) if one.strip()]
    if len(set(sentences)) < 2:
        return None
    draw, mixed = random.Random(text), list(sentences)
    while mixed == sentences:
        draw.shuffle(mixed)
    return " ".join(sentences), " ".join(mixed)


def relevance(swaps: Swaps, num_prompts: int) -> NDArray[np.float64]:
    """Pointwise mutual information of prompt and reply, nats a token of the reply, (prompts,); NaN where unknown.

    (log p(reply | prompt) - log p(reply | another prompt)) / tokens: what Li et al. 2016, "A diversity-promoting
    objective function for neural conversation models", maximise, with one other prompt for all. Above 0 where the
    reply fits its own prompt better. Unknown for an empty reply, and one that was cut unlike after the two.
    """
    pairs = zip(swaps.own, swaps.other, strict=True)
    each = [
        (other.nll - own.nll) / own.num_tokens if own.num_tokens and own.num_tokens == other.num_tokens else np.nan
        for own, other in pairs
    ]
    return _by_prompt(np.array(each), num_prompts)


def coherence(swaps: Swaps, num_prompts: int) -> NDArray[np.float64]:
    """How often the model prefers a reply's own order of sentences to another, ties half, (prompts,).

    The discrimination of orders of Barzilay and Lapata 2008, "Modeling local coherence: an entity-based approach".
    NaN where no reply to the prompt has two sentences that differ.
    """
    each = np.full(len(swaps.own), np.nan)
    for place, one, other in zip(swaps.places, swaps.ordered, swaps.shuffled, strict=True):
        each[place] = 0.5 + 0.5 * np.sign(other.nll - one.nll)
    return _by_prompt(each, num_prompts)


def _by_prompt(values: NDArray[np.float64], num_prompts: int) -> NDArray[np.float64]:
    """The mean of what is known of each prompt's replies, (prompts,)."""
    rows = values.reshape(num_prompts, -1)
    known = ~np.isnan(rows)
    sums, sizes = np.where(known, rows, 0).sum(1), known.sum(1)
    return np.divide(sums, sizes, out=np.full(num_prompts, np.nan), where=sizes > 0)


def relevance_numbers(swaps: dict[str, Swaps], num_prompts: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """For report.json: each policy's `relevance` and `coherence`, and how much more they are than the baseline's."""
    measures = {
        name: {"relevance": relevance(one, num_prompts), "coherence": coherence(one, num_prompts)}
        for name, one in swaps.items()
    }
    baseline = next(iter(swaps))
    rows: dict[str, Any] = {}
    for name, own in measures.items():
        found = intervals_of({"relevance": own["relevance"]}, (None, None), bootstrap)
        found |= intervals_of({"coherence": own["coherence"]}, (0.0, 1.0), bootstrap)
        if name != baseline:
            less = {f"{key}_difference": own[key] - measures[baseline][key] for key in own}
            found |= intervals_of(less, (None, None), bootstrap)
        rows[name] = {key: maybe_interval(one) for key, one in found.items()}
    return rows
