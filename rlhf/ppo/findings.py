"""What the doctor's checks are made of: a figure judged, and what it says where there is too little to judge by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlhf.ppo.series import Row, series

Verdict = Literal["good", "watch", "bad", "unknown"]
Judgement = tuple[Verdict, str, str, str]  # verdict, figure, meaning, mend

FEW_ROUNDS = 4  # a quarter of them is at least one round: fewer show no trend
FEW_ROUNDS_OF_HALF = 8  # the same of the last half


@dataclass(frozen=True)
class Finding:
    """One check: its verdict, the figure it rests on, what that means, and what to change (config keys)."""

    name: str
    verdict: Verdict
    figure: str
    meaning: str
    mend: str


@dataclass(frozen=True)
class Check:
    """How to judge one thing: `judge` takes the finite figures of `key`, all rows (one a step) and the config.

    With fewer than `needed` figures the finding is unknown. `trained`: only of rounds in which the
    policy learned, those after the value model's warm-up.
    """

    name: str
    key: str
    judge: Callable[[list[float], list[Row], Row], Judgement]
    needed: int = FEW_ROUNDS
    trained: bool = False

    def __call__(self, rows: list[Row], config: Row) -> Finding:
        """The finding on these rows."""
        warmup = config.get("value_warmup_steps") or 0
        kept = [row for row in rows if row["step"] > warmup] if self.trained else rows
        values = series(kept, self.key)
        if len(values) >= self.needed:
            return Finding(self.name, *self.judge(values, kept, config))
        if values or len(kept) < FEW_ROUNDS:
            return Finding(self.name, *early(len(values), self.needed, "rounds"))
        return Finding(self.name, *absent(self.key))


def early(seen: int, needed: int, what: str) -> Judgement:
    """The judgement where there are not enough figures yet."""
    return "unknown", "too early", f"There are {seen} of the {needed} {what} it takes to tell.", "Ask again later."


def absent(key: str) -> Judgement:
    """The judgement where a run does not log what it takes."""
    return "unknown", "not logged", f"No row holds `{key}`.", "Train with this version's `rlhf ppo`, which logs it."
