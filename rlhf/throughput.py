"""How fast a training run goes, in its log: tokens a second, the chip's share that does sums, peak memory."""

import re
import resource
import time
from typing import Any

import torch
from transformers import TrainerCallback

# Peak dense FLOP/s in units of 1e12, as NVIDIA and AMD state them: 16-bit matrices summed in float32, then TF32.
# Where a data sheet gives figures "with sparsity", half of them stands here. Second sources: torchtitan's table
# (torchtitan/tools/utils.py) has B200, H200, H100, A100, L40S and MI300X the same to 1%, Lightning's
# (lightning/fabric/utilities/throughput.py) A10, V100 and T4 the same; for the others there was none.
_PEAKS: list[tuple[str, float, float | None]] = [
    (r"B200", 2250, 1125),  # NVIDIA HGX B200 data sheet
    (r"H200 NVL", 835.5, 417.5),  # NVIDIA H200 data sheet
    (r"GH200.*|H200", 989.4, 494.7),  # NVIDIA H200 and GH200 data sheets
    (r"H100 NVL", 835.5, 417.5),  # NVIDIA H100 data sheet
    (r"H100 PCIe", 756, 378),  # NVIDIA H100 architecture white paper, table 3
    (r"H100.* HBM3", 989.4, 494.7),  # NVIDIA H100 architecture white paper, table 3 (SXM5)
    (r"A100-(SXM4|PCIE|PCIe)-\d+GB|A100 .*PCIe.*", 312, 156),  # NVIDIA A100 data sheet
    (r"A40", 149.7, 74.8),  # NVIDIA A40 data sheet
    (r"A30", 165, 82),  # NVIDIA A30 data sheet
    (r"A10", 125, 62.5),  # NVIDIA A10 data sheet
    (r"L40S", 362, 183),  # NVIDIA L40S data sheet
    (r"L40", 181, 90.5),  # NVIDIA L40 data sheet
    (r"L4", 121, 60),  # NVIDIA L4 data sheet
    (r"V100-SXM\d.*", 125, None),  # NVIDIA V100 data sheet (float16; no TF32)
    (r"V100-PCIE.*", 112, None),  # NVIDIA V100 data sheet (float16; no TF32)
    (r"T4", 65, None),  # NVIDIA T4 data sheet (float16; no TF32)
    (r"RTX A6000", 154.8, 77.4),  # NVIDIA Ampere GA102 white paper, appendix A
    (r"RTX 6000 Ada Generation", 364.2, 182.1),  # NVIDIA Ada white paper, professional edition
    (r"RTX 3090", 71, 35.6),  # NVIDIA Ampere GA102 white paper, table 9
    (r"RTX 4090", 165.2, 82.6),  # NVIDIA Ada white paper, appendix A
    (r"RTX 5090", 209.5, 104.8),  # NVIDIA RTX Blackwell white paper, appendix A
    (r"MI300X", 1307.4, 653.7),  # AMD Instinct MI300X data sheet
]
_MAKERS = re.compile(r"^(NVIDIA|AMD|Tesla|Instinct|GeForce|\s)+")


def peak_flops(name: str, precision: str) -> float | None:
    """The peak dense FLOP/s of a chip by its `torch.cuda.get_device_name`; None where it is not known.

    Args:
        name: matched whole, so that laptop chips and parts of a chip (MIG) are not taken for the whole one.
        precision: `16` (bfloat16, float16), `tf32` or `float32`; plain float32 has no peak here.
    """
    short = _MAKERS.sub("", name)
    for pattern, half, tf32 in _PEAKS:
        if re.fullmatch(pattern, short):
            tera = {"16": half, "tf32": tf32}.get(precision)
            return None if tera is None else tera * 1e12
    return None


def flops_per_token(
    weights: int, trained: int, layers: int, width: int, length: float, reference: bool = False
) -> float:
    """FLOPs that training on one token takes, by appendix B of PaLM (Chowdhery et al. 2022, arXiv:2204.02311).

    A weight takes 2 FLOPs forward and 2 backward towards the inputs; one that is trained takes 2 more for its own
    gradient. So all weights trained give PaLM's 6 N, and LoRA 4 N + 2 N_trained. Attention adds 12 L H Q T.
    Recomputed activations do not count.

    Args:
        weights: N, of the whole model, adapters included.
        trained: those that have gradients.
        layers: L.
        width: H Q, attention heads times their size.
        length: T, tokens of a sequence.
        reference: whether a frozen reference of the same size goes forward too (DPO): a third of PaLM's sum more.
    """
    attention = layers * width * length
    forward = 2 * weights + 4 * attention
    return 4 * weights + 2 * trained + 12 * attention + (forward if reference else 0)


class Throughput(TrainerCallback):
    """Adds `tokens_per_second`, `mfu` and `memory_gb` to every training row of the log.

    To be first of the callbacks: those behind it, report_to's among them, then see the figures.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.seconds = 0.0  # of training since the last row; evaluations and checkpoints left out
        self.tokens = 0  # TRL's count, of all ranks and without padding, at the last row
        self.step = 0
        self.since = time.perf_counter()
        self.interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step, self.interrupted = state.global_step, True  # TRL counts from 0 again after a resume

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.interrupted:
            self.since, self.interrupted = time.perf_counter(), False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.interrupted = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.interrupted = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        logs["memory_gb"] = round(_over_ranks(_peak_memory(), args), 3)
        if (total := logs.get("num_tokens")) is None or "tokens_per_second" in logs or self.seconds <= 0:
            return  # PPO has its own
        tokens, steps = total - self.tokens, state.global_step - self.step
        rate = tokens / self.seconds
        self.tokens, self.step, self.seconds = total, state.global_step, 0.0
        logs["tokens_per_second"] = round(rate, 1)
        peak = _peak(args, self.trainer.model)
        if peak is not None and steps > 0:
            sequences = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            length = tokens / (sequences * _sequences_per_row(self.trainer))
            logs["mfu"] = round(rate * _flops(self.trainer, length) / (peak * args.world_size), 4)


def _flops(trainer: Any, length: float) -> float:
    """`flops_per_token` of what a trainer trains, at this mean length."""
    model = trainer.model
    config = model.config.get_text_config()
    sizes = [(_num_weights(parameter), parameter.requires_grad) for parameter in model.parameters()]
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return flops_per_token(
        sum(size for size, _ in sizes),
        sum(size for size, trained in sizes if trained),
        config.num_hidden_layers,
        width,
        length,
        reference=hasattr(trainer, "ref_model") and not getattr(trainer.args, "precompute_ref_log_probs", False),
    )


def _num_weights(parameter: Any) -> int:
    """A ZeRO-3 parameter holds nothing between uses, and a 4-bit one holds two weights a byte."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return int(state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _sequences_per_row(trainer: Any) -> int:
    """Preferences have two sides."""
    return 2 if type(trainer.args).__name__ in ("DPOConfig", "RewardConfig") else 1


def _peak(args: Any, model: Any) -> float | None:
    if args.device.type != "cuda":
        return None
    if args.bf16 or args.fp16 or model.dtype in (torch.bfloat16, torch.float16):
        precision = "16"
    else:
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
    return peak_flops(torch.cuda.get_device_name(args.device), precision)


def _peak_memory() -> float:
    """GiB: the accelerator's peak of what was allocated, else the process's peak resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def _over_ranks(value: float, args: Any) -> float:
    """The largest of all ranks."""
    if args.world_size == 1:
        return value
    largest = torch.tensor(value, device=args.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return largest.item()
