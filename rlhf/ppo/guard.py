"""The guard: a second opinion on held-out prompts, the best policy kept, a stop before the score is gamed."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Guard(TrainerCallback):
    """Every `guard_steps` rounds, scores replies to held-out prompts with the gold and with the reward.

    The policy with the best mean gold is kept in `best/`. Training stops where the gold has fallen
    while the score has risen (see `overoptimized`), and where the KL passes its ceiling.
    """

    def __init__(self, trainer: Any, gold: list[Any]) -> None:
        self.trainer = trainer
        self.gold = gold
        self.message: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        looks, step = self.trainer.ppo.guard.get("looks"), state.global_step
        missed = bool(looks) and looks[-1]["step"] < step and self._is_due(args, state)  # it failed and ended the run
        if self.gold and (not looks or missed):
            self._look(step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        kl = self.trainer.ppo.figures[-1]["kl"] if self.trainer.ppo.figures else 0.0
        if args.kl_ceiling is not None and kl > args.kl_ceiling:
            self.message = (
                f"stopped at step {step}: the KL is {kl:.1f} nats a reply, over --kl_ceiling {args.kl_ceiling}; "
                "raise --kl_coef or lower --learning_rate"
            )
        if self._is_due(args, state):
            self._look(step)
            self.message = overoptimized(self.trainer.ppo.guard["looks"], args.guard_patience) or self.message
        if self.message:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"

    def _is_due(self, args: Any, state: Any) -> bool:
        return bool(self.gold) and (state.global_step % args.guard_steps == 0 or state.global_step == state.max_steps)

    def _look(self, step: int) -> None:
        trainer = self.trainer
        rows = [trainer.eval_dataset[at] for at in range(min(trainer.args.guard_prompts, len(trainer.eval_dataset)))]
        episodes = trainer.look(rows, self.gold)
        look = {
            "step": step,
            "gold": [sum(episode.gold) for episode in episodes],
            "score": _mean([episode.score for episode in episodes]),
        }
        looks = trainer.ppo.guard.setdefault("looks", [])
        looks.append(look)
        figures = {"gold": _mean(look["gold"]), "score": look["score"], "worse": float(worse_in_a_row(looks))}
        trainer.log({f"guard/{name}": figure for name, figure in figures.items()})
        if best(looks) is look:
            trainer.save_model(str(Path(trainer.args.output_dir) / "best"), _internal_call=True)


def best(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The look with the highest mean gold, the earlier of two equal ones."""
    return max(looks, key=lambda look: (_mean(look["gold"]), -look["step"]))


def worse_in_a_row(looks: list[dict[str, Any]]) -> int:
    """How many looks, back from the last, have less gold than the best one at a higher score.

    Less by more than chance: the 95% interval of the paired differences over prompts lies below 0.
    """
    top = best(looks)
    worse = [_worse(look, top) and look["score"] > top["score"] for look in reversed(looks)]
    return [*worse, False].index(False)


def overoptimized(looks: list[dict[str, Any]], patience: int) -> str | None:
    """Why to stop, or None.

    The last `patience` looks must each be worse than the best one (see `worse_in_a_row`; Gao et al. 2023, "Scaling
    laws for reward model overoptimization").
    """
    if worse_in_a_row(looks) < patience:
        return None
    top, last = best(looks), looks[-1]
    return (
        f"stopped at step {last['step']}: the gold has fallen from {_mean(top['gold']):.3g} (step {top['step']}) to "
        f"{_mean(last['gold']):.3g} while the score rose from {top['score']:.3g} to {last['score']:.3g}: the policy "
        "has learned the reward's faults; the best policy is in best/, raise --kl_coef or train a better reward model"
    )


def _worse(look: dict[str, Any], top: dict[str, Any]) -> bool:
    differences = [a - b for a, b in zip(look["gold"], top["gold"], strict=True)]
    if len(differences) < 2:
        return False
    mean = _mean(differences)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (len(differences) - 1))
    return mean + 1.96 * deviation / math.sqrt(len(differences)) < 0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
