"""A reward that fails while held-out prompts are looked at: a checkpoint is left, and the run goes on from it."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.ppo import PPOTrainer
from tests import ppo_cases as cases

SETTINGS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 100}


def _at_call(number: int, fail: Callable[[], float]) -> Any:
    """Counts the letter e, but at its n-th call gives what `fail` does."""
    calls: list[int] = []

    def fragile(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        calls.append(1)
        return [fail()] * len(prompts) if len(calls) == number else cases.count_e(prompts, completions)

    return fragile


def _raise() -> float:
    raise KeyError("gold")


def _hang() -> float:
    threading.Event().wait()
    return 0.0


def _guarded(policy: Path, place: Path, gold: Any = cases.count_e, **values: Any) -> PPOTrainer:
    values = {**SETTINGS, "guard_steps": 2, "guard_prompts": 8, **values}
    return cases.trainer(policy, place, gold_func=gold, eval_dataset=cases.prompts(8), **values)


def _step(checkpoint: Path) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


@pytest.mark.parametrize(
    ("fail", "message"),
    [(lambda: math.nan, "returned nan"), (_raise, "KeyError: 'gold'"), (_hang, "no answer within 0.5 seconds")],
    ids=["nan", "raises", "hangs"],
)
def test_a_gold_that_fails_leaves_a_checkpoint(policy_folder: Path, tmp_path: Path, fail: Any, message: str) -> None:
    # The guard asks it at the start and after round 2.
    trainer = _guarded(policy_folder, tmp_path, _at_call(2, fail), reward_timeout=0.5)
    with pytest.raises(UserError, match=f"reward `fragile`: {message}"):
        trainer.train()
    assert _step(tmp_path / "checkpoint-2") == 2


def test_a_reward_that_fails_in_an_evaluation_leaves_a_checkpoint(policy_folder: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 3, "eval_dataset": cases.prompts(8)}
    trainer = cases.trainer(policy_folder, tmp_path, _at_call(4, lambda: math.nan), **values)  # rounds 1 to 3, then it
    with pytest.raises(UserError, match="reward `fragile`: returned nan"):
        trainer.train()
    assert _step(tmp_path / "checkpoint-3") == 3
    assert [row["step"] for row in cases.log(trainer)] == [1, 2, 3]


def test_an_error_outside_of_training_saves_nothing(policy_folder: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "max_steps": 2, "eval_dataset": cases.prompts(8)}
    trainer = cases.trainer(policy_folder, tmp_path, _at_call(3, lambda: math.nan), **values)
    trainer.train()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="reward `fragile`: returned nan"):
        trainer.evaluate()
    assert sorted(tmp_path.iterdir()) == before


def test_a_gold_that_fails_at_the_start_leaves_nothing(policy_folder: Path, tmp_path: Path) -> None:
    trainer = _guarded(policy_folder, tmp_path, _at_call(1, _raise))
    with pytest.raises(UserError, match="reward `fragile`: KeyError"):
        trainer.train()
    assert list(tmp_path.glob("checkpoint-*")) == []


@pytest.mark.parametrize("call", [2, 3])
def test_the_run_goes_on_with_the_look_that_failed(policy_folder: Path, tmp_path: Path, call: int) -> None:
    """After round 2, and after the last; looks and weights in the end are those of a run that nothing disturbed."""
    whole = _guarded(policy_folder, tmp_path / "whole")
    whole.train()
    with pytest.raises(UserError):
        _guarded(policy_folder, tmp_path / "cut", _at_call(call, _raise)).train()
    resumed = _guarded(policy_folder, tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{2 * (call - 1)}"))
    assert [look["step"] for look in whole.ppo.guard["looks"]] == [0, 2, 4]
    assert resumed.ppo.guard == whole.ppo.guard
    for name, weight in cases.weights(whole).items():
        assert torch.equal(weight, cases.weights(resumed)[name])


# ---- What the guard logs for the doctor


def test_looks_worse_than_the_best_are_counted_back_from_the_last() -> None:
    from rlhf.ppo.guard import worse_in_a_row

    high, low = [1.0, 1.1, 0.9, 1.0], [0.5, 0.7, 0.4, 0.5]
    looks = [{"step": n, "gold": gold, "score": float(n)} for n, gold in enumerate([low, high, low, low])]
    assert [worse_in_a_row(looks[: n + 1]) for n in range(4)] == [0, 0, 1, 2]
    looks.append({"step": 4, "gold": low, "score": 0.5})  # the score fell too: nothing is being gamed
    assert worse_in_a_row(looks) == 0


def test_the_doctor_hears_how_many_looks_in_a_row_were_worse(policy_folder: Path, tmp_path: Path) -> None:
    from rlhf.ppo.diagnostics import diagnose

    trainer = _guarded(policy_folder, tmp_path, max_steps=2)
    trainer.train()
    assert [row["guard/worse"] for row in trainer.state.log_history if "guard/gold" in row] == [0.0, 0.0]

    def verdict(worse: float) -> tuple[str, str]:
        # The fall is within what the means alone could be by chance.
        figures = zip([0.3, 0.6, 0.2, 0.5], [0.0, 0.1, 0.2, 0.3], strict=True)
        rows: list[dict[str, Any]] = [
            {"step": 10 * n, "guard/gold": gold, "guard/score": score} for n, (gold, score) in enumerate(figures)
        ]
        rows[-1]["guard/worse"] = worse
        found = diagnose(rows, {"guard_steps": 10, "guard_patience": 2})
        return next((f.verdict, f.meaning) for f in found if f.name == "gold against score")

    assert verdict(0.0)[0] == "good"
    assert verdict(1.0)[0] == "watch"
    assert "since step 10" in verdict(1.0)[1] and "at 1 of the 2 looks" in verdict(1.0)[1]
    assert verdict(2.0)[0] == "bad"
