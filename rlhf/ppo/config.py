"""PPO's settings: transformers' TrainingArguments and these. Each default has its reason."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from rlhf.errors import UserError
from rlhf.hardware import spare_broken_amx
from rlhf.packing import CPU_TOKENS

# Of each, policy and value model, where both train at once on a CPU: together they hold little more than one of 1024.
CPU_TOKENS_EACH = 640
_CHOICES = {
    "kl_estimator": ("k1", "k3"),
    "value_model_kind": ("separate", "shared", "adapter"),
    "reference": ("copy", "adapter_off", "offload"),
    "reward_ensemble": ("sum", "mean", "minimum", "lower_bound"),
    "engine": ("hf", "vllm_server", "vllm_colocate"),
    "old_logps": ("forward", "rollout"),
}
_POSITIVE_WHERE_SET = ("kl_target", "target_kl", "score_clip", "kl_ceiling", "max_prompt_length")


@dataclass
class PPOConfig(TrainingArguments):
    """One step is one round: a rollout of `per_device_train_batch_size` prompts a rank, then its updates.

    So `max_steps`, `logging_steps`, `save_steps` and the learning rate's schedule count rounds, and a
    checkpoint always lies between two rounds.
    """

    # TrainingArguments' own, other defaults.
    learning_rate: float = field(default=3.0e-6, metadata={"help": "The policy's. LoRA and small models take more."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Larger than Adam's 1e-8: steadier (Huang 2022)."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Decays to 0 over all rounds."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Episodes a round on each rank."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Replies generated at a time in eval."})
    logging_steps: float = field(default=1, metadata={"help": "Rounds between two log rows."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Reward functions get all columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Rounds of one size: one global batch."})

    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a checkpoint."})

    # Rollouts.
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts lose their start. Default: the context less max_new_tokens."}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest reply, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling and of every log-probability alike."})
    generation_batch_size: int = field(default=64, metadata={"help": "Replies generated at a time."})
    engine: str = field(default="hf", metadata={"help": "hf, vllm_server or vllm_colocate."})
    importance_cap: float = field(
        default=2.0, metadata={"help": "Cap of the importance weights that correct an engine's arithmetic."}
    )

    vllm_server_base_url: str = field(default="http://localhost:8000", metadata={"help": "vllm_server: its address."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "vllm_server: seconds to wait for it to be up."}
    )
    vllm_group_port: int = field(default=51216, metadata={"help": "vllm_server: port over which weights are sent."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "vllm_colocate: share of each GPU's memory that vLLM takes."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "vllm_colocate: GPUs that share one copy of the policy."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "vllm_colocate: free its memory during updates; each round sends the weights."}
    )
    decode_graphs: bool = field(
        default=True, metadata={"help": "hf on a GPU: record the step of the decode loop as a CUDA graph."}
    )

    old_logps: str = field(
        default="forward",
        metadata={
            "help": "forward: a pass as in the update, so that ratio 1 and KL 0 at the start are exact; rollout: those "
            "that the replies were drawn by (hf), equal but for rounding, without that pass."
        },
    )

    # Scores.
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One a reward function; default 1."})
    reward_ensemble: str = field(
        default="sum", metadata={"help": "Several rewards become one: sum, mean, minimum, lower_bound (mean - k std)."}
    )
    reward_ensemble_k: float = field(default=1.0, metadata={"help": "The k of lower_bound."})
    reward_timeout: float = field(
        default=600.0,
        metadata={"help": "Seconds a reward function or endpoint may take for a round; reward models have no limit."},
    )
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "Taken off the score of an unfinished reply."})
    score_bias: float | None = field(
        default=None, metadata={"help": "Taken off each score. Default: the first round's mean, which becomes 0."}
    )
    scale_scores: bool = field(default=False, metadata={"help": "Divide scores by their running standard deviation."})
    score_clip: float | None = field(default=None, metadata={"help": "Clip scores (scaled, less bias) to +- this."})

    # KL to the reference.
    kl_coef: float = field(default=0.05, metadata={"help": "Price of a nat of KL."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 (unbiased) or k3 (low variance near 0)."})
    kl_target: float | None = field(
        default=None, metadata={"help": "Nats a reply; the price then moves to hold the KL there."}
    )
    kl_horizon: int = field(default=10_000, metadata={"help": "Episodes over which the price adapts."})
    reference: str | None = field(
        default=None, metadata={"help": "copy, offload (a copy in host memory) or adapter_off (the LoRA default)."}
    )

    # Advantages.
    gamma: float = field(default=1.0, metadata={"help": "Discount: none, episodes are short."})
    lam: float = field(default=0.95, metadata={"help": "GAE's trade of bias for variance."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Over the global batch, all ranks."})

    # Updates.
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a round's episodes."})
    num_mini_batches: int = field(default=4, metadata={"help": "Optimizer steps a pass."})
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that go through a model at a time; on a CPU 1024 (640 where the value model is separate, "
            "and both train at once), else 16384, where padding counts."
        },
    )
    cliprange: float = field(default=0.2, metadata={"help": "Of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Of the value's move from the old one."})
    dual_clip: float | None = field(default=None, metadata={"help": "Bound of the ratio where the advantage is < 0."})
    log_ratio_clamp: float = field(default=10.0, metadata={"help": "Bound of the log ratio: no overflow."})
    target_kl: float | None = field(
        default=None, metadata={"help": "End a round's updates where KL(old || new) a token passes this."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    value_model_kind: str = field(
        default="separate",
        metadata={"help": "separate (own weights), shared (a head on the policy), adapter (a second LoRA)."},
    )
    value_warmup_steps: int = field(default=0, metadata={"help": "First rounds, in which only the value learns."})
    max_skipped_steps: int = field(default=3, metadata={"help": "Updates with a NaN in a row that end the run."})

    # Beside PPO.
    ptx_coef: float = field(default=0.0, metadata={"help": "Weight of the SFT loss mixed in (InstructGPT's gamma)."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Average the policy's weights so; the average is saved as the run's model."}
    )
    ref_ema_decay: float | None = field(
        default=None, metadata={"help": "Let the reference follow the policy so, a step a round (WARP)."}
    )

    # Guard.
    guard_steps: int = field(default=0, metadata={"help": "Rounds between two looks at the gold; 0: none."})
    guard_prompts: int = field(default=64, metadata={"help": "Held-out prompts of a look."})
    guard_patience: int = field(default=2, metadata={"help": "Looks in a row with gold down, score up: stop."})
    kl_ceiling: float | None = field(default=None, metadata={"help": "Nats a reply at which the run stops."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch_tokens is None:
            on_cpu = CPU_TOKENS_EACH if self.value_model_kind == "separate" else CPU_TOKENS
            self.micro_batch_tokens = on_cpu if self.device.type == "cpu" else 16_384
        if self.bf16 and self.device.type == "cpu":
            spare_broken_amx()
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            if value is not None and value not in choices:
                raise UserError(f"{key}: `{value}` is not one of {', '.join(choices)}")
        positive = ["max_new_tokens", "temperature", "generation_batch_size", "num_ppo_epochs", "num_mini_batches"]
        positive += ["micro_batch_tokens", "cliprange", "cliprange_value", "kl_horizon", "reward_timeout"]
        positive += [
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_gpu_memory_utilization",
            "vllm_tensor_parallel_size",
        ]
        positive += ["log_ratio_clamp", "importance_cap", "max_skipped_steps", "guard_patience"]
        positive += [key for key in _POSITIVE_WHERE_SET if getattr(self, key) is not None]
        for key in positive:
            if getattr(self, key) <= 0:
                raise UserError(f"{key}: {getattr(self, key)} is not above 0")
        for key in ("gamma", "lam"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"{key}: {getattr(self, key)} is not between 0 and 1")
        for key in ("kl_coef", "missing_eos_penalty", "vf_coef", "ptx_coef"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: {getattr(self, key)} is below 0")
        for key in ("ema_decay", "ref_ema_decay"):
            if getattr(self, key) is not None and not 0 < getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not between 0 and 1")
        if self.old_logps == "rollout" and self.engine != "hf":
            raise UserError(
                f"old_logps: rollout takes engine hf; what {self.engine} drew by is corrected for by importance "
                "weights, which need the forward pass: set --old_logps forward"
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"dual_clip: {self.dual_clip} is not above 1")
        if self.gradient_accumulation_steps != 1:
            raise UserError(
                "gradient_accumulation_steps: is 1 in PPO; micro-batches are cut by --micro_batch_tokens, and a round "
                "has --per_device_train_batch_size episodes a rank"
            )
        if self.per_device_train_batch_size * self.world_size < self.num_mini_batches:
            raise UserError(
                f"num_mini_batches: {self.num_mini_batches} of "
                f"{self.per_device_train_batch_size * self.world_size} episodes leaves some empty; lower it"
            )
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
