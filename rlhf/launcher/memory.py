"""What to try next where memory ran out: what costs least first."""

from typing import TYPE_CHECKING, Any

from rlhf.launcher.settings import ALONE, is_on, whole

if TYPE_CHECKING:
    from rlhf.launcher.cause import Cause

# As a rank of a launch says it, as PyTorch on a GPU and on a CPU, and as cuBLAS and NCCL, which have none left.
_SIGNS = (
    "rlhf: out of memory:", "OutOfMemoryError", "CUDA out of memory", "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "std::bad_alloc",
)  # fmt: skip
_CHECKPOINTS_BY_DEFAULT = ("pretrain", "sft", "reward", "dpo")  # TRL's configs; PPO's does not
_WHATEVER_THE_BATCH = ("loading", "optimizer step", "saving")  # phases that hold no activations
_PPO_TOKENS = 16_384  # micro_batch_tokens where it is not set
_PPO_TOKENS_ON_CPU = {True: 640, False: 1024}  # by whether the value model is separate
_PPO_BATCH = 64
_BATCH = 8


def is_out_of_memory(lines: list[str]) -> bool:
    """Whether a log's last lines say that memory ran out."""
    return any(sign in line for line in lines for sign in _SIGNS)


def smaller(
    verb: str, settings: dict[str, Any], cause: "Cause | None" = None, on_cpu: bool = False
) -> dict[str, int] | None:
    """The settings under which less goes through a model at a time, and the result stays; None where none is left.

    The micro-batch becomes its largest proper divisor (half of it where it is even), and accumulation grows by as
    much, so that the global batch is exactly the same. In an evaluation, a rollout and a reward model's scoring it is
    the batch of those. PPO cuts its micro-batches by tokens. Where the batch is not to blame, nothing of it helps.
    """
    if verb in ALONE or (cause is not None and cause.phase in _WHATEVER_THE_BATCH):
        return None
    if verb == "ppo":
        return _smaller_ppo(settings, cause, on_cpu)
    if cause is not None and cause.evaluating:
        batch = whole(settings, "per_device_eval_batch_size", _BATCH) or 1
        return {"per_device_eval_batch_size": batch // 2} if batch > 1 else None
    batch = whole(settings, "per_device_train_batch_size", _BATCH) or 1
    if batch <= 1:
        return None
    times = next(number for number in range(2, batch + 1) if batch % number == 0)
    steps = whole(settings, "gradient_accumulation_steps", 1) or 1
    return {"per_device_train_batch_size": batch // times, "gradient_accumulation_steps": steps * times}


def _smaller_ppo(settings: dict[str, Any], cause: "Cause | None", on_cpu: bool) -> dict[str, int] | None:
    episodes = whole(settings, "per_device_train_batch_size", _PPO_BATCH) or 1
    key = "micro_batch_tokens"
    if cause is not None and cause.phase == "rollout":
        key = "generation_batch_size"
    elif cause is not None and cause.model == "reward model":
        key = "per_device_eval_batch_size"
    if key != "micro_batch_tokens":
        rows = whole(settings, key, _PPO_BATCH) or 1
        if cause is not None and not cause.evaluating:
            rows = min(rows, episodes)
        return {key: rows // 2} if rows > 1 else None
    separate = settings.get("value_model_kind", "separate") == "separate"
    default = _PPO_TOKENS_ON_CPU[separate] if on_cpu else _PPO_TOKENS
    now = whole(settings, key) or default
    rows = cause.rows if cause is not None and cause.rows else 0
    if rows == 1 or episodes == 1:
        return None
    # What went through is often far less than what might have: half of that, or nothing would change.
    half = rows * cause.width // 2 if rows and cause is not None else now // 2
    # More than what this setting allows was not cut by it (demonstrations that --ptx_coef mixes in).
    return {key: half} if 0 < half < now else None


def flags(settings: dict[str, int]) -> list[str]:
    """Settings as flags of the verb."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def next_setting(
    verb: str,
    settings: dict[str, Any],
    zero: int,
    offload: str | None,
    num_ranks: int,
    cause: "Cause | None" = None,
    on_cpu: bool = False,
) -> str:
    """The next setting to try, as flags: the same global batch first, then sharding, then CPU memory, then LoRA."""
    if verb in ALONE:
        batch = whole(settings, "batch_size", 32) or 1
        return f"--batch_size {batch // 2}" if batch > 1 else "a smaller model"
    if (less := smaller(verb, settings, cause, on_cpu)) is not None:
        accumulates = "gradient_accumulation_steps" in less
        return " ".join(flags(less)) + (" (the global batch stays)" if accumulates else " (the result stays)")
    holds_activations = cause is None or (cause.phase in ("forward", "backward", "training") and not cause.evaluating)
    if (
        holds_activations
        and not is_on(settings, "gradient_checkpointing")
        and not (verb in _CHECKPOINTS_BY_DEFAULT and "gradient_checkpointing" not in settings)
    ):
        return "--gradient_checkpointing true (a third slower)"
    if num_ranks > 1 and zero < 3:
        return f"rlhf launch --zero {zero + 1}"
    if offload is None:
        return f"rlhf launch --zero {zero or 1} --offload optimizer (slower: its state passes over PCIe)"
    if offload == "optimizer":
        return "rlhf launch --zero 3 --offload params (several times slower)"
    if not is_on(settings, "use_peft"):
        return "--use_peft true (LoRA), with ten times the learning rate"
    return "more GPUs, or a smaller model"
