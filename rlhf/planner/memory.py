"""What one rank holds, by model and part, in each phase: what ZeRO, offloading and DeepSpeed do to the sums."""

from dataclasses import dataclass

import torch

from rlhf.planner.dry_run import Peak
from rlhf.planner.options import PlanOptions, Setting
from rlhf.planner.stages import Held, Stage

GIB = 2**30
# The CUDA context with cuBLAS's workspace, and what NCCL adds where ranks talk. Of the order of what nvidia-smi shows.
_CONTEXT, _NCCL = 600 * 2**20, 600 * 2**20
# Kept free: blocks that the allocator cannot reuse, and what the plan gets wrong (docs/planning.md).
MARGIN = 0.10
_ADAM = 2  # moments of a weight
_MASTER = 4  # bytes of DeepSpeed's own float32 copy of a weight
# DeepSpeed's default of 5e8 takes a gigabyte whatever the model; `output` writes this one.
_BUCKET = 200_000_000
_MAX_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters and sub_group_size, by default


@dataclass(frozen=True)
class Part:
    """`bytes` of a model's `kind`: parameters, gradients, optimizer, activations, logits, KV cache, buffers."""

    model: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class Moment:
    """A phase at its worst.

    Args:
        phase: update, step, rollout, scoring, reward model.
        parts: all that is on the device.
    """

    phase: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, phase: str, parts: list[Part]) -> "Moment":
        """Without the parts that are nothing."""
        return cls(phase, tuple(part for part in parts if part.bytes))

    @property
    def total(self) -> int:
        """Bytes on a rank's device."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Account:
    """All phases of a stage under one setting; `host` is what a rank keeps in host memory, in bytes."""

    setting: Setting
    moments: tuple[Moment, ...]
    host: int

    @property
    def worst(self) -> Moment:
        """The phase that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def peak(self) -> int:
        """Bytes of the worst phase."""
        return self.worst.total


def account(stage: Stage, setting: Setting, options: PlanOptions) -> Account:
    """Count every phase of the stage under the setting."""
    ledger = _Ledger(stage, setting, options)
    passes, gradients, still = stage.update(setting), ledger.gradients(), ledger.still()
    full = sum(part.bytes for part in gradients)
    name = ledger.trained[0].name
    if setting.zero >= 2 or stage.accumulates(setting):
        update = [*gradients, *_peak(name, passes.alone)]
    elif passes.mixed.working + passes.mixed.gradients > full + passes.end.working:
        share = passes.mixed.gradients / full if full else 0.0
        update = [Part(part.model, part.kind, round(part.bytes * share)) for part in gradients]
        update += _peak(name, passes.mixed)
    else:
        update = [*gradients, *_peak(name, passes.end)]
    moments = [
        Moment.of("update", still + ledger.gathered() + update),
        Moment.of("step", still + gradients + ledger.step()),
    ]
    for phase in stage.phases(setting):
        extra = ledger.whole() if phase.whole else ledger.gathered()
        if phase.name == "scoring":
            extra += ledger.fetched()
        if phase.cache:
            extra.append(Part(name, "KV cache", phase.cache))
        moments.append(Moment.of(phase.name, still + extra + _peak(name, phase.peak)))
    return Account(setting, tuple(moments), ledger.host())


def least(stage: Stage, setting: Setting, options: PlanOptions) -> int:
    """Bytes that are there whatever the activations: known without a dry run."""
    ledger = _Ledger(stage, setting, options)
    return sum(part.bytes for part in ledger.still() + ledger.gradients() + ledger.step())


def _peak(name: str, peak: Peak) -> list[Part]:
    return [Part(name, "activations", peak.activations), Part(name, "logits", peak.logits)]


