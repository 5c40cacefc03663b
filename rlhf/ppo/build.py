"""From what the user gives, held against what it needs, to the modules: policy, value model, reference."""

from typing import Any

from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rlhf.errors import UserError
from rlhf.implicit import is_implicit
from rlhf.models import context_length, load_causal, load_classifier, load_tokenizer
from rlhf.packing import pack_rows
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.networks import VALUE_ADAPTER, PolicyAndValue, Reference, causal, disable_dropout, score_head, whole
from rlhf.ppo.vllm_engine import require_vllm


def check_arguments(args: PPOConfig, train_dataset: Any, eval_dataset: Any, gold_func: Any, sft_dataset: Any) -> None:
    """Raise UserError for settings that miss what they need."""
    if args.engine != "hf":
        require_vllm(args.engine)
    needed = args.per_device_train_batch_size * args.world_size
    if len(train_dataset) < needed:
        raise UserError(
            f"train_dataset: has {len(train_dataset)} prompts and a round takes {needed}; give more, or lower "
            "--per_device_train_batch_size"
        )
    columns = set(train_dataset[0])
    if not columns & {"prompt", "prompt_ids"}:
        raise UserError(f"train_dataset: has no column `prompt`; there are: {', '.join(sorted(columns))}")
    if args.ptx_coef and sft_dataset is None:
        raise UserError("ptx_coef: needs demonstrations to mix in; give sft_dataset (--demonstrations FILE)")
    if args.guard_steps and gold_func is None:
        raise UserError("guard_steps: needs a gold to ask; give gold_func (--gold), or set --guard_steps 0")
    if args.guard_steps and eval_dataset is None:
        raise UserError("guard_steps: needs held-out prompts; give eval_dataset (--eval_prompts FILE)")


def build_models(
    policy: Any,
    tokenizer: Any,
    args: PPOConfig,
    reward_funcs: list[Any],
    ref_model: Any = None,
    value_model: Any = None,
    peft_config: Any = None,
) -> tuple[PolicyAndValue, Reference]:
    """The trained pair and the reference, dropout off everywhere.

    Raises UserError where the settings ask for what these models cannot do.
    """
    kind = args.value_model_kind
    if peft_config is not None:
        from peft import get_peft_model

        policy = get_peft_model(policy, peft_config)
    lora = hasattr(policy, "peft_config")
    if kind == "adapter":
        if not lora:
            raise UserError("value_model_kind: adapter needs LoRA (--use_peft true); set separate or shared")
        first = next(iter(policy.peft_config.values()))
        policy.add_adapter(VALUE_ADAPTER, first)
        policy.set_adapter("default")
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
    if kind == "separate":
        value_model = _value_model(policy, tokenizer, reward_funcs, value_model)
    elif value_model is not None:
        raise UserError(f"value_model: {kind} has none of its own; leave it out, or set --value_model_kind separate")

    reference_kind = args.reference or ("adapter_off" if lora and ref_model is None else "copy")
    _check_sharding(args, reference_kind, ref_model)
    if args.ref_ema_decay is not None and reference_kind == "adapter_off":
        raise UserError("ref_ema_decay: needs a reference with weights of its own; set --reference copy")
    if args.ref_ema_decay is not None and lora:
        raise UserError("ref_ema_decay: a LoRA policy has not the reference's weights; train all, or leave it out")
    if isinstance(ref_model, str):
        ref_model = load_causal(ref_model)
    if reference_kind != "adapter_off" and lora and ref_model is None:
        raise UserError(f"reference: {reference_kind} of a LoRA policy needs ref_model; set --reference adapter_off")
    for model in (policy, value_model, ref_model):
        if model is not None:
            disable_dropout(model)
            if args.device.type == "cpu":
                pack_rows(model)
    # Made before the policy is trained or wrapped, so that a copy is the policy as it starts.
    reference = Reference(reference_kind, policy, ref_model)
    return PolicyAndValue(policy, kind, value_model), reference


def _value_model(policy: Any, tokenizer: Any, reward_funcs: list[Any], given: Any) -> Any:
    """The classifier given, else the first reward model named by a path, else one on the policy's own trunk."""
    path = given if isinstance(given, str) else None
    if given is None:
        path = next((f for f in reward_funcs if isinstance(f, str) and not f.startswith("http")), None)
        if path is not None and is_implicit(path):
            path = None  # it has no head
    if path is not None:
        theirs = load_tokenizer(path)
        if theirs.get_vocab() | tokenizer.get_vocab() != theirs.get_vocab():
            if given is not None:
                raise UserError(f"{path}: the value model has another tokenizer than the policy; choose another")
            path = None  # a reward model may read text its own way, a value model reads the policy's tokens
    if path is not None:
        given = load_classifier(path, theirs)
    if given is None:
        given = _on_trunk(policy, tokenizer)
    score_head(given)  # raises where there is none
    rows, needed = (_num_embeddings(model) for model in (given, policy))
    if not is_deepspeed_zero3_enabled() and rows < min(needed, len(tokenizer)):
        raise UserError(f"value model: has {rows} embeddings, the policy's tokens need {needed}; choose another")
    if context_length(given) < context_length(policy):
        raise UserError(
            f"value model: its context is {context_length(given)}, the policy's is {context_length(policy)}; "
            "choose another"
        )
    return given


def _num_embeddings(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _on_trunk(policy: Any, tokenizer: Any) -> Any:
    """A classifier with the policy's weights under a head of zeros."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    source = causal(policy)
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    with whole(source), whole(model, written=True), torch.no_grad():
        weights = {name.replace(".base_layer", ""): w for name, w in source.base_model.named_parameters()}
        for name, parameter in model.base_model.named_parameters():
            parameter.copy_(weights[name])
        score_head(model).weight.zero_()
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.to(source.dtype)


def _check_sharding(args: PPOConfig, reference_kind: str, ref_model: Any) -> None:
    """What ZeRO's sharded weights rule out."""
    if is_deepspeed_zero3_enabled() and reference_kind != "adapter_off" and ref_model is None:
        raise UserError("reference: with ZeRO-3 a copy cannot be made of the sharded policy; give ref_model")
    if args.deepspeed and args.ema_decay is not None:
        raise UserError("ema_decay: is not there with DeepSpeed, which holds the weights; leave it out")
    if is_deepspeed_zero3_enabled() and args.ref_ema_decay is not None:
        raise UserError("ref_ema_decay: is not there with ZeRO-3, which shards the weights; use ZeRO-2")
    if is_deepspeed_zero3_enabled() and args.torch_compile:
        raise UserError("torch_compile: is not there with ZeRO-3, which fetches weights within a layer; use ZeRO-2")
