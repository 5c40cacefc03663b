"""What each training verb holds in memory, and its step as a dry run: the verb's own networks and loss."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl import get_peft_config
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from rlhf.errors import UserError
from rlhf.planner.dry_run import Passes, Peak, dry_passes, placed, shapes_only, without_data
from rlhf.planner.options import PlanOptions, Setting
from rlhf.planner.shapes import (
    Count,
    causal_model,
    classifier_model,
    count,
    pretrain_config,
    read_config,
    with_layers,
)
from rlhf.ppo import networks
from rlhf.ppo.networks import disable_dropout

VERBS = ("pretrain", "sft", "reward", "dpo", "ppo")
# Deeper models run with so few layers, and with twice as many: each layer more adds the same.
_DEEP, _FEW_LAYERS = 8, 2
_TILE = 32_768  # TRL's, of the vocabulary


@dataclass(frozen=True)
class Held:
    """A model in memory.

    Args:
        name: policy, reference, value model, reward model.
        count: its weights.
        bytes_each: of a weight as the stage loads it.
        how: `trained`; `frozen` (on every rank); `shardable` (frozen, and cut up by ZeRO-3); `host` (in host
            memory, on the device while it is used).
    """

    name: str
    count: Count
    bytes_each: float
    how: str = "trained"


@dataclass(frozen=True)
class Phase:
    """Something a stage does beside its updates, and what is alive then beside weights and optimizer.

    Args:
        name: rollout, scoring, KL.
        peak: activations and logits.
        cache: keys and values, in bytes.
        whole: whether ZeRO-3 holds the policy whole meanwhile.
    """

    name: str
    peak: Peak
    cache: int = 0
    whole: bool = False


class Stage:
    """One verb with one config: its models, its updates and its other phases, in bytes.

    Args:
        verb: one of VERBS.
        config: the verb's own, as `rlhf.config.parse` gives it.
        options: the plan's.
    """

    def __init__(self, verb: str, config: tuple[Any, ...], options: PlanOptions) -> None:
        self.verb = verb
        self.data, self.training = config[0], config[-1]
        self.model_config = config[1] if len(config) == 3 else None
        self.on_gpu = options.gpus > 0
        self.path = "" if self.model_config is None else str(self.model_config.model_name_or_path or "")
        if self.model_config is None:
            self.config = pretrain_config(self.data)
        else:
            if not self.model_config.model_name_or_path:
                raise UserError("model_name_or_path: is not set; name a model folder, a run folder or a Hub id")
            self.config = read_config(self.model_config.model_name_or_path, bool(self.training.trust_remote_code))
        self.text = self.config.get_text_config()
        self.attention = getattr(self.model_config, "attn_implementation", None)
        self.length = self._length(options.length)
        self._passes: dict[Any, Passes] = {}
        self._phases: dict[Any, list[Phase]] = {}
        self.held = self.models()

    # ---- Settings

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained instead of all weights."""
        return bool(self.model_config is not None and self.model_config.use_peft)

    @property
    def has_head(self) -> bool:
        """Whether it trains a sequence classifier."""
        return self.verb == "reward" and self.data.reward_kind == "score"

    @property
    def has_reference(self) -> bool:
        """Whether pairs go through the start beside what is trained, as in DPO."""
        return self.verb == "dpo" or (self.verb == "reward" and not self.has_head)

    @property
    def quantized(self) -> float | None:
        """Bytes of a quantized weight, None where there are none."""
        if self.model_config is None:
            return None
        return 0.5 if self.model_config.load_in_4bit else 1.0 if self.model_config.load_in_8bit else None

    @property
    def mixed(self) -> bool:
        """Whether it computes in 16 bits."""
        return bool(self.training.bf16 or self.training.fp16)

    @property
    def loaded_dtype(self) -> Any:
        """The type in which weights are loaded."""
        name = getattr(self.model_config, "dtype", None) or "float32"
        return getattr(self.config, "dtype", None) or torch.float32 if name == "auto" else getattr(torch, name)

    def trained_dtype(self, setting: Setting) -> Any:
        """The type of the trained models' weights: DeepSpeed makes them 16 bits where it computes so."""
        return torch.bfloat16 if setting.deepspeed and self.mixed else self.loaded_dtype

    def start(self) -> Setting:
        """The setting that the config asks for, without sharding."""
        training = self.training
        if self.verb == "ppo":
            return Setting(checkpointing=bool(training.gradient_checkpointing), micro_batch=training.micro_batch_tokens)
        return Setting(
            checkpointing=bool(training.gradient_checkpointing),
            micro_batch=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
        )

    def rows(self, setting: Setting) -> int:
        """Sequences that go through the policy at a time; a preference is two."""
        if self.verb == "ppo":
            rows = max(1, setting.micro_batch // self.length)
            steps = self.training.num_mini_batches
            return min(rows, max(1, self.training.per_device_train_batch_size // steps))
        return setting.micro_batch * (2 if self.verb in ("reward", "dpo") else 1)

    def accumulates(self, setting: Setting) -> bool:
        """Whether gradients are there before the last backward pass of a step begins."""
        if self.verb == "ppo":
            episodes = max(1, self.training.per_device_train_batch_size // self.training.num_mini_batches)
            return episodes > self.rows(setting)
        return setting.accumulation > 1

    def _length(self, given: int | None) -> int:
        context = int(getattr(self.text, "max_position_embeddings", None) or getattr(self.text, "n_positions", 0) or 0)
        if self.verb == "ppo":
            room = self.training.max_prompt_length
            longest = room + self.training.max_new_tokens if room else context
        else:
            longest = self.training.max_length or context
        length = given or longest
        if not length:
            raise UserError("length: neither the config nor the model says how long sequences are; set --length")
        return min(length, context) if context else length

    # ---- Models

    def models(self) -> list[Held]:
        """Every model that is in memory."""
        each = torch.empty((), dtype=self.loaded_dtype).element_size()
        with shapes_only():
            model = self.policy(self.config, self.loaded_dtype)
            held = [
                Held("reward model" if self.verb == "reward" else "policy", count(model, bool(self.quantized)), each)
            ]
            if self.has_reference and not self.lora:
                held.append(Held("reference", count(model).frozen(), each, "shardable"))
            if self.verb == "ppo":
                from rlhf.planner.ppo_stage import others

                held += others(self, each)
        return held

    def policy(self, config: Any, dtype: Any) -> Any:
        make = classifier_model if self.has_head else causal_model
        model = make(config, dtype, self.attention)
        if self.lora:
            model = with_lora(model, self.model_config)
        return model

    # ---- Passes

    def update(self, setting: Setting) -> Passes:
        """The worst moments of a forward and backward pass of one micro-batch."""
        key = (self.rows(setting), setting.checkpointing, self.trained_dtype(setting))
        if key not in self._passes:
            self._passes[key] = self.over_layers(lambda config: self._run(config, setting))
        return self._passes[key]

    def phases(self, setting: Setting) -> list[Phase]:
        """What it does beside updates."""
        key = (setting.micro_batch, self.trained_dtype(setting))
        if key not in self._phases:
            self._phases[key] = self._beside(setting)
        return self._phases[key]

    def _beside(self, setting: Setting) -> list[Phase]:
        if self.verb == "ppo":
            from rlhf.planner.ppo_stage import phases

            return phases(self, setting)
        if self.verb == "dpo" and self.data.num_kl_prompts:
            from rlhf.planner.dpo_stage import kl

            return [Phase("KL", kl(self, setting), whole=True)]
        return []

    def widths(self) -> set[int]:
        """Last dimensions of logits."""
        return {self.text.vocab_size, min(_TILE, self.text.vocab_size) if not self.on_gpu else _TILE}

    def precision(self, setting: Setting) -> Any:
        """Autocast where 16 bits are computed in and weights are not in them."""
        if self.mixed and self.trained_dtype(setting) == torch.float32:
            return torch.autocast("cpu", dtype=torch.float16 if self.training.fp16 else torch.bfloat16)
        return contextlib.nullcontext()

    def over_layers(self, run: Callable[[Any], Any], config: Any = None) -> Any:
        """`run` on the config; for deep models on two shallow ones, and on along the line."""
        config = config or self.config
        layers = config.get_text_config().num_hidden_layers
        if layers <= _DEEP:
            return run(config)
        few, more = (run(with_layers(config, number)) for number in (_FEW_LAYERS, 2 * _FEW_LAYERS))
        return more.grown(few, (layers - 2 * _FEW_LAYERS) / _FEW_LAYERS)

    def build(self, config: Any, setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
        """The models of an update, and its loss."""
        if self.verb != "ppo":
            return self._trl(config, setting)
        from rlhf.planner.ppo_stage import update

        return update(self, config, setting)

    def _run(self, config: Any, setting: Setting) -> Passes:
        with as_on_device(self.on_gpu, self.text.vocab_size), shapes_only():
            module, loss = self.build(config, setting)
        with as_on_device(self.on_gpu, self.text.vocab_size), without_data():
            return dry_passes(loss, placed(module), self.widths())

    def _trl(self, config: Any, setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
        dtype, rows = self.trained_dtype(setting), self.rows(setting)
        make = classifier_model if self.has_head else causal_model
        model = make(config, dtype, self.attention)
        both = nn.ModuleDict()
        if not self.has_head:
            trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if self.has_reference and not self.lora:
            reference = causal_model(config, dtype, self.attention).requires_grad_(False)
            trl_utils.add_fused_lm_head(reference)
            both["reference"] = reference
        if self.lora:
            model = with_lora(model, self.model_config).to(dtype)
        model.train()
        if getattr(self.training, "disable_dropout", False):  # TRL's default but in sft; a LoRA's too keeps copies
            disable_dropout(model)
        if setting.checkpointing:
            checkpoint(model)
        both["policy"] = model

        def loss() -> Tensor:
            inputs: dict[str, Any] = {"input_ids": torch.zeros(rows, self.length, dtype=torch.long), "use_cache": False}
            if not (self.attention and "flash" in self.attention):
                inputs["attention_mask"] = torch.ones(rows, 1, self.length, self.length, dtype=torch.bool)
            with self.precision(setting):
                if self.has_head:
                    return model(**inputs).logits.float().sum()
                inputs |= {"labels": inputs["input_ids"], "fused_lm_head": True}
                out = model(**inputs)
                if self.has_reference:
                    with torch.no_grad(), model.disable_adapter() if self.lora else contextlib.nullcontext():
                        (model if self.lora else both["reference"])(**inputs)
                return out.log_probs.sum()

        return both, loss


def with_lora(model: Any, model_config: Any) -> Any:
    """The model under the adapter that the config asks for."""
    from peft import get_peft_model

    lora = get_peft_config(model_config)
    assert lora is not None
    if getattr(model.config, "num_labels", 0) == 1:
        lora.task_type = "SEQ_CLS"
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(f"lora_target_modules: {error}") from error


def checkpoint(model: Any) -> None:
    """Switch on what `--gradient_checkpointing` does."""
    # A run keeps the state of the random numbers for each layer, which tensors without data have none of.
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


@contextlib.contextmanager
def as_on_device(gpu: bool, vocabulary: int) -> Iterator[None]:
    """Sizes and kernels of a GPU, or of a processor.

    Tensors without data say that they are on a processor. There TRL's head makes copies of its tile that its kernel
    for GPUs does not; and a tile wider than the vocabulary is memory on a GPU, but untouched pages on a processor.
    """

    def nothing(*_: Any, **__: Any) -> None:
        pass

    changes: list[tuple[Any, str, Any]] = [(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", min(_TILE, vocabulary))]
    if gpu:
        changes = [
            (chunked_logprob, "_forward_tile", nothing),
            (chunked_logprob, "_backward_tile", nothing),
            (chunked_logprob, "_addmm_fp32", nothing),
            (networks, "MAX_LOGITS", networks.MAX_LOGITS_GPU),
        ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
