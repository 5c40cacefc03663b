"""TRL 1.12's PPOTrainer, in a process of its own: `python benchmarks/trl_peer.py JOB.json`.

The job names the folder that benchmarks/install_trl_peer.py made; this process alone has it on its path.
benchmarks/ppo_vs_trl.py measures it, benchmarks/ppo_parity.py has it make one update on given replies.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from install_trl_peer import VERSION
from ppo_arm import Job, Meter, both_trainers, measure, read_job
from ppo_inputs import PAD, Inputs, load_inputs


def peer(folder: str) -> Any:
    """The module `trl.experimental.ppo.ppo_trainer` of TRL 1.12."""
    sys.path.insert(0, str(Path(folder).resolve()))
    found = importlib.import_module("trl").__version__
    assert found == VERSION, f"trl {found} was imported, not {VERSION}"
    return importlib.import_module("trl.experimental.ppo.ppo_trainer")


def trainer_of(module: Any, inputs: Inputs, rounds: int, folder: str, reference: Any = None, **settings: Any) -> Any:
    """TRL's trainer on the inputs, in float32 where `settings` say nothing else; they are TRL's own.

    Its `gradient_accumulation_steps` is 1: with more, its optimizer steps once an accumulation and not once
    a minibatch, and there would be fewer updates than ours.
    """
    from datasets import Dataset

    ours = {"bf16": False, "local_rollout_forward_batch_size": inputs.shape.episodes}
    arguments = importlib.import_module("trl.experimental.ppo").PPOConfig(
        **(both_trainers(inputs.shape, rounds, folder) | ours | settings),
        gradient_accumulation_steps=1,
        total_episodes=rounds * inputs.shape.episodes,
        response_length=inputs.shape.longest_reply,
        stop_token="eos" if inputs.ends else None,
        num_sample_generations=0,
    )
    return module.PPOTrainer(
        args=arguments,
        processing_class=inputs.tokenizer,
        model=inputs.policy,
        ref_model=reference,
        reward_model=inputs.reward,
        train_dataset=Dataset.from_dict({"input_ids": inputs.prompts}),
        value_model=inputs.value,
    )


def speed(inputs: Inputs, meter: Meter, job: Job, folder: str) -> None:
    """The arm `trl`: as it comes, no early look at anything."""
    module: Any = sys.modules["trl.experimental.ppo.ppo_trainer"]
    generate = module.batch_generation

    def counted(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        found, logits = generate(model, queries, *args)
        meter.replies += (found[:, queries.shape[1] :] != PAD).sum(1).tolist()
        return found, logits

    module.batch_generation = counted
    trainer = trainer_of(module, inputs, job.rounds, folder, **job.settings)
    trainer.add_callback(meter)
    trainer.train()


def update(job: Job) -> None:
    """One round on given replies; writes what happened to `job.out` (torch.save).

    Keys: `rows` (the prompt of each row of the batch), `orders` (each pass's permutation of the rows), `losses`
    (each minibatch's), `log` (TRL's own figures), `policy` and `value` (the weights afterwards).
    """
    from ppo_parity import parity_models, parity_settings

    module = peer(job.peer)
    torch.set_num_threads(job.threads)
    folder = Path(job.inputs)
    inputs, replies = load_inputs(folder), json.loads((folder / "replies.json").read_text())
    reference = parity_models(inputs)
    rows: list[int] = []
    orders: list[list[int]] = []
    found: list[float] = []

    def given(model: Any, queries: torch.Tensor, _size: int, pad: int, config: Any) -> Any:
        rows.extend(inputs.prompts.index([token for token in query if token != PAD]) for query in queries.tolist())
        ids = torch.cat([queries, torch.tensor([replies[row] for row in rows])], 1)
        logits = module.forward(model, ids, pad).logits[:, queries.shape[1] - 1 : -1]
        return ids, logits / config.temperature

    draw = np.random.RandomState(0)

    def permutation(count: int) -> np.ndarray:
        orders.append(draw.permutation(count).tolist())
        return np.array(orders[-1])

    module.batch_generation = given
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(module, inputs, 1, output, reference, **parity_settings())
        backward = trainer.accelerator.backward

        def noted(loss: torch.Tensor, **kwargs: Any) -> None:
            found.append(loss.item())
            backward(loss, **kwargs)

        trainer.accelerator.backward = noted
        np.random.permutation = permutation
        trainer.train()
    result = {"rows": rows, "orders": orders, "losses": found, "log": trainer.state.log_history[-1]}
    result |= {"policy": inputs.policy.state_dict(), "value": inputs.value.state_dict()}
    torch.save(result, job.out)


if __name__ == "__main__":
    JOB = read_job()
    if JOB.arm == "trl":
        peer(JOB.peer)
        measure(JOB, speed)
    else:
        update(JOB)
