"""What `rlhf plan` is asked beside the training's own settings, and what a plan may choose."""

from dataclasses import dataclass, field

from rlhf.errors import UserError

OFFLOADS = ("none", "optimizer", "params")
_ZERO = ("0", "1", "2", "3", "auto")


@dataclass
class PlanOptions:
    """The machines, what to choose, and where the plan goes."""

    gpus: int = field(default=1, metadata={"help": "GPUs of a node; 0: on the processor, one process."})
    nodes: int = field(default=1, metadata={"help": "Nodes."})
    gpu_memory: float | None = field(
        default=None, metadata={"help": "GiB of one GPU; default: what the GPU here has (with --gpus 0: its memory)."}
    )
    zero: str = field(default="auto", metadata={"help": "ZeRO stage: 0, 1, 2, 3, or auto: the first that fits."})
    offload: str = field(
        default="none", metadata={"help": "none, optimizer, params: to begin with; auto adds what is needed."}
    )
    length: int | None = field(
        default=None,
        metadata={"help": "Tokens of the longest sequence; default: max_length, in ppo longest prompt and reply."},
    )
    examples: int | None = field(
        default=None, metadata={"help": "Training examples; default: the lines of the data file, where it is there."}
    )
    tokens_per_second: float | None = field(default=None, metadata={"help": "Of one GPU, for time and cost."})
    like: str | None = field(default=None, metadata={"help": "A run folder whose throughput is taken instead."})
    like_gpus: int = field(default=1, metadata={"help": "GPUs that the run of --like had, all together."})
    price: float | None = field(default=None, metadata={"help": "Of a GPU-hour, in any currency."})
    json: bool = field(default=False, metadata={"help": "Print JSON and no table."})
    output: str | None = field(
        default=None, metadata={"help": "Folder for the chosen DeepSpeed file, flags and the plan as JSON."}
    )

    def __post_init__(self) -> None:
        if self.zero not in _ZERO:
            raise UserError(f"zero: `{self.zero}` is not one of {', '.join(_ZERO)}")
        if self.offload not in OFFLOADS:
            raise UserError(f"offload: `{self.offload}` is not one of {', '.join(OFFLOADS)}")
        if self.gpus < 0:
            raise UserError(f"gpus: {self.gpus} is below 0")
        for key in ("nodes", "gpu_memory", "length", "examples", "tokens_per_second", "like_gpus"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"{key}: {value} is not above 0")
        if self.price is not None and self.price < 0:
            raise UserError(f"price: {self.price} is below 0")

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return max(1, self.gpus) * self.nodes


@dataclass(frozen=True)
class Setting:
    """What decides how much of the memory a rank holds; results do not depend on it, but for rounding.

    Args:
        zero: 0 to 3. 0 is plain data parallelism, without DeepSpeed.
        offload: what lies in host memory: `none`, `optimizer`, or `params` (those and the optimizer).
        checkpointing: whether activations are made again in the backward pass.
        micro_batch: examples that go through the model at a time on a rank; in ppo tokens.
        accumulation: micro-batches of an optimizer step.
    """

    zero: int = 0
    offload: str = "none"
    checkpointing: bool = False
    micro_batch: int = 1
    accumulation: int = 1

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.zero > 0
