"""Reward functions: what they are asked, what they may return, every way they fail, and ensembles by hand."""

import functools
import json
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import UserError
from rlhf.ppo.endpoint import HTTPReward, RewardError
from rlhf.ppo.rewards import Reward, load_rewards, text_reward
from rlhf.ppo.scores import combine
from tests.reward_cases import COMPLETIONS, PROMPTS, TEXTS, ask


def answers(value: Any) -> Callable[..., Any]:
    """A reward function that always returns this."""

    def fixed(prompts, completions, **columns):
        return value

    return fixed


# --- what is asked, and what may come back ------------------------------------------------------


def test_a_function_gets_prompts_completions_and_columns_as_in_trl() -> None:
    def by_column(prompts, completions, weight, **columns):
        assert (prompts, completions) == (PROMPTS, COMPLETIONS)
        assert columns == {"topic": ["x", "y", "z"]}
        return [each * len(reply[-1]["content"]) for each, reply in zip(weight, completions, strict=True)]

    columns = {"weight": [1, 2, 3], "topic": ["x", "y", "z"]}
    assert ask(by_column, columns=columns) == [[9, 38, 3]]


@pytest.mark.parametrize(
    "value",
    [
        [1, -2.5, 0],
        (1, -2.5, 0),
        [Fraction(1), np.float32(-2.5), torch.tensor(0)],
        [True, -2.5, np.bool_(False)],
        np.array([1, -2.5, 0]),
        torch.tensor([1, -2.5, 0], dtype=torch.bfloat16),
        torch.tensor([1, -2.5, 0], requires_grad=True),
    ],
)
def test_lists_arrays_and_tensors_of_numbers_are_scores(value: Any) -> None:
    (scores,) = ask(answers(value))
    assert scores == [1.0, -2.5, 0.0]
    assert [type(number) for number in scores] == [float, float, float]


def test_an_async_function_is_awaited() -> None:
    async def later(prompts, completions, **columns):
        return [1.0, 2.0, 3.0]

    assert ask(later) == [[1, 2, 3]]


def test_a_function_keeps_no_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    seen = []
    ask(lambda **_: seen.append((weight * 2).requires_grad) or [0, 0, 0])
    assert seen == [False]


def test_a_column_cannot_take_the_place_of_the_prompts() -> None:
    assert ask(lambda prompts, **_: [len(prompts)] * 3, columns={"prompts": ["x"]}) == [[3, 3, 3]]


def test_scores_come_in_the_order_of_the_functions() -> None:
    assert ask(answers([1, 2, 3]), answers([4, 5, 6])) == [[1, 2, 3], [4, 5, 6]]


def test_our_own_reward_functions_get_messages_and_text() -> None:
    seen = []

    def ours(prompts, responses, **columns):
        seen.append((prompts, responses, columns))
        return [float(len(text)) for text in responses]

    reward = text_reward(ours)
    # A dataset may have a column of the name of our second argument: the replies are what counts.
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, topic=["x"] * 3, responses=["y"] * 3) == [9, 19, 1]
    assert reward(prompts=["Hello"], completions=["Hi"]) == [2]
    assert seen[0] == (PROMPTS, TEXTS, {"topic": ["x"] * 3})
    assert seen[1] == ([[{"role": "user", "content": "Hello"}]], ["Hi"], {})


# --- names ----------------------------------------------------------------------------------------


def test_names_are_short_and_unique() -> None:
    def length(**_):
        return [0.0]

    class Polite:
        def __call__(self, **_):
            return [0.0]

    url = "http://rewards.example.org:8000/score"
    items = [length, functools.partial(length, scale=2), text_reward(length), Polite(), lambda **_: [0.0]]
    rewards = load_rewards([*items, url, f"{url}/2", HTTPReward(url)])
    host = "rewards.example.org"
    names = ["length", "length-2", "length-3", "Polite", "lambda", host, f"{host}-2", f"{host}-3"]
    assert [reward.name for reward in rewards] == names


def test_one_function_needs_no_list() -> None:
    function = answers([0, 0, 0])
    assert load_rewards(function) == [Reward("fixed", function)]


# --- how a function fails -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None; return a list of 3 numbers, one a completion"),
        ("good", "returned a str ('good'); return a list of 3 numbers"),
        ({"a": 1}, "returned a dict ({'a': 1}); return a list"),
        (1.0, "returned a float (1.0); return a list"),
        ([1.0, 2.0], "returned 2 scores for 3 completions; return one for each"),
        (torch.zeros(4), "returned 4 scores for 3 completions; return one for each"),
        (torch.zeros(3, 1), "returned an array of shape (3, 1); return one of shape (3,)"),
        (np.array(1.0), "returned an array of shape (); return one of shape (3,)"),
        ([0, None, None], "returned None for 2 of 3 completions (the first at index 1); PPO needs a number for each"),
        ([0, "1", "2"], "returned a str ('1') for 2 of 3 completions (the first at index 1); return numbers alone"),
        ([0, 1, [2]], "returned a list ([2]) for 1 of 3 completions (the first at index 2); return numbers"),
        ([0, 1, np.zeros(2)], "returned a ndarray (array([0., 0.])) for 1 of 3"),
        ([0, 1j, 2], "returned a complex (1j) for 1 of 3"),
        ([0, float("nan"), 1], "returned nan for 1 of 3 completions (the first at index 1); return finite numbers"),
        (torch.tensor([-torch.inf, 0, torch.nan]), "returned -inf for 2 of 3 completions (the first at index 0)"),
        ([0, 10**400, 0], "returned inf for 1 of 3"),
    ],
)
def test_what_is_no_score_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(RewardError) as error:
        ask(answers([0, 0, 0]), answers(value))
    assert f"reward `fixed-2`: {message}" in str(error.value)


