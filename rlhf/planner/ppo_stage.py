"""What PPO holds beside the policy, its update, its rollout and its scoring, as dry runs of its own code."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlhf.decoding import draw, rollout_cache
from rlhf.implicit import is_implicit
from rlhf.layers import logits_of, trunk
from rlhf.packing import can_pack_rows, first_pass
from rlhf.planner.dry_run import Peak, dry_forward, placed, shapes_only, without_data
from rlhf.planner.options import Setting
from rlhf.planner.shapes import causal_model, classifier_model, count, read_config, with_layers
from rlhf.ppo.networks import VALUE_ADAPTER, PolicyAndValue, disable_dropout, kept_hidden

if TYPE_CHECKING:
    from rlhf.planner.stages import Held, Phase, Stage

_ON_CPU = 32  # sequences scored at a time there (rlhf.models.scoring_batch)


def others(stage: "Stage", each: float) -> "list[Held]":
    """Value model, reference, reward models and the average of the policy; to be called within `shapes_only`."""
    from rlhf.planner.stages import Held

    args, held = stage.training, []
    policy = stage.policy(stage.config, stage.loaded_dtype)
    networks = _networks(stage, policy)
    values = [parameter for parameter in networks.value_parameters() if parameter.requires_grad]
    num = sum(parameter.numel() for parameter in values)
    size = each if args.value_model_kind == "separate" and not _value_path(stage) else 4.0
    held.append(Held("value model", replace(count(policy), total=num, trained=num, quantized=0), size))
    kind = reference_kind(stage)
    if kind != "adapter_off":
        given = stage.data.ref_model
        model = causal_model(read_config(given) if given else stage.config, torch.float32, stage.attention)
        how = "host" if kind == "offload" else "shardable"
        held.append(Held("reference", count(model).frozen(), 4.0 if given else each, how))
    for path in reward_paths(stage):
        if is_implicit(path):
            both = count(causal_model(read_config(path), torch.float32, None)).frozen()
            held += [Held(name, both, 4.0, "frozen") for name in ("reward model", "reward model's start")]
        elif not _on_backbone(stage, path):
            model = classifier_model(read_config(path), torch.float32, None)
            held.append(Held("reward model", count(model).frozen(), 4.0, "frozen"))
    if args.ema_decay is not None:
        trained = count(policy).trained
        held.append(Held("average of the policy", replace(count(policy), total=trained, trained=0), 4.0, "frozen"))
    return held


def reference_kind(stage: "Stage") -> str:
    """As rlhf.ppo.build decides it."""
    return stage.training.reference or ("adapter_off" if stage.lora and not stage.data.ref_model else "copy")


def needs_ref_model(stage: "Stage", setting: Setting) -> bool:
    """Whether the stage refuses this setting without a `ref_model`: of a sharded policy no copy can be made."""
    return setting.zero == 3 and not stage.data.ref_model and reference_kind(stage) != "adapter_off"


def reward_paths(stage: "Stage") -> list[str]:
    """The rewards that are models in this process."""
    return [
        name for name in stage.data.reward if not name.startswith("http") and (Path(name).exists() or ":" not in name)
    ]


def update(stage: "Stage", config: Any, setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Policy and value model, and the loss of one micro-batch; to be called within `shapes_only`."""
    dtype = stage.trained_dtype(setting)
    networks = _networks(stage, stage.policy(config, dtype), config, dtype).to(dtype)
    disable_dropout(networks)
    networks.train(setting.checkpointing)
    if setting.checkpointing:
        networks.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
        )
    rows = stage.rows(setting)

    def loss() -> Tensor:
        with stage.precision(setting):
            logps, values, _ = networks(*_episodes(stage, rows), stage.training.temperature)
            return logps.sum() + values.sum()

    return networks, loss


def phases(stage: "Stage", setting: Setting) -> "list[Phase]":
    """The rollout, and the passes in which policy, value model and reward models weigh its replies."""
    from rlhf.planner.stages import Phase

    # The trainer gathers ZeRO-3's policy and value model once, for the rollout and these passes (experience.py).
    found = [Phase("scoring", stage.over_layers(lambda config: _weigh(stage, config, setting)), whole=True)]
    for path in reward_paths(stage):
        found.append(Phase("reward model", _score(stage, path)))
    if stage.training.engine == "hf":
        rollout, cache = stage.over_layers(lambda config: _roll_out(stage, config, setting))
        found.insert(0, Phase("rollout", rollout, cache, whole=True))
    return found


def _networks(stage: "Stage", policy: Any, config: Any = None, dtype: Any = None) -> PolicyAndValue:
    kind = stage.training.value_model_kind
    if kind == "adapter" and stage.lora:
        policy.add_adapter(VALUE_ADAPTER, next(iter(policy.peft_config.values())))
        policy.set_adapter("default")
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
    value_model = None
    if kind == "separate":
        path = _value_path(stage)
        theirs = read_config(path) if path else stage.config
        if config is not None:  # fewer layers of the policy's are as many fewer of these
            layers, share = theirs.get_text_config().num_hidden_layers, config.get_text_config().num_hidden_layers
            theirs = with_layers(theirs, max(1, round(layers * share / stage.text.num_hidden_layers)))
        value_model = classifier_model(theirs, dtype or stage.loaded_dtype, stage.attention)
    return PolicyAndValue(policy, kind, value_model)


