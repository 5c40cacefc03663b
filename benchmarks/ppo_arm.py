"""One measured run of a PPO trainer, in a process of its own: `python benchmarks/ppo_arm.py JOB.json`.

benchmarks/ppo_vs_trl.py starts it. This file runs two arms, `ours` and `bare`; benchmarks/trl_peer.py runs
`trl` with the same meter.
"""

import copy
import gc
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from ppo_inputs import EOS, PAD, Inputs, Shape, load_inputs
from transformers import TrainerCallback

MIB = 1024  # /proc counts in KiB


@dataclass(frozen=True)
class Job:
    """What to run: an arm on the inputs of a folder. `out` is the file for its figures."""

    arm: str
    inputs: str
    rounds: int
    threads: int
    out: str
    settings: dict[str, Any] = field(default_factory=dict)  # of the trainer
    peer: str = ""

    def write(self, path: Path) -> Path:
        """Write it where a child can read it."""
        path.write_text(json.dumps(asdict(self)))
        return path


class Meter(TrainerCallback):
    """Time and memory of a run, and how long its replies are. Made when the models are loaded.

    Memory is the peak of the resident set (VmHWM, set back here) less what is resident now, in MiB. The
    first round is a warm-up: the clock starts at its end.
    """

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self.loaded = resident("VmRSS")
        self.stamps: list[float] = []
        self.replies: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A round has ended; both trainers call it so."""
        self.stamps.append(time.perf_counter())

    def figures(self, episodes: int) -> dict[str, Any]:
        """What was measured, with `episodes` a round."""
        rounds = [after - before for before, after in zip(self.stamps, self.stamps[1:], strict=False)]
        return {
            "episodes_per_second": episodes * len(rounds) / sum(rounds),
            "peak_mib": (resident("VmHWM") - self.loaded) / MIB,
            "loaded_mib": self.loaded / MIB,
            "mean_reply": sum(self.replies) / len(self.replies),
            "seconds_a_round": rounds,
        }


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in KiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found, f"/proc/self/status has no {key}"
    return int(found.group(1))


def both_trainers(shape: Shape, rounds: int, folder: str) -> dict[str, Any]:
    """The settings that TRL's PPOConfig and ours have in common, by name and by meaning."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": shape.episodes,
        "num_ppo_epochs": shape.epochs,
        "num_mini_batches": shape.minibatches,
        "learning_rate": 3e-6,
        "adam_epsilon": 1e-5,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    }


def ours(inputs: Inputs, meter: Meter, job: Job, folder: str) -> None:
    """rlhf.ppo on the job's settings, else its defaults; old log-probabilities from the rollout, as TRL has them."""
    from rlhf.ppo.config import PPOConfig
    from rlhf.ppo.trainer import PPOTrainer

    settings: dict[str, Any] = {
        **both_trainers(inputs.shape, job.rounds, folder),
        "old_logps": "rollout",
        **job.settings,
    }
    trainer = PPOTrainer(
        inputs.policy,
        [(inputs.reward, inputs.tokenizer)],
        PPOConfig(
            max_steps=job.rounds,
            max_new_tokens=inputs.shape.longest_reply,
            generation_batch_size=inputs.shape.episodes,
            **settings,
        ),
        datasets.Dataset.from_dict({"prompt_ids": inputs.prompts}),
        processing_class=inputs.tokenizer,
        value_model=inputs.value,
    )
    trainer.add_callback(meter)
    generate = trainer.engine.generate

    def counted(*args: Any, **kwargs: Any) -> list[list[int]]:
        replies = generate(*args, **kwargs)
        meter.replies += [len(reply) for reply in replies]
        return replies

    trainer.engine.generate = counted
    trainer.train()


def bare(inputs: Inputs, meter: Meter, job: Job, folder: str) -> None:
    """What no trainer on transformers can leave out: sample, four forward passes, the updates; nothing else.

    Replies are sampled by `generate`, all rows to the longest. Logits are made for the reply alone.
    """
    shape = inputs.shape
    reference = copy.deepcopy(inputs.policy).requires_grad_(False)
    trained = [*inputs.policy.parameters(), *inputs.value.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-6, eps=1e-5, weight_decay=0.0, fused=True)
    prompts = inputs.tokenizer.pad({"input_ids": inputs.prompts}, return_tensors="pt")
    for _ in range(job.rounds):
        ids = inputs.policy.generate(
            **prompts,
            do_sample=True,
            top_k=0,
            max_new_tokens=shape.longest_reply,
            eos_token_id=EOS if inputs.ends else None,
        )
        time_ = ids.shape[1] - prompts["input_ids"].shape[1]
        kept = ids[:, -time_:] != PAD  # (episodes, time)
        meter.replies += kept.sum(1).tolist()
        with torch.no_grad():
            old, _, old_values = (
                logps(inputs.policy, ids, time_),
                logps(reference, ids, time_),
                values(inputs, ids, time_),
            )
            scores = inputs.reward(input_ids=ids, attention_mask=ids != PAD).logits  # (episodes, 1)
        returns = scores.expand(-1, time_)
        for _ in range(shape.epochs):
            for rows in torch.randperm(len(ids)).chunk(shape.minibatches):
                ratio = (logps(inputs.policy, ids[rows], time_) - old[rows]).exp()
                gain = (returns - old_values)[rows]
                policy = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2))
                value = 0.5 * (values(inputs, ids[rows], time_) - returns[rows]) ** 2
                (policy + 0.1 * value)[kept[rows]].mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        meter.on_step_end()


def logps(model: Any, ids: torch.Tensor, time_: int) -> torch.Tensor:
    """Log-probabilities of the last `time_` tokens, `(rows, time_)`."""
    logits = model(**_seen(ids), logits_to_keep=time_ + 1).logits[:, :-1]
    return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -time_:], reduction="none")


def values(inputs: Inputs, ids: torch.Tensor, time_: int) -> torch.Tensor:
    """Values of the states before the last `time_` tokens, `(rows, time_)`."""
    hidden = inputs.value.model(**_seen(ids)).last_hidden_state[:, -time_ - 1 : -1]
    return inputs.value.score(hidden).squeeze(-1)


def _seen(ids: torch.Tensor) -> dict[str, Any]:
    mask = (ids != PAD).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }


def measure(job: Job, arm: Any) -> None:
    """Load, run the arm, write its figures."""
    torch.set_num_threads(job.threads)
    inputs = load_inputs(Path(job.inputs), value=job.settings.get("value_model_kind", "separate") == "separate")
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        arm(inputs, meter, job, folder)
    Path(job.out).write_text(json.dumps(meter.figures(inputs.shape.episodes)))


def read_job() -> Job:
    """The job whose file the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    JOB = read_job()
    if JOB.arm == "ours":
        import rlhf.ppo.trainer  # noqa: F401  (imports are no part of what is measured)
    measure(JOB, {"ours": ours, "bare": bare}[JOB.arm])