class _Ledger:
    """The parts that do not depend on the batch."""

    def __init__(self, stage: Stage, setting: Setting, options: PlanOptions) -> None:
        self.stage, self.setting, self.options = stage, setting, options
        self.ranks = options.ranks
        self.models = stage.held
        self.trained = [model for model in self.models if model.how == "trained"]

    def still(self) -> list[Part]:
        """Parameters, optimizer state, buffers and the driver's own: there in every phase."""
        parts = []
        for model in self.models:
            parts.append(Part(model.name, "parameters", self._parameters(model)))
            if model.how == "trained":
                parts.append(Part(model.name, "optimizer", self._optimizer(model)))
        if self.setting.deepspeed:
            parts.append(Part("DeepSpeed", "buffers", round(self._bucket() * self._each(self.trained[0]))))
        elif self.ranks > 1:
            parts += [Part(part.model, "DDP buckets", part.bytes) for part in self.gradients()]
        if self.stage.on_gpu:
            parts.append(Part("CUDA", "context", _CONTEXT + (_NCCL if self.ranks > 1 else 0)))
            if self.stage.verb == "ppo" and self.stage.training.engine == "vllm_colocate":
                share = self.stage.training.vllm_gpu_memory_utilization
                parts.append(Part("vLLM", "its share", round(share * (self.options.gpu_memory or 0) * GIB)))
        return parts

    def gradients(self) -> list[Part]:
        """All gradients that a rank keeps."""
        if self.setting.offload != "none":
            return []
        shared = self.ranks if self.setting.zero >= 2 else 1
        return [
            Part(model.name, "gradients", round(model.count.trained * self._each(model) / shared))
            for model in self.trained
        ]

    def step(self) -> list[Part]:
        """What the optimizer's step makes for itself: DeepSpeed turns a rank's gradients into float32."""
        if not self.setting.deepspeed or self.setting.offload != "none":
            return []
        num = sum(model.count.trained for model in self.trained) / self.ranks
        num = min(num, _MAX_LIVE) if self.setting.zero == 3 else num
        return [Part("DeepSpeed", "float32 gradients", round(4 * num))]

    def gathered(self) -> list[Part]:
        """Weights that ZeRO-3 holds whole for a while."""
        if self.setting.zero < 3:
            return []
        return [
            Part(model.name, "gathered weights", round(min(model.count.total, _MAX_LIVE) * self._each(model)))
            for model in self.trained
        ]

    def whole(self) -> list[Part]:
        """All trained models whole, as ZeRO-3 needs them to sample replies."""
        if self.setting.zero < 3:
            return []
        return [
            Part(model.name, "gathered weights", round(model.count.total * self._each(model))) for model in self.trained
        ]

    def fetched(self) -> list[Part]:
        """The reference where it is on the device for its pass only."""
        return [
            Part(model.name, "fetched weights", round(model.count.total * self._each(model)))
            for model in self.models
            if model.how == "host" or (model.how == "shardable" and self.setting.zero == 3)
        ]

    def host(self) -> int:
        """Bytes of a rank in host memory."""
        total = sum(round(m.count.total * self._each(m)) for m in self.models if m.how == "host")
        if self.setting.offload != "none":
            # The optimizer's state, and its gradients in float32.
            num = sum(model.count.trained for model in self.trained)
            total += round(num * (_ADAM * 4 + _MASTER + 4) / self.ranks)
        if self.setting.offload == "params":
            total += round(sum(model.count.total * self._each(model) for model in self.trained) / self.ranks)
        return total

    def _each(self, model: Held) -> float:
        """Bytes of a weight."""
        follows = model.how == "trained" or (model.how == "shardable" and self.stage.has_reference)
        if follows and self.setting.deepspeed and self.stage.mixed:
            return 2.0
        return model.bytes_each

    def _parameters(self, model: Held) -> int:
        if model.how == "host" or (model.how == "trained" and self.setting.offload == "params"):
            return 0
        plain = model.count.total - model.count.quantized
        size = plain * self._each(model) + model.count.quantized * (self.stage.quantized or 0.0)
        sharded = self.setting.zero == 3 and model.how in ("trained", "shardable")
        return round(size / self.ranks if sharded else size)

    def _optimizer(self, model: Held) -> int:
        if self.setting.offload != "none":
            return 0
        if self.setting.deepspeed:
            return round(model.count.trained * (_moments(self.stage, 4.0) + _MASTER) / self.ranks)
        return round(model.count.trained * _moments(self.stage, self._each(model)))

    def _bucket(self) -> int:
        """Elements of DeepSpeed's buffer for gradients on their way."""
        if self.setting.zero == 3:
            return 2 * self.stage.text.hidden_size**2
        return bucket(sum(model.count.trained for model in self.trained))


def bucket(num_trained: int) -> int:
    """The reduce_bucket_size that a plan writes for ZeRO-1 and 2, in elements."""
    return min(_BUCKET, num_trained)


def _moments(stage: Stage, each: float) -> float:
    """Bytes of optimizer state for a weight of `each` bytes."""
    name = str(getattr(stage.training.optim, "value", stage.training.optim))
    if "8bit" in name:
        return float(_ADAM)
    if "adam" in name:
        return _ADAM * each
    return 0.0 if name in ("sgd", "adafactor") else _ADAM * each


def device_memory(gpus: int) -> float | None:
    """GiB of the first GPU here, or of this machine where the plan is for its processor; None without a GPU."""
    if gpus == 0:
        import psutil

        return psutil.virtual_memory().total / GIB
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GIB
