"""The recipe of benchmarks/demo_compare.py: the demo's own, with sweeps, checkpoints kept, and simulated votes."""

from pathlib import Path
from typing import Any

import yaml

from rlhf.config import packaged, read_yaml
from rlhf.demo.run import DEMO_STAGES, RECIPE
from rlhf.loop import STAGES, run_recipe
from rlhf.records import Run

BETAS = (0.03, 0.5)  # beside the demo's own
KL_COEFS = (0.1, 1.0)
BEST_OF = 16
NUM_VOTES = 400
_KEPT = {"save_strategy": "steps", "save_steps": 0.25, "save_only_model": True}  # four checkpoints, the last the run

# Sizes that show the wiring and not the result.
TINY: dict[str, dict[str, Any]] = {
    "demo-write": {
        "num_texts": 60,
        "num_demonstrations": 40,
        "num_test_demonstrations": 8,
        "num_train_prompts": 8,
        "num_reward_prompts": 24,
        "num_validation_prompts": 8,
        "num_test_prompts": 12,
    },
    "pretrain": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_steps": 3, "warmup_steps": 1},
    "sft": {"max_steps": 3},
    "sample": {"num_prompts": 12, "max_new_tokens": 8},
    "reward": {"max_steps": 2},
    "dpo": {"max_steps": 4, "num_kl_prompts": 4, "max_new_tokens": 8},
    "ppo": {"max_steps": 4, "per_device_train_batch_size": 8, "num_mini_batches": 2, "max_new_tokens": 8},
    "compare": {"num_prompts": 12, "max_new_tokens": 8, "num_bootstrap": 200},
    "demo-vote": {"num_votes": 10},
}


def run_study(folder: Path, seed: int, tiny: bool = False) -> dict[str, Run]:
    """One seed's stages; what is finished in the folder is read and not run again, by the recipe that lies there."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(study_recipe(), sort_keys=False))
    stages = read_yaml(path)["stages"]
    over: dict[str, dict[str, Any]] = {name: {"seed": seed} for name in stages}
    if tiny:
        over = {name: one | TINY.get(name.split(".")[0], {}) for name, one in over.items()}
    return run_recipe(str(path), str(folder), over, STAGES | DEMO_STAGES, _announce)


def study_recipe() -> dict[str, Any]:
    """The demo's stages as they are, then DPO's and PPO's sweeps, one comparison of all, votes, and one with votes."""
    stages: dict[str, dict[str, Any]] = dict(read_yaml(packaged(RECIPE))["stages"])
    compare = stages.pop("compare")
    dpo, ppo = stages.pop("dpo"), stages.pop("ppo")
    stages["dpo"], stages["ppo"] = dpo | _KEPT, ppo | _KEPT
    sweeps = {f"dpo.beta-{beta:g}": dpo | _KEPT | {"beta": beta} for beta in BETAS}
    sweeps |= {f"ppo.kl-{kl_coef:g}": ppo | _KEPT | {"kl_coef": kl_coef} for kl_coef in KL_COEFS}
    compare = compare | {"num_prompts": 300}  # all there are: a vote is on one of them
    frontier = {"checkpoints": True, "best_of_n": BEST_OF, "frontier_prompts": 200}
    frontier |= {"sweeps": [f"{name.split('.')[0]}={name}/" for name in sweeps]}
    votes = {"comparison": "compare/", "num_votes": NUM_VOTES}
    return {
        "output_dir": "runs/demo-study",
        "stages": {
            **stages,
            **sweeps,
            "compare": compare | frontier,
            "demo-vote": votes,
            "compare.people": compare | {"people": "demo-vote/labels.db"},
            # The same number on the two that are hardest to tell apart.
            "demo-vote.pair": votes | {"between": ["dpo", "ppo"], "overlap": 3},
            "compare.pair": compare | {"people": "demo-vote.pair/labels.db"},
        },
    }


def _announce(name: str, number: int, of: int, run: Run | None) -> None:
    if run is not None:
        print(f"[{number}/{of}] {name}: {run.seconds} s", flush=True)