def broken(prompts, completions, **columns):
    return json.loads("{")  # line of `broken`, not of the json library, is what its author needs


def _line(text: str) -> int:
    """The line of this file that begins so."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


class Wrapped:
    def __call__(self, **columns):
        raise RuntimeError("two\nlines " + "x" * 1000)


async def late(**columns):
    raise KeyError("gone")


def test_an_exception_says_what_and_where_in_the_function() -> None:
    cases = [
        (broken, "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (functools.partial(broken, scale=1), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (text_reward(broken), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (torch.no_grad()(broken), "JSONDecodeError: Expecting property name", 'return json.loads("{")'),
        (Wrapped(), "RuntimeError: two lines xxx", 'raise RuntimeError("two'),
        (late, "KeyError: 'gone'", 'raise KeyError("gone")'),
        (lambda **_: sys.exit(3), "SystemExit: 3", "(lambda **_: sys.exit(3)"),
    ]
    for function, what, line in cases:
        with pytest.raises(RewardError) as error:
            ask(function)
        assert what in str(error.value)
        assert str(error.value).endswith(f" ({__file__}:{_line(line)}); mend it there")
        assert len(str(error.value)) < 600
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is not None  # the whole traceback, for who wants it


def narrow(prompts, completions):
    return [0.0] * len(prompts)


def test_a_function_that_takes_no_columns_is_told_to() -> None:
    with pytest.raises(RewardError) as error:
        ask(narrow, columns={"topic": [1, 2, 3]})
    place = f"({__file__}:{_line('def narrow(')})"
    assert "reward `narrow`: TypeError: narrow() got an unexpected keyword argument 'topic'" in str(error.value)
    assert (
        f"{place}; it is called with the keywords prompts, completions, topic: "
        "take those it has no use for as **columns"
    ) in str(error.value)


def test_a_user_error_is_passed_on_with_the_name() -> None:
    def careful(**_):
        raise UserError("words.txt: no such file; write one")

    with pytest.raises(RewardError, match=r"^reward `careful`: words.txt: no such file; write one$"):
        ask(careful)


def test_too_little_memory_says_to_score_fewer() -> None:
    def big(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RewardError, match=r"OutOfMemoryError: CUDA out of memory \(.*\); score fewer at a time"):
        ask(big)


def test_a_function_that_hangs_is_given_up() -> None:
    never = threading.Event()

    def hangs(**_):
        never.wait()
        return [0, 0, 0]

    with pytest.raises(RewardError) as error:
        ask(hangs, timeout=0.05)
    threads = [each for each in threading.enumerate() if each.name == "rewards"]
    assert threads
    assert all(thread.daemon for thread in threads)  # they let the process end
    assert ask(answers([1, 2, 3])) == [[1.0, 2.0, 3.0]]  # in another thread: the first still hangs
    never.set()
    message = "no answer within 0.05 seconds for 3 completions; make it faster, or raise --reward_timeout"
    assert str(error.value) == f"reward `hangs`: {message}"


def test_an_endless_timeout_is_allowed() -> None:
    assert ask(answers([1, 2, 3]), timeout=float("inf")) == [[1, 2, 3]]


# --- ensembles ------------------------------------------------------------------------------------

THREE = [[1.0, 4.0], [3.0, 0.0], [5.0, -1.0]]  # (3 functions, 2 completions)


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("sum", None, [9.0, 3.0]),
        ("mean", None, [3.0, 1.0]),
        ("minimum", None, [1.0, -1.0]),
        # Squared distances from the means: 4 + 0 + 4, and 9 + 1 + 4.
        ("lower_bound", None, [3 - 0.5 * (8 / 3) ** 0.5, 1 - 0.5 * (14 / 3) ** 0.5]),
        # Weighted: [2, 8], [0, 0], [-5, 1].
        ("sum", [2, 0, -1], [-3.0, 9.0]),
        ("mean", [2, 0, -1], [-1.0, 3.0]),
        ("minimum", [2, 0, -1], [-5.0, 0.0]),
        # 9 + 1 + 16, and 25 + 9 + 4.
        ("lower_bound", [2, 0, -1], [-1 - 0.5 * (26 / 3) ** 0.5, 3 - 0.5 * (38 / 3) ** 0.5]),
    ],
)
def test_ensembles_by_hand(how: str, weights: list[float] | None, expected: list[float]) -> None:
    assert combine(THREE, weights, how, k=0.5) == pytest.approx(expected)


def test_one_function_alone_is_its_own_ensemble() -> None:
    for how in ("sum", "mean", "minimum", "lower_bound"):
        assert combine([[1.5, -2.0]], None, how, k=3.0) == [1.5, -2.0]


def test_rewards_that_agree_have_no_lower_bound_below_them() -> None:
    assert combine([[2.0], [2.0]], None, "lower_bound", k=100.0) == [2.0]


def test_each_reward_needs_its_weight() -> None:
    with pytest.raises(UserError, match="reward_weights: 2 weights for 3 reward functions; give one for each"):
        combine(THREE, [1, 2], "sum", 1.0)
    with pytest.raises(ValueError, match="`median` is not sum, mean, minimum or lower_bound"):
        combine(THREE, None, "median", 1.0)
