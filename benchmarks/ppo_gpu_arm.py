"""One measured run on a GPU, in a process of its own; benchmarks/ppo_gpu.py starts it with one JSON argument."""

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ppo_arm import both_trainers
from ppo_gpu_inputs import SIZES, Size, make_inputs, smaller
from ppo_inputs import EOS, PAD, Inputs
from transformers import GenerationConfig, TrainerCallback

GIB = 2**30
FORWARD_PARTS = 4  # TRL keeps the logits of all tokens: its scoring goes in pieces


def on_gpu() -> bool:
    """Whether there is one; without, memory is not measured."""
    return torch.cuda.is_available()


DEVICE = {"use_cpu": not on_gpu(), "bf16": True}  # of both trainers


def wait() -> float:
    """The clock, once the device has done all it was given."""
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


class Meter(TrainerCallback):
    """Seconds of each round and the peak of memory, above what was there once the models were loaded."""

    def __init__(self) -> None:
        gc.collect()
        self.loaded = torch.cuda.memory_allocated() if on_gpu() else 0
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()
        self.stamps: list[float] = []
        self.tokens: list[int] = []  # of each round's replies
        self.parts: dict[str, float] = {"rollout": 0.0, "scoring": 0.0}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A round has ended."""
        self.stamps.append(wait())
        if len(self.stamps) == 1:  # the first round is a warm-up
            self.parts = dict.fromkeys(self.parts, 0.0)

    def figures(self, inputs: Inputs) -> dict[str, Any]:
        """What was measured, a round."""
        rounds = [after - before for before, after in zip(self.stamps, self.stamps[1:], strict=False)]
        seconds = sum(rounds) / len(rounds)
        parts = {name: value / len(rounds) for name, value in self.parts.items()}
        parts["update"] = seconds - sum(parts.values())
        prompt_tokens = sum(map(len, inputs.prompts))
        replies = sum(self.tokens[1:]) / len(rounds)
        epochs = inputs.shape.epochs
        peak = torch.cuda.max_memory_allocated() if on_gpu() else 0
        return {
            "seconds_a_round": rounds,
            "seconds": parts,
            "reply_tokens": replies,
            "episodes_per_second": inputs.shape.episodes / seconds,
            "rollout_tokens_per_second": replies / parts["rollout"],
            "update_tokens_per_second": epochs * (replies + prompt_tokens) / parts["update"],
            "loaded_gib": self.loaded / GIB,
            "peak_gib": peak / GIB,
            "peak_above_load_gib": (peak - self.loaded) / GIB,
        }


def ours(size: Size, inputs: Inputs, job: dict[str, Any], folder: str) -> dict[str, Any]:
    """rlhf.ppo."""
    import datasets

    from rlhf.ppo.config import PPOConfig
    from rlhf.ppo.trainer import PPOTrainer

    shape = size.shape
    args = PPOConfig(
        max_steps=job["rounds"],
        max_new_tokens=shape.longest_reply,
        generation_batch_size=shape.episodes,
        per_device_eval_batch_size=shape.episodes,
        **(both_trainers(shape, job["rounds"], folder) | DEVICE | job["settings"]),
    )
    rows = datasets.Dataset.from_dict({"prompt_ids": inputs.prompts})
    reward = [(inputs.reward, inputs.tokenizer)]
    trainer = PPOTrainer(inputs.policy, reward, args, rows, processing_class=inputs.tokenizer, value_model=inputs.value)
    meter = Meter()
    trainer.add_callback(meter)
    generate = trainer.engine.generate

    def counted(*given: Any, **named: Any) -> list[list[int]]:
        began = wait()
        replies = generate(*given, **named)
        meter.parts["rollout"] += wait() - began
        meter.tokens.append(sum(map(len, replies)))
        return replies

    trainer.engine.generate = counted
    trainer.train()
    log = [row for row in trainer.state.log_history if "ratio/first_deviation" in row]
    meter.parts["scoring"] = sum(row["seconds/reference"] + row["seconds/reward"] for row in log[1:])
    kept = ("kl", "ratio/first_deviation", "loss", "loss/policy", "loss/value", "entropy", "seconds/rollout")
    kept += ("seconds/reference", "seconds/reward", "seconds/update")
    return meter.figures(inputs) | {"log": [{key: row[key] for key in kept if key in row} for row in log]}


def trl(size: Size, inputs: Inputs, job: dict[str, Any], folder: str) -> dict[str, Any]:
    """TRL 1.12's PPOTrainer on the same; its passes without gradients are its scoring."""
    from trl_peer import peer, trainer_of

    module = peer(job["peer"])
    parts = {"local_rollout_forward_batch_size": size.shape.episodes // FORWARD_PARTS}
    trainer = trainer_of(module, inputs, job["rounds"], folder, **DEVICE, **parts)
    meter = Meter()
    generate, forward, reward = module.batch_generation, module.forward, module.get_reward

    def counted(model: Any, queries: torch.Tensor, *given: Any) -> Any:
        began = wait()
        found, logits = generate(model, queries, *given)
        meter.parts["rollout"] += wait() - began
        meter.tokens.append(int((found[:, queries.shape[1] :] != PAD).sum()))
        return found, logits

    def timed(function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if torch.is_grad_enabled():
                return function(*given, **named)
            began = wait()
            out = function(*given, **named)
            meter.parts["scoring"] += wait() - began
            return out

        return call

    module.batch_generation, module.forward, module.get_reward = counted, timed(forward), timed(reward)
    trainer.add_callback(meter)
    trainer.train()
    return meter.figures(inputs)


def engines(size: Size, inputs: Inputs, job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Tokens a second of our decode loop, with and without its graph, and of transformers' `generate`; bf16."""
    from rlhf.decoding import decode

    policy = inputs.policy.to(torch.bfloat16).eval()
    uniforms = torch.rand(len(inputs.prompts), size.shape.longest_reply, generator=torch.Generator().manual_seed(0))
    padded = inputs.tokenizer.pad({"input_ids": inputs.prompts}, return_tensors="pt").to(policy.device)
    how = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=size.shape.longest_reply, eos_token_id=EOS, pad_token_id=PAD
    )

    def plain() -> list[list[int]]:
        rows = policy.generate(**padded, generation_config=how)[:, padded["input_ids"].shape[1] :]
        return [[token for token in row if token != PAD] for row in rows.tolist()]

    def mine(graphs: bool) -> list[list[int]]:
        return decode(policy, inputs.prompts, uniforms, {EOS}, 1.0, len(inputs.prompts), graphs)

    found: dict[str, Any] = {}
    replies = {}
    if job["settings"].get("phases"):
        return phases(policy, inputs, uniforms)
    for name, engine in {"graph": lambda: mine(True), "plain": lambda: mine(False), "generate": plain}.items():
        engine()
        rates = []
        for _ in range(3):
            began = wait()
            replies[name] = engine()
            rates.append(sum(map(len, replies[name])) / (wait() - began))
        found[name] = {"tokens_per_second": sorted(rates)[1], "all": rates}
    same = [a == b for x, y in zip(replies["graph"], replies["plain"], strict=True) for a, b in zip(x, y, strict=False)]
    return found | {"graph_and_plain_draw_the_same_tokens": sum(same) / len(same)}


def phases(policy: Any, inputs: Inputs, uniforms: torch.Tensor) -> dict[str, Any]:
    """Seconds of a rollout with the graph: the prompts, the recording, the steps; of three, the last."""
    from rlhf.decoding import decode
    from rlhf.decoding_graph import FixedDecoder

    seconds: dict[str, float] = {}
    start, record = FixedDecoder.__init__, FixedDecoder._recorded

    def timed(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            began = wait()
            out = function(*given, **named)
            seconds[name] = seconds.get(name, 0.0) + wait() - began
            return out

        return call

    for name, part in {"__init__": timed("prompts", start), "_recorded": timed("record", record)}.items():
        setattr(FixedDecoder, name, part)
    for _ in range(3):
        seconds.clear()
        began = wait()
        decode(policy, inputs.prompts, uniforms, {EOS}, 1.0, len(inputs.prompts))
        seconds["all"] = wait() - began
    return {"phases": seconds}


def precision(size: Size, inputs: Inputs, job: dict[str, Any], folder: str) -> dict[str, Any]:
    """bf16 under autocast against float32: |out - ref| / |ref| of log-probabilities, values, losses and gradients."""
    from rlhf.ppo.networks import PolicyAndValue

    device = inputs.policy.device
    networks = PolicyAndValue(inputs.policy, "separate", inputs.value).train(False)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, size.shape.vocabulary, (8, 128), generator=generator).to(device)
    keep = torch.zeros(8, 127, dtype=torch.bool, device=device)
    keep[:, 64:] = True
    advantages = torch.randn(int(keep.sum()), generator=generator).to(device)
    found: dict[str, torch.Tensor] = {}
    for name, bf16 in (("float32", False), ("bf16", True)):
        networks.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logps, values, entropy = networks(ids, keep, 1.0, entropy=True)
            loss = -(advantages * logps).mean() + (values - 1).square().mean()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in networks.parameters() if p.grad is not None and p.dim() > 1])
        parts = {"logps": logps, "values": values, "entropy": entropy, "loss": loss[None], "gradient": gradient}
        found |= {f"{name}/{key}": part.detach().clone() for key, part in parts.items()}
    errors = {}
    for key in ("logps", "values", "entropy", "loss", "gradient"):
        exact, rounded = found[f"float32/{key}"].double(), found[f"bf16/{key}"].double()
        errors[key] = ((rounded - exact).norm() / exact.norm()).item()
    assert all(error == error for error in errors.values()), errors
    return {"relative_error": errors}


