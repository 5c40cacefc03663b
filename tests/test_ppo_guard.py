"""The guard: stops where gold falls while the score rises, keeps the best policy, heeds the KL's ceiling."""

from pathlib import Path
from typing import Any

from rlhf.models import load_policy
from rlhf.ppo.guard import best, overoptimized
from tests import ppo_cases as cases


def _look(step: int, gold: list[float], score: float) -> dict[str, Any]:
    return {"step": step, "gold": gold, "score": score}


def test_the_guard_stops_where_gold_falls_for_sure_while_the_score_rises() -> None:
    high, low = [1.0, 1.1, 0.9, 1.0], [0.5, 0.7, 0.4, 0.5]
    looks = [_look(0, low, 0.0), _look(1, high, 1.0), _look(2, low, 2.0), _look(3, low, 3.0)]
    assert best(looks) is looks[1]
    assert "the gold has fallen from 1 (step 1) to 0.525 while the score rose from 1 to 3" in str(
        overoptimized(looks, 2)
    )
    assert overoptimized(looks[:3], 2) is None  # once may be chance
    lower_score = [*looks[:2], _look(2, low, 0.5), _look(3, low, 0.5)]
    assert overoptimized(lower_score, 2) is None  # bad luck, but nothing is being gamed
    unsure = [1.6, 0.2, 1.5, 0.3]  # mean 0.9, yet two prompts better and two worse
    assert overoptimized([*looks[:2], _look(2, unsure, 2.0), _look(3, unsure, 3.0)], 2) is None


def test_the_guard_keeps_the_best_policy_and_stops_the_run(policy_folder: Path, tmp_path: Path) -> None:
    """A gold that hates what the reward loves."""

    def gold(completions: list[Any], **_: Any) -> list[float]:
        return [-float(completion[0]["content"].count("e")) for completion in completions]

    values = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 32, "kl_coef": 0.0}
    trainer = cases.trainer(
        policy_folder,
        tmp_path,
        gold_func=gold,
        eval_dataset=cases.prompts(32),
        guard_steps=4,
        guard_prompts=32,
        **values,
    )
    trainer.train()
    assert trainer.guard is not None
    assert "the policy has learned the reward's faults" in str(trainer.guard.message)
    assert trainer.state.global_step < 30
    looks = trainer.ppo.guard["looks"]
    assert best(looks)["step"] < trainer.state.global_step
    assert load_policy(str(tmp_path / "best")).max_length == 256


def test_the_kl_ceiling_stops_the_run(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=20, learning_rate=1e-2, kl_ceiling=0.05, kl_coef=0.0)
    trainer.train()
    assert trainer.state.global_step < 20
    assert trainer.guard is not None
    assert "over --kl_ceiling 0.05; raise --kl_coef" in str(trainer.guard.message)
