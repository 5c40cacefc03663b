"""Reward functions from what a user may give for them: a callable, an address, a checkpoint, a loaded classifier.

A reward function follows TRL's GRPOTrainer: `f(prompts=..., completions=..., **columns) -> list[float]`,
plain or async. Of a conversation, a prompt is a list of messages and a completion `[{"role":
"assistant", "content": text}]`; of plain text, both are strings. A column is a list, one value a completion.
"""

import copy
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from rlhf.errors import UserError
from rlhf.implicit import ImplicitReward, is_implicit, load_implicit_reward
from rlhf.models import check_model_folder, context_length, give_own_pad, load_tokenizer
from rlhf.ppo.backbone import on_backbone
from rlhf.ppo.endpoint import HTTPReward
from rlhf.records import RewardFunction
from rlhf.scoring import RewardModel, load_score_model

_URL = ("http://", "https://")
_TEMPLATE = "give it one: set `tokenizer.chat_template` and save the tokenizer beside the model"


@dataclass(frozen=True)
class Reward:
    """A reward function and what to call it; no two of a run share a name.

    `is_model`: it is this project's own around a model in this process, and nobody else's code.
    """

    name: str
    function: Callable[..., Any]
    is_model: bool = False


def load_rewards(
    reward_funcs: Any,
    max_length: int | None = None,
    batch_size: int = 32,
    trust_remote_code: bool = False,
    policy: Any = None,
    bf16: bool = False,
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
        policy: a LoRA policy; a reward model that is a LoRA on the same base is scored on its weights.
        bf16: the layers of classifiers compute in bf16, all but the last.

    Raises:
        UserError: something else was given, or a checkpoint is no reward model.
    """
    items = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    if not items:
        raise UserError("reward_funcs: is empty; give at least one callable, URL or reward model")
    rewards: dict[str, Reward] = {}
    for item in items:
        function = _function(item, max_length, batch_size, trust_remote_code, policy)
        if isinstance(model := unwrapped(function), RewardModel):
            model.bf16 = bf16
        is_model = function is not item and isinstance(model, RewardModel | ImplicitReward)
        name = base = _name(item)
        number = 1
        while name in rewards:
            number += 1
            name = f"{base}-{number}"
        rewards[name] = Reward(name, function, is_model)
    return list(rewards.values())


def _function(
    item: Any, max_length: int | None, batch_size: int, trust_remote_code: bool, policy: Any
) -> Callable[..., Any]:
    if isinstance(item, str) and item.startswith(_URL):
        return HTTPReward(item, batch_size)
    if isinstance(item, str | Path):
        return text_reward(_checkpoint(str(item), max_length, batch_size, trust_remote_code, policy))
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
    item = unwrapped(item)
    return getattr(item, "__name__", type(item).__name__).strip("<>")  # <lambda>


def _checkpoint(
    path: str, max_length: int | None, batch_size: int, trust_remote_code: bool, policy: Any
) -> RewardModel | ImplicitReward:
    check_model_folder(path)
    if is_implicit(path):
        return load_implicit_reward(path, max_length, batch_size, trust_remote_code)
    if not load_tokenizer(path, trust_remote_code=trust_remote_code).chat_template:
        raise UserError(f"{path}: the reward model's tokenizer has no chat template; {_TEMPLATE}")
    headless = UserError(f"{path}: is a language model without a score; give the folder of a `rlhf reward` run")
    adapter = Path(path) / "adapter_config.json"
    is_adapter = adapter.is_file()
    if is_adapter and json.loads(adapter.read_text(encoding="utf-8")).get("task_type") != "SEQ_CLS":
        raise headless
    if is_adapter and (shared := on_backbone(policy, path, max_length, batch_size)) is not None:
        return shared
    reward = load_score_model(path, max_length, batch_size, trust_remote_code)
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

    functools.update_wrapper(reward, function, assigned=(), updated=())  # `unwrapped` finds it, by `__wrapped__`
    return reward


def unwrapped(function: Any) -> Any:
    """The function below partials, text_reward and decorators that say what they wrap."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function
