"""What scores a policy's replies: reward functions loaded, asked, checked and made one.

A reward function follows TRL's GRPOTrainer: `f(prompts=..., completions=..., **columns) -> list[float]`,
plain or async. Of a conversation, a prompt is a list of messages and a completion `[{"role":
"assistant", "content": text}]`; of plain text, both are strings. A column is a list, one value a completion.
"""

import asyncio
import copy
import functools
import inspect
import json
import math
import reprlib
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from queue import SimpleQueue
from types import CodeType
from typing import Any, ClassVar

import httpx
import numpy as np
import torch

from rlhf.errors import UserError
from rlhf.models import check_model_folder, context_length, give_own_pad, load_tokenizer
from rlhf.ppo.endpoint import HTTPReward, RewardError
from rlhf.records import RewardFunction
from rlhf.scoring import RewardModel, load_reward_model

_URL = ("http://", "https://")
_TEMPLATE = "give it one: set `tokenizer.chat_template` and save the tokenizer beside the model"


@dataclass(frozen=True)
class Reward:
    """A reward function and what to call it; no two of a run share a name."""

    name: str
    function: Callable[..., Any]


def load_rewards(
    reward_funcs: Any, max_length: int | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> list[Reward]:
    """Reward functions from what a user may give for them.

    Args:
        reward_funcs: one or a list of: a callable; the URL of an endpoint (see HTTPReward); the run
            folder, checkpoint or Hub id of a classifier with one label; such a classifier, loaded,
            with its tokenizer: `(model, tokenizer)`. A classifier reads the text anew, with its own
            tokenizer and chat template, a plain prompt as the turn of a user.
        max_length: tokens of prompt and reply that a classifier reads; by default its context.
        batch_size: completions that go to a classifier or an endpoint at a time.
        trust_remote_code: run a checkpoint's own code.

    Raises:
        UserError: something else was given, or a checkpoint is no reward model.
    """
    items = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    if not items:
        raise UserError("reward_funcs: is empty; give at least one callable, URL or reward model")
    rewards: dict[str, Reward] = {}
    for item in items:
        function = _function(item, max_length, batch_size, trust_remote_code)
        name = base = _name(item)
        number = 1
        while name in rewards:
            number += 1
            name = f"{base}-{number}"
        rewards[name] = Reward(name, function)
    return list(rewards.values())


def _function(item: Any, max_length: int | None, batch_size: int, trust_remote_code: bool) -> Callable[..., Any]:
    if isinstance(item, str) and item.startswith(_URL):
        return HTTPReward(item, batch_size)
    if isinstance(item, str | Path):
        return text_reward(_checkpoint(str(item), max_length, batch_size, trust_remote_code))
    if isinstance(item, tuple) and len(item) == 2:
        return text_reward(_classifier(*item, max_length, batch_size))
    if isinstance(item, torch.nn.Module) and hasattr(item, "config"):
        raise UserError(f"reward_funcs: {_name((item, None))} has no tokenizer; give `(model, tokenizer)`")
    if callable(item):
        return item
    raise UserError(
        f"reward_funcs: a {type(item).__name__} cannot score; give a callable, a URL, the folder of a reward model, "
        "or `(model, tokenizer)`"
    )


def _name(item: Any) -> str:
    if isinstance(item, str) and item.startswith(_URL):
        return httpx.URL(item).host
    if isinstance(item, str | Path):
        return Path(item).resolve().name
    if isinstance(item, tuple):
        return Path(getattr(item[0].config, "_name_or_path", "")).name or type(item[0]).__name__
    item = _unwrapped(item)
    return getattr(item, "__name__", type(item).__name__).strip("<>")  # <lambda>


def _checkpoint(path: str, max_length: int | None, batch_size: int, trust_remote_code: bool) -> RewardModel:
    check_model_folder(path)
    if not load_tokenizer(path, trust_remote_code=trust_remote_code).chat_template:
        raise UserError(f"{path}: the reward model's tokenizer has no chat template; {_TEMPLATE}")
    headless = UserError(f"{path}: is a language model without a score; give the folder of a `rlhf reward` run")
    adapter = Path(path) / "adapter_config.json"
    is_adapter = adapter.is_file()
    if is_adapter and json.loads(adapter.read_text(encoding="utf-8")).get("task_type") != "SEQ_CLS":
        raise headless
    reward = load_reward_model(path, max_length, batch_size, trust_remote_code)
    # A language model loads too, with a new head, and would pay the policy for nothing at all.
    kinds = () if is_adapter else reward.model.config.architectures or ()
    if any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise headless
    return reward


def _classifier(model: Any, tokenizer: Any, max_length: int | None, batch_size: int) -> RewardModel:
    config = getattr(model, "config", None)
    if config is None or not hasattr(tokenizer, "apply_chat_template"):
        given = f"{type(model).__name__}, {type(tokenizer).__name__}"
        raise UserError(f"reward_funcs: ({given}) cannot score; give `(model, tokenizer)`")
    if config.num_labels != 1:
        raise UserError(
            f"reward_funcs: {type(model).__name__} has {config.num_labels} labels; give a sequence classifier with one"
        )
    if not tokenizer.chat_template:
        raise UserError(f"reward_funcs: the tokenizer of {type(model).__name__} has no chat template; {_TEMPLATE}")
    tokenizer = copy.deepcopy(tokenizer)  # it may be the policy's too, which pads on the other side
    give_own_pad(model, tokenizer)
    if torch.cuda.is_available() and model.device.type == "cpu":
        model = model.cuda()
    context = context_length(model)
    return RewardModel(model, tokenizer, min(max_length or context, context), batch_size)


def text_reward(function: RewardFunction) -> Callable[..., Any]:
    """This project's `(prompts, responses, **columns)`, messages and text, as a reward function of TRL's kind.

    A plain prompt becomes the turn of a user.
    """

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        messages = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts]
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        columns.pop("responses", None)  # a column of that name would be its second argument twice
        return function(messages, texts, **columns)

    reward.__wrapped__ = function  # type: ignore[attr-defined]
    return reward


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: dict[str, Any],
    timeout: float,
) -> list[list[float]]:
    """The scores of each reward function, asked one after another, of `timeout` seconds each.

    A function may return a list, an array or a tensor of one number a completion.

    Raises:
        RewardError: a function raised, took too long, or gave something else, None and NaN included.
    """
    return [
        _checked(reward, _ask(reward, prompts, completions, columns, timeout), len(completions)) for reward in rewards
    ]


