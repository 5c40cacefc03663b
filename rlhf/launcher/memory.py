"""What to try next where memory ran out: what costs least first."""

from typing import Any

from rlhf.launcher.settings import is_on, whole

# As PyTorch says it on a GPU and on a CPU, and cuBLAS and NCCL, which have none left for themselves.
_SIGNS = (
    "OutOfMemoryError", "CUDA out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)  # fmt: skip
_CHECKPOINTS_BY_DEFAULT = ("pretrain", "sft", "reward", "dpo")  # TRL's configs; PPO's does not


def is_out_of_memory(lines: list[str]) -> bool:
    """Whether a log's last lines say that memory ran out."""
    return any(sign in line for line in lines for sign in _SIGNS)


def next_setting(verb: str, settings: dict[str, Any], zero: int, offload: str | None, num_ranks: int) -> str:
    """The next setting to try, as flags: the same global batch first, then sharding, then CPU memory, then LoRA."""
    batch = whole(settings, "per_device_train_batch_size", 8) or 1
    if batch > 1:
        steps = whole(settings, "gradient_accumulation_steps", 1) or 1
        fewer = batch // 2
        more = -(-steps * batch // fewer)
        same = "the global batch stays" if more * fewer == steps * batch else "about the same global batch"
        return f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {more} ({same})"
    if not is_on(settings, "gradient_checkpointing") and not (
        verb in _CHECKPOINTS_BY_DEFAULT and "gradient_checkpointing" not in settings
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