def _value_path(stage: "Stage") -> str | None:
    """Where a separate value model starts, None for the policy; as rlhf.ppo.build decides it, but for tokenizers."""
    if stage.data.value_model:
        return stage.data.value_model
    for path in reward_paths(stage):
        if is_implicit(path):
            return None  # it has no head
        theirs = read_config(path).get_text_config()
        return path if theirs.vocab_size >= stage.text.vocab_size else None
    return None


def _on_backbone(stage: "Stage", path: str) -> bool:
    """Whether a reward model is an adapter on the base that the policy's LoRA is on."""
    adapter = Path(path) / "adapter_config.json"
    if stage.model_config is None or not stage.lora or not adapter.is_file():
        return False
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return str(base) == str(stage.model_config.model_name_or_path)


def _episodes(stage: "Stage", rows: int) -> tuple[Tensor, Any]:
    """Ids of the longest episodes, and the places of the reply's tokens: a mask's places need data."""
    length = stage.length
    reply = min(stage.training.max_new_tokens, length - 1)
    at = torch.arange(length - 1 - reply, length - 1)
    keep = torch.arange(rows).repeat_interleave(reply, output_size=rows * reply), at.repeat(rows)
    return torch.zeros(rows, length, dtype=torch.long), keep


def _weigh(stage: "Stage", config: Any, setting: Setting) -> Peak:
    """What weighs the replies (`rlhf.ppo.experience`): of `old_logps` rollout what the rollout has not noted."""
    from rlhf.planner.stages import as_on_device

    args, dtype = stage.training, stage.trained_dtype(setting)
    rows = min(args.per_device_train_batch_size, max(1, setting.micro_batch // stage.length))
    with shapes_only():
        networks = _networks(stage, stage.policy(config, dtype), config, dtype).to(dtype).eval()

    def weigh() -> Tensor:
        ids, keep = _episodes(stage, rows)
        if args.old_logps == "forward":
            return networks(ids, keep, args.temperature, entropy=True)[0]
        if networks.kind != "shared":
            networks(ids, keep, args.temperature, part="value")
        return networks(ids, keep, args.temperature, part="policy")[0]  # the reference, a model like it

    with as_on_device(stage.on_gpu, stage.text.vocab_size), without_data(), stage.precision(setting):
        placed(networks)
        return dry_forward(weigh, networks, stage.widths())


def _score(stage: "Stage", path: str) -> Peak:
    args = stage.training
    config, implicit = read_config(path), is_implicit(path)

    def run(config: Any) -> Peak:
        with shapes_only():
            model = (causal_model if implicit else classifier_model)(config, torch.float32, None).eval()
        packs = not stage.on_gpu and can_pack_rows(model)
        rows = min(args.per_device_eval_batch_size, args.per_device_train_batch_size)
        rows = rows if stage.on_gpu else min(rows, _ON_CPU)
        rows = min(rows, first_pass([stage.length] * rows)) if packs else rows
        with without_data():
            placed(model)
            ids, kept = _episodes(stage, rows)
            mask = torch.ones(rows, 1, stage.length, stage.length, dtype=torch.bool)

            def score() -> Tensor:
                if packs:
                    hidden = kept_hidden(model, ids, kept)
                    return logits_of(model)(hidden).float().log_softmax(-1) if implicit else hidden
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                return logits[:, :-1][kept].float().log_softmax(-1) if implicit else logits

            return dry_forward(score, model, stage.widths() if implicit else set())

    return stage.over_layers(run, config)


def _roll_out(stage: "Stage", config: Any, setting: Setting) -> Any:
    """The prompts through the policy, the first tokens drawn, and the cache of keys and values in its final length."""
    args, dtype = stage.training, stage.trained_dtype(setting)
    rows = min(args.generation_batch_size, args.per_device_train_batch_size)
    width = max(1, stage.length - args.max_new_tokens)
    with shapes_only():
        policy = stage.policy(config, dtype).eval()
    with without_data(), stage.precision(setting):
        placed(policy)
        body, logits = trunk(policy), logits_of(policy)
        cache = rollout_cache(policy.config.get_text_config(), stage.length)
        ids = torch.zeros(rows, width, dtype=torch.long)
        takes_positions = "position_ids" in inspect.signature(body.forward).parameters
        places = {"position_ids": torch.zeros(rows, width, dtype=torch.long)} if takes_positions else {}
        mask = torch.ones(rows, 1, width, width, dtype=torch.bool)

        def step() -> Tensor:
            out = body(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places)
            return draw(logits(out.last_hidden_state[:, -1]).float(), torch.zeros(rows), args.temperature)

        peak = dry_forward(step, policy, stage.widths())
        size = sum(_bytes(layer) for layer in cache.layers)
    return Rollout(replace(peak, activations=max(0, peak.activations - size)), size)


class Rollout(tuple):
    """`(peak, cache)` that grows with layers as Peak does."""

    def __new__(cls, peak: Peak, cache: int) -> "Rollout":
        """Both."""
        return super().__new__(cls, (peak, cache))

    def grown(self, other: "Rollout", times: float) -> "Rollout":
        """As Peak's."""
        return Rollout(self[0].grown(other[0], times), round(self[1] + times * max(0, self[1] - other[1])))


def _bytes(layer: Any) -> int:
    """Of a cache's layer: the buffer where it has one, else what it keeps."""
    names = ("all_keys", "all_values") if hasattr(layer, "all_keys") else ("keys", "values")
    found = [getattr(layer, name, None) for name in names]
    return sum(tensor.untyped_storage().nbytes() for tensor in found if tensor is not None)
