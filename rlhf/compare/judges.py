"""What judges are given and what they must give back: one finite number for every response."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import UserError
from rlhf.records import Prompt, RewardFunction

GOLD = "gold"
REWARD_MODEL = "reward_model"
PEOPLE = "people"  # no function: they have voted, see people.py
LLM_JUDGE = "llm_judge"  # no function: it sees two responses at a time, see llm_judge/

_LABELS = {GOLD: "gold", REWARD_MODEL: "the reward model", LLM_JUDGE: "the language model"}


def label(judge: str) -> str:
    """A judge's name within a sentence."""
    return _LABELS.get(judge, judge.replace("_", " "))


def in_order(judges: Mapping[str, RewardFunction]) -> dict[str, RewardFunction]:
    """The judges with the one that decides first: gold, then the reward model, then others by name."""
    first = [name for name in (GOLD, REWARD_MODEL) if name in judges]
    return {name: judges[name] for name in [*first, *sorted(set(judges) - set(first))]}


def shared_columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The keys of `meta` that every prompt has, as lists of one value a prompt."""
    names = [name for name in prompts[0].meta if all(name in prompt.meta for prompt in prompts)]
    return {name: [prompt.meta[name] for prompt in prompts] for name in names}


def check_judges(judges: Mapping[str, RewardFunction], prompts: Sequence[Prompt]) -> None:
    """Ask every judge about two dummy responses, so that a broken one shows before any generation.

    Raises UserError where a judge cannot take the prompts' columns, or does not give one number a
    response. Whether the numbers are finite is seen on the real responses.
    """
    columns = shared_columns(prompts[:1])
    columns = {name: values * 2 for name, values in columns.items() if name in shared_columns(prompts)}
    for name, judge in judges.items():
        try:
            inspect.signature(judge).bind([], [], **columns)
        except TypeError as error:
            raise UserError(
                f"{name}: cannot be called as ({', '.join(['prompts', 'responses', *columns])}) ({error}); "
                "define it as (prompts, responses, **columns)"
            ) from None
        except ValueError:  # a builtin without a signature
            pass
        _numbers(name, judge([prompts[0].messages] * 2, ["Yes.", "I do not know."], **columns), 2)


def score_texts(
    name: str,
    judge: RewardFunction,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[Sequence[str]]],
    known: Mapping[tuple[int, str], float] | None = None,
) -> NDArray[np.float64]:
    """A judge's score of every response, (policies, prompts, responses).

    Args:
        name: the judge's, for errors.
        judge: a RewardFunction; it gets all prompts and responses that are not in `known` in one call.
        prompts: the prompts.
        texts: for each policy, for each prompt, its responses.
        known: scores that the judge gave already, by place of the prompt and text.

    The same text to the same prompt is judged once, so that it can only tie with itself. Raises
    UserError where the judge gives another number of values, or one that is not finite.
    """
    places: dict[tuple[int, str], int] = {}
    index = [
        [[places.setdefault((at, text), len(places)) for text in responses] for at, responses in enumerate(policy)]
        for policy in texts
    ]
    scored = dict(known or {})
    scored |= ask_judge(name, judge, prompts, [place for place in places if place not in scored])
    return np.array([scored[place] for place in places])[np.array(index)]


def ask_judge(
    name: str, judge: RewardFunction, prompts: Sequence[Prompt], places: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], float]:
    """A judge's score of each (place of a prompt, text), in one call. Raises UserError as `score_texts`."""
    if not places:
        return {}
    columns = shared_columns(prompts)
    rows = [at for at, _ in places]
    values = judge(
        [prompts[at].messages for at in rows],
        [text for _, text in places],
        **{column: [given[at] for at in rows] for column, given in columns.items()},
    )
    scored = dict(zip(places, _numbers(name, values, len(places)), strict=True))
    for (at, text), number in scored.items():
        if not math.isfinite(number):
            raise UserError(
                f"{name}: gave {number} for prompt `{prompts[at].id}` and response {text[:60]!r}; it must give a "
                "finite number. Mend it, then go on with --resume true: what was generated is kept"
            )
    return scored


def _numbers(name: str, values: Any, expected: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise UserError(f"{name}: gave {values!r:.80}; it must return a list with one number a response") from None
    if len(numbers) != expected:
        raise UserError(f"{name}: gave {len(numbers)} values for {expected} responses; it must give one a response")
    return numbers
