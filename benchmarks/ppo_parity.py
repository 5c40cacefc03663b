"""One whole PPO update, ours against TRL 1.12's, on the same weights, replies and order of minibatches.

    python benchmarks/ppo_parity.py [--peer runs/trl-1.12] [--tolerance 1e-4]

TRL makes its update first, in a process of its own, with its sampling replaced by given replies; it
writes down the order of its rows, each minibatch's loss and the weights it ends with. Then ours does the same.
The models are tiny, float32, with a reference that is not the policy and scores far from 0, so that every
term of the loss counts. Replies have full length, where both mean the same: TRL pays a reply's score one
token after its end, and keeps a value there, ours at its end. Prints the largest differences, then one JSON line;
exits with 1 where one is over the tolerance.
"""

import argparse
import copy
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from install_trl_peer import FOLDER, install
from ppo_arm import Job, both_trainers
from ppo_inputs import FIRST_WORD, TINY, Inputs, Shape, load_inputs, write_inputs

SHAPE = replace(TINY, episodes=16)
# TRL's name of a logged mean, and ours.
FIGURES = {
    "loss/policy_avg": "loss/policy",
    "loss/value_avg": "loss/value",
    "policy/clipfrac_avg": "clip_fraction",
    "val/clipfrac_avg": "clip_fraction_value",
    "objective/kl": "kl",
    "objective/scores": "score",
    "objective/rlhf_reward": "reward",
}


def parity_settings() -> dict[str, Any]:
    """Settings of both trainers: a rate so high that weights move a hundred tolerances and clips bind."""
    return {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "vf_coef": 0.1, "kl_coef": 0.05}


def parity_models(inputs: Inputs) -> Any:
    """Make scores and values of some size, in place; returns a reference that is not the policy."""
    inputs.reward.score.weight.data *= 50
    inputs.value.score.weight.data *= 5
    reference = copy.deepcopy(inputs.policy)
    generator = torch.Generator().manual_seed(1)
    for weight in reference.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return reference


def main() -> None:
    """TRL's update, ours, the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=FOLDER, help="where TRL 1.12 is, or shall be")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    install(arguments.peer)
    with tempfile.TemporaryDirectory() as name:
        folder = write_inputs(Path(name) / "inputs", SHAPE, ends=False)
        (folder / "replies.json").write_text(json.dumps(draw_replies(SHAPE)))
        differences, moved = compare(folder, Path(name), arguments.peer)
    for key, difference in differences.items():
        print(f"{key:24} {difference:.2e}")
    passed = all(difference <= arguments.tolerance for difference in differences.values())
    print(json.dumps({"passed": passed, "tolerance": arguments.tolerance, "moved": moved, "differences": differences}))
    sys.exit(not passed)


def draw_replies(shape: Shape) -> list[list[int]]:
    """A reply of words at random to each prompt, all of full length."""
    draw = random.Random(2)
    words = range(FIRST_WORD, shape.vocabulary)
    return [draw.choices(words, k=shape.longest_reply) for _ in range(shape.episodes)]


def compare(folder: Path, scratch: Path, peer: Path) -> tuple[dict[str, float], float]:
    """The largest difference of each thing compared, and how far the weights moved at most."""
    from ppo_vs_trl import run_child

    job = Job("update", str(folder), 1, 1, str(scratch / "theirs.pt"), peer=str(peer))
    run_child(job, scratch)
    theirs = torch.load(job.out)
    start = {name: weight.clone() for name, weight in load_inputs(folder).policy.state_dict().items()}
    ours = our_update(folder, theirs, str(scratch / "ours"))
    differences = {"loss of a minibatch": _furthest(torch.tensor(ours["losses"]), torch.tensor(theirs["losses"]))}
    for name, own in FIGURES.items():
        differences[own] = abs(ours["log"][own] - theirs["log"][name])
    for model in ("policy", "value"):
        assert ours[model].keys() == theirs[model].keys()
        pairs = [(weight, theirs[model][name]) for name, weight in ours[model].items()]
        differences[f"{model}'s weights"] = max(_furthest(own, other) for own, other in pairs)
    return differences, max(_furthest(theirs["policy"][name], weight) for name, weight in start.items())


def our_update(folder: Path, theirs: dict[str, Any], output: str) -> dict[str, Any]:
    """One round of ours on the same replies, its minibatches those of `theirs`. Keys as theirs has."""
    torch.set_num_threads(1)
    inputs, replies = load_inputs(folder), json.loads((folder / "replies.json").read_text())
    trainer = our_trainer(inputs, parity_models(inputs), output)
    places: dict[int, int] = {}  # where a prompt is in our batch
    losses: list[float] = []
    backward = trainer.accelerator.backward

    def given(policy: Any, prompts: list[list[int]], uniforms: torch.Tensor) -> list[list[int]]:
        rows = [inputs.prompts.index(prompt) for prompt in prompts]
        places.update({row: at for at, row in enumerate(rows)})
        return [replies[row] for row in rows]

    def noted(loss: torch.Tensor, **kwargs: Any) -> None:
        losses.append(loss.item())
        backward(loss, **kwargs)

    trainer.engine.generate = given
    trainer.checked = True  # the self-check would ask whether it drew these replies itself
    trainer.minibatch_order = lambda epoch, num_episodes: [
        places[theirs["rows"][row]] for row in theirs["orders"][epoch]
    ]
    trainer.accelerator.backward = noted
    trainer.train()
    log = next(row for row in trainer.state.log_history if "kl" in row)
    weights = {"policy": inputs.policy.state_dict(), "value": inputs.value.state_dict()}
    # Policy and value model have a backward pass each: a minibatch's loss is the sum of two.
    sums = [policy + value for policy, value in zip(losses[::2], losses[1::2], strict=True)]
    return {"losses": sums, "log": log} | weights


def our_trainer(inputs: Inputs, reference: Any, output: str) -> Any:
    """Ours with what TRL does not do turned off: penalty, bias, clipping of the gradient."""
    from datasets import Dataset

    from rlhf.ppo import PPOConfig, PPOTrainer

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        # The reward model at the reply's last token; given as a classifier, it would see an eos after it.
        texts = [f"{prompt} {reply}" for prompt, reply in zip(prompts, completions, strict=True)]
        rows = [inputs.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        return [inputs.reward(input_ids=row).logits.item() for row in rows]

    arguments = PPOConfig(
        **(both_trainers(SHAPE, 1, output) | parity_settings()),
        max_steps=1,
        max_new_tokens=SHAPE.longest_reply,
        micro_batch_tokens=2**20,  # a minibatch is one micro-batch, so one backward pass
        missing_eos_penalty=0.0,
        score_bias=0.0,
        max_grad_norm=1e9,
    )
    return PPOTrainer(
        inputs.policy,
        reward,
        arguments,
        Dataset.from_dict({"prompt_ids": inputs.prompts}),
        processing_class=inputs.tokenizer,
        ref_model=reference,
        value_model=inputs.value,
    )


def _furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


if __name__ == "__main__":
    main()