class _Worker:
    """A thread that runs one call after another, and is left behind where a call hangs.

    One thread and not one a call: the C library gives each new one memory of its own, which it then keeps
    (2.5 GB over 27 rounds of a 3-million-weight model). A daemon: what hangs must not keep the process
    from its end.
    """

    current: ClassVar["_Worker | None"] = None

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            call, done = self.calls.get()
            call()
            done.set()
            if _Worker.current is not self:  # it took too long, and another has its place
                return

    @classmethod
    def run(cls, call: Callable[[], None], timeout: float) -> None:
        """Run `call` in the thread, and return when it has ended or `timeout` seconds have."""
        if cls.current is None or not cls.current.thread.is_alive():  # not alive: this process is a fork
            cls.current = cls()
        done = threading.Event()
        cls.current.calls.put((call, done))
        if not done.wait(min(timeout, threading.TIMEOUT_MAX)):
            cls.current = None


def _ask(
    reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any], timeout: float
) -> Any:
    # A thread starts on GPU 0 and with gradients, whatever its maker has.
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    answers: list[Any] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            with torch.no_grad():
                answer = reward.function(**{**columns, "prompts": prompts, "completions": completions})
                answers.append(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)
        except BaseException as error:  # a SystemExit too: nobody else would hear of it
            errors.append(error)

    _Worker.run(call, timeout)
    if errors:
        raise RewardError(f"reward `{reward.name}`: {_raised(reward.function, errors[0], columns)}") from errors[0]
    if not answers:
        raise RewardError(
            f"reward `{reward.name}`: no answer within {timeout:g} seconds for {len(completions)} completions; "
            "make it faster, or raise --reward_timeout"
        )
    return answers[0]