def ceilings() -> dict[str, Any]:
    """What the chip can do: a copy (bytes read and written) and a bf16 matrix product, medians of ten."""
    if not on_gpu():
        return {"gb_per_second": 1.0, "tflops": 1.0, "device": "cpu"}
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def median(run: Any) -> float:
        times = []
        for _ in range(13):
            began = wait()
            run()
            times.append(wait() - began)
        return sorted(times[3:])[5]

    copy, product = median(lambda: target.copy_(source)), median(lambda: a @ b)
    return {
        "gb_per_second": 2 * source.numel() * 4 / copy / 1e9,
        "tflops": 2 * 8192**3 / product / 1e12,
        "device": torch.cuda.get_device_name(),
    }


ARMS = {"ours": ours, "trl": trl, "engines": engines, "precision": precision}


def main() -> None:
    """Read the job, run it, write its figures."""
    job = json.loads(sys.argv[1])
    size = smaller(SIZES[job["size"]], job["episodes"]) if job.get("episodes") else SIZES[job["size"]]
    arm = job["arm"]
    value = arm in ("trl", "precision") or (arm == "ours" and "value_model_kind" not in job["settings"])
    if arm == "ceilings":
        figures = ceilings()
    else:
        inputs = make_inputs(size, job["ends"], value, "cuda" if on_gpu() else "cpu")
        with tempfile.TemporaryDirectory() as folder:
            figures = ARMS[arm](size, inputs, job, folder)
    Path(job["out"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