def _raised(function: Callable[..., Any], error: BaseException, columns: dict[str, Any]) -> str:
    """What went wrong in it, where, and what to do."""
    if isinstance(error, UserError):
        return str(error)
    what = f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
    code = _code(_unwrapped(function))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    if not frames:  # it never began
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        given = ", ".join(["prompts", "completions", *columns])
        return f"{what}{place}; it is called with the keywords {given}: take those it has no use for as **columns"
    # The line of the user's own file that led there, not one deep inside a library.
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    last = (own or frames)[-1]
    mend = "score fewer at a time" if isinstance(error, torch.OutOfMemoryError) else "mend it there"
    return f"{what} ({last.filename}:{last.lineno}); {mend}"


def _unwrapped(function: Any) -> Any:
    """The function below partials, text_reward and decorators that say what they wrap."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function


def _code(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)


def _checked(reward: Reward, answer: Any, count: int) -> list[float]:
    """The answer as `count` finite numbers."""
    where = f"reward `{reward.name}`"
    shape = getattr(answer, "shape", None)
    if shape is not None and len(shape) != 1:
        raise RewardError(f"{where}: returned an array of shape {tuple(shape)}; return one of shape ({count},)")
    values = answer.tolist() if shape is not None else answer
    if not isinstance(values, list | tuple):
        raise RewardError(f"{where}: returned {_told(values)}; return a list of {count} numbers, one a completion")
    if len(values) != count:
        raise RewardError(f"{where}: returned {len(values)} scores for {count} completions; return one for each")
    if nothing := [index for index, value in enumerate(values) if value is None]:
        raise RewardError(
            f"{where}: returned None for {_which(nothing, count)}; PPO needs a number for each completion, "
            "return 0.0 where it has nothing to say"
        )
    numbers = [_number(value) for value in values]
    if strange := [index for index, number in enumerate(numbers) if number is None]:
        raise RewardError(
            f"{where}: returned {_told(values[strange[0]])} for {_which(strange, count)}; return numbers alone"
        )
    scores = [number for number in numbers if number is not None]
    if wild := [index for index, number in enumerate(scores) if not math.isfinite(number)]:
        raise RewardError(
            f"{where}: returned {scores[wild[0]]} for {_which(wild, count)}; return finite numbers, "
            "bound it where it divides or takes a logarithm"
        )
    return scores


def _number(value: Any) -> float | None:
    if not isinstance(value, Real) and hasattr(value, "item"):  # numpy's and torch's scalars
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # of several numbers
            return None
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:
        return math.inf


def _told(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({reprlib.repr(value)})"


def _which(indices: list[int], count: int) -> str:
    return f"{len(indices)} of {count} completions (the first at index {indices[0]})"


def combine(scores: Sequence[Sequence[float]], weights: Sequence[float] | None, how: str, k: float) -> list[float]:
    """Several reward functions' scores as one score a completion.

    With s_i = w_i r_i over the n functions: `sum`, `mean`, `minimum` (Coste et al. 2023, "Reward model
    ensembles help mitigate overoptimization", worst-case optimization), and `lower_bound` =
    mean(s) - k std(s), the std of the n themselves (their uncertainty-weighted optimization, which
    subtracts the variance; the std is in the unit of the scores, so k means the same at any scale).

    Args:
        scores: `(functions, completions)`.
        weights: one a function; None is 1 each.
        how: sum, mean, minimum or lower_bound.
        k: standard deviations that lower_bound subtracts.

    Raises:
        UserError: not one weight a function.
    """
    if weights is not None and len(weights) != len(scores):
        raise UserError(f"reward_weights: {len(weights)} weights for {len(scores)} reward functions; give one for each")
    weighted = np.asarray(scores, float)
    if weights is not None:
        weighted = weighted * np.asarray(weights, float)[:, None]
    if how == "sum":
        return weighted.sum(0).tolist()
    if how == "mean":
        return weighted.mean(0).tolist()
    if how == "minimum":
        return weighted.min(0).tolist()
    if how == "lower_bound":
        return (weighted.mean(0) - k * weighted.std(0)).tolist()
    raise ValueError(f"reward_ensemble: `{how}` is not sum, mean, minimum or lower_bound")
