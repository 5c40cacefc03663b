"""`rlhf doctor RUN`: what a PPO run's metrics say, in plain words: what is healthy, what is not, what to change.

Thresholds are rules of thumb, each with its reason. Sources: Schulman 2016, "The Nuts and Bolts of Deep
RL Research"; Spinning Up's PPO (Achiam 2018); Gao et al. 2023, "Scaling laws for reward model
overoptimization". Where none is named, none is known.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from rlhf.errors import UserError
from rlhf.runs import read_run

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]  # a round's metrics, or an evaluation's
Verdict = Literal["good", "watch", "bad", "unknown"]
Judgement = tuple[Verdict, str, str, str]  # verdict, figure, meaning, mend

FEW_ROUNDS = 4  # a quarter of them is at least one round: fewer show no trend
FEW_ROUNDS_OF_HALF = 8  # the same of the last half
# |pi/pi_old - 1| above which to watch, and above which it is bad. Float32 rounds to about 1e-6, TF32 to 1e-3. In
# bf16 a 3M model's largest deviation between batches of 1 and of 32 was 0.10 of 1,261 tokens: 0.05 alone is no
# proof, but 0.2 is the default cliprange, and the clip would bind before anything was learned.
RATIO_FLOAT32 = (1e-4, 1e-2)
RATIO_HALF = (0.05, 0.2)
FIRST_KL_FLOAT32 = 1e-3  # nats a token: the same weights give 0 up to rounding
FIRST_KL_HALF = 1e-2  # rounding of single tokens is of this size, and their mean far below it
EOS_WATCH, EOS_BAD = 0.8, 0.5  # compare warns of more than a fifth unfinished, too
CLIP_TINY = 0.001  # less than one token in a thousand: the clip might as well not be there
CLIP_WATCH, CLIP_BAD = 0.2, 0.3  # clipped tokens give no gradient: at 0.3 a third of the round is thrown away
UPDATE_WATCH, UPDATE_BAD = 0.05, 0.1  # Spinning Up: a target is "usually small, 0.01 or 0.05"; Schulman: no spikes
STOPPED_WATCH = 0.5  # target_kl is a brake for the odd round; in every second one it drives
EXPLAINED_WATCH, EXPLAINED_BAD = 0.3, 0.0  # 0 is what a constant reaches (Schulman)
LENGTH_LONGER, LENGTH_SHORTER = 1.5, 0.67  # and about its inverse
EOS_ROSE = 0.1  # by so much more replies end: shorter ones are then no trick
ENTROPY_WATCH, ENTROPY_BAD = 0.4, 0.2  # of the start's; a policy without entropy cannot explore (Schulman)
STD_VANISHED = 0.05  # of the start's: whitened advantages would be noise made large
KL_CLIMB = 1.1  # by so much the KL must grow over the last half to count as climbing
GOLD_ERRORS = 3  # standard errors, not two: the best look is picked for being high (3% false alarms in 20 looks)
CEILING_NEAR = 0.8  # of kl_ceiling: time to look before the run stops
SKIPPED_BAD = 0.01  # of all updates; a single one may be one odd batch


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
        values = _series(kept, self.key)
        if len(values) >= self.needed:
            return Finding(self.name, *self.judge(values, kept, config))
        if values or len(kept) < FEW_ROUNDS:
            return Finding(self.name, *_early(len(values), self.needed, "rounds"))
        return Finding(self.name, *_absent(self.key))


def examine(folder: str | Path) -> list[Finding]:
    """The findings on a PPO run folder, finished or not.

    Raises UserError where it is no run folder, not a PPO run, or holds no metrics yet.
    """
    run = read_run(folder)
    if run.stage != "ppo":
        raise UserError(f"{folder}: is a {run.stage} run; doctor reads PPO runs: give the output_dir of `rlhf ppo`")
    path = Path(folder) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # torn: by a kill, or because it is being written now
    if not by_step(rows):
        raise UserError(f"{path}: holds no metrics yet; wait for the first round, then ask again")
    return diagnose(rows, run.config)


def diagnose(rows: list[Row], config: Row) -> list[Finding]:
    """Every check on the rows of metrics.jsonl; `config` is run.json's."""
    rounds = by_step(rows)
    return [check(rounds, config) for check in CHECKS]


def table(findings: Sequence[Finding]) -> "Table":
    """The findings for the console, worst first, readable at 80 columns; mends only where not good."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    styles = {"bad": "bold red", "watch": "yellow", "unknown": "dim", "good": "green"}
    counts = [f"{sum(f.verdict == verdict for f in findings)} {verdict}" for verdict in styles]
    shown = Table(box=box.SIMPLE_HEAD, caption=", ".join(counts), caption_justify="left", padding=(0, 1, 1, 0))
    shown.add_column("verdict", min_width=7)
    shown.add_column("figure", max_width=24)
    shown.add_column("what it means")
    for finding in sorted(findings, key=lambda finding: list(styles).index(finding.verdict)):
        sentence = Text(finding.meaning)
        if finding.verdict != "good":
            sentence.append(f"\n-> {finding.mend}", style="bold")
        figure = Text.assemble((finding.name, "bold"), "\n", finding.figure)
        shown.add_row(Text(finding.verdict, styles[finding.verdict]), figure, sentence)
    return shown


def by_step(rows: list[Row]) -> list[Row]:
    """One row a step, training's and evaluation's together.

    Where the step falls back, the run was resumed from a checkpoint: what lay beyond it is gone.
    """
    merged: dict[float, Row] = {}
    for row in rows:
        step = _number(row, "step") if isinstance(row, dict) else None
        if step is not None:
            merged = {old: kept for old, kept in merged.items() if old <= step}
            merged[step] = merged.get(step, {}) | row
    return list(merged.values())


def _skipped(values: list[float], rows: list[Row], config: Row) -> Judgement:
    mend = "Lower learning_rate, or train in float32 (bf16: false, dtype: float32)."
    for row, key in itertools.product(rows, ("loss", "score", "kl", "approx_kl")):
        if isinstance(row.get(key), float) and not math.isfinite(row[key]):
            meaning = f"`{key}` is no number in round {row['step']}: the training has broken down there."
            return "bad", f"{key} {row[key]}", meaning, mend
    if not values:
        return _absent("updates_skipped")
    # A row holds the mean of its rounds.
    share = fmean(values) / (config.get("num_ppo_epochs", 4) * config.get("num_mini_batches", 4))
    if not share:
        return "good", "none", "Every update had a finite gradient.", mend
    verdict = "bad" if share > SKIPPED_BAD else "watch"
    return verdict, f"{share:.1%} of all updates", "Updates were dropped: their gradients were no numbers.", mend


def _first_ratio(values: list[float], rows: list[Row], config: Row) -> Judgement:
    half = _is_half(config)
    watch, bad = RATIO_HALF if half else RATIO_FLOAT32
    figure = f"off 1 by up to {max(values):.2g}"
    if max(values) > bad:
        meaning = "Rollout and update see different policies, so every step starts from a wrong ratio."
        mend = "Try engine: hf and attn_implementation: eager; if it stays, it is a fault of the trainer: report it."
        return "bad", figure, meaning, mend
    precision = "bf16: false and dtype: float32" if half else "tf32: false"
    mend = f"Set {precision} for a few rounds: what then stays is no rounding."
    if max(values) > watch:
        meaning = "That is more than rounding should make: rollout and update may not see quite the same policy."
        return "watch", figure, meaning, mend
    return "good", figure, "Rollout and update see the same policy.", mend


def _first_kl(values: list[float], rows: list[Row], config: Row) -> Judgement:
    first = next(row for row in rows if _number(row, "kl") is not None)
    length = _number(first, "length")
    if not length or first["step"] > 1 + (config.get("value_warmup_steps") or 0):
        meaning = f"The first KL logged is of round {first['step']}, after updates, or without a length."
        return "unknown", "not logged", meaning, "Set logging_steps: 1 to see it in the next run."
    kl = first["kl"] / length
    mend = "Set reference: copy (adapter_off leaves out an adapter that model_name_or_path came with)."
    if abs(kl) > (FIRST_KL_HALF if _is_half(config) else FIRST_KL_FLOAT32):
        meaning = "The policy differs from the reference before any update, so the KL price pulls it elsewhere."
        return "bad", f"{kl:.2g} nats a token", meaning, mend
    return "good", f"{kl:.2g} nats a token", "Policy and reference start as the same model.", mend


def _score(values: list[float], rows: list[Row], config: Row) -> Judgement:
    first, last = _ends(values)
    figure = f"{first:.3g} -> {last:.3g}"
    spread, kl = _series(rows, "score/std"), _series(rows, "kl")
    if spread and _ends(spread)[1] <= max(STD_VANISHED * _ends(spread)[0], 1e-6):
        meaning = "All replies now get about the same score, so there is nothing left to tell them apart by."
        return "bad", figure, meaning, "Lower max_steps to end here, or pay by a reward that still tells them apart."
    if _moved(values) < 0:
        meaning = "The score has fallen by more than chance: the run unlearns what it is paid for."
        return "bad", figure, meaning, "Lower learning_rate, or kl_coef where the KL costs more than the score gives."
    late, mend = kl[len(kl) // 2 :], "Use a checkpoint from the middle; next time raise kl_coef or lower max_steps."
    climbs = len(late) >= FEW_ROUNDS and _moved(late) > 0 and _ends(late)[1] > KL_CLIMB * _ends(late)[0]
    if climbs and _moved(values[len(values) // 2 :]) <= 0:
        meaning = "The score is flat over the last half while the KL climbs: the policy drifts and gains nothing."
        return "watch", figure, meaning, mend
    return "good", figure, "The score rises." if _moved(values) > 0 else "The score holds; it has not risen.", mend


def _gold(values: list[float], rows: list[Row], config: Row) -> Judgement:
    looks = [row for row in rows if _number(row, "guard/gold") is not None and _number(row, "guard/score") is not None]
    if not looks and not config.get("guard_steps"):
        meaning = "Nothing holds the score against a gold, so overoptimisation would not show."
        return "unknown", "no guard", meaning, "Give a gold and set guard_steps: 10."
    patience = config.get("guard_patience") or 2
    if len(looks) <= patience:
        return _early(len(looks), patience + 1, "looks at the gold")
    gold, score = ([row[key] for row in looks] for key in ("guard/gold", "guard/score"))
    peak = max(range(len(gold)), key=gold.__getitem__)
    figure, mend = f"gold {gold[0]:.3g} -> {gold[-1]:.3g}", "Use the policy in best/; next time raise kl_coef."
    since = f"since step {looks[peak]['step']} while the score climbs"
    climbs = _moved(score[peak:]) > 0
    if climbs and _moved(gold[peak:], GOLD_ERRORS) < 0:
        return "bad", figure, f"The gold falls {since}: the policy learns the reward's faults.", mend
    in_a_row = all(gold[at] < gold[at - 1] and score[at] > score[peak] for at in range(-patience, 0))
    if in_a_row or (climbs and _moved(gold[peak:]) < 0):
        return "watch", figure, f"The gold falls {since}; it may be chance still.", mend
    if _moved(gold) < 0:
        return "watch", figure, f"The gold falls; it was best at step {looks[peak]['step']}.", mend
    return "good", figure, "The gold does not fall while the score climbs.", mend


def _ceiling(values: list[float], rows: list[Row], config: Row) -> Judgement:
    peak, ceiling = max(values), config.get("kl_ceiling")
    if ceiling is None:
        meaning = "No ceiling is set, so nothing stops a policy that runs away."
        return "unknown", f"{peak:.3g} nats", meaning, "Set kl_ceiling to the nats a reply that you are ready to pay."
    figure = f"{peak:.3g} of {ceiling:.3g} nats a reply"
    mend = "Raise kl_coef or set kl_target; raise kl_ceiling on purpose only."
    if peak >= ceiling:
        return "bad", figure, "The KL has reached its ceiling, where the run stops.", mend
    if peak >= CEILING_NEAR * ceiling:
        return "watch", figure, "The KL is near its ceiling, where the run stops.", mend
    return "good", figure, "The KL is well below its ceiling.", mend


def _update_size(values: list[float], rows: list[Row], config: Row) -> Judgement:
    size, stopped = _sustained(values), fmean(_series(rows, "updates_stopped") or [0.0])
    figure, mend = f"{size:.2g} nats a token", "Lower learning_rate or num_ppo_epochs"
    if size > UPDATE_WATCH:
        meaning = "A round moves the policy far from the one that wrote the replies: learning becomes unsteady."
        return "bad" if size > UPDATE_BAD else "watch", figure, meaning, f"{mend}, or set target_kl: {UPDATE_WATCH}."
    if stopped > STOPPED_WATCH:
        meaning = f"target_kl ends the updates early in {stopped:.0%} of the rounds: much of each is never used."
        return "watch", figure, meaning, f"{mend}, or raise target_kl."
    return "good", figure, "Updates stay near the policy that wrote the replies.", f"{mend}."


def _clip(values: list[float], rows: list[Row], config: Row) -> Judgement:
    mean, high = fmean(values), _sustained(values)
    if high > CLIP_WATCH:
        meaning = f"{high:.0%} of the tokens hit the clip: a round's steps are too large, and much of it is lost."
        mend = "Lower learning_rate or num_ppo_epochs."
        return "bad" if high > CLIP_BAD else "watch", f"{high:.2g}", meaning, mend
    mend = "Raise learning_rate or num_ppo_epochs."
    if mean < CLIP_TINY:
        return "watch", f"{mean:.2g}", "The policy hardly moves within a round: the steps are tiny.", mend
    return "good", f"{mean:.2g}", "The steps are neither tiny nor too large.", mend


def _value(values: list[float], rows: list[Row], config: Row) -> Judgement:
    explained, mend = _ends(values)[1], "Raise value_learning_rate or value_warmup_steps."
    if explained < EXPLAINED_BAD:
        return "bad", f"{explained:.2f}", "The value model is worse than a constant: it adds noise.", mend
    if explained < EXPLAINED_WATCH:
        return "watch", f"{explained:.2f}", "The value model foresees little, so advantages are noisy.", mend
    return "good", f"{explained:.2f}", "The value model foresees much of the returns.", mend


def _eos(values: list[float], rows: list[Row], config: Row) -> Judgement:
    rate, mend = _ends(values)[1], "Raise max_new_tokens, or missing_eos_penalty so that an end pays."
    if rate >= EOS_WATCH:
        return "good", f"{rate:.0%}", "Replies end by themselves.", mend
    much = "Most" if rate < EOS_BAD else "Many"
    meaning = (
        f"{much} replies are cut off at max_new_tokens ({config.get('max_new_tokens')}), and so is what is scored."
    )
    return "bad" if rate < EOS_BAD else "watch", f"{rate:.0%}", meaning, mend


def _length(values: list[float], rows: list[Row], config: Row) -> Judgement:
    first, last = _ends(values)
    figure, mend = f"{first:.0f} -> {last:.0f} tokens", "Read some; raise kl_coef, or mend what pays for length."
    if first * LENGTH_SHORTER <= last <= first * LENGTH_LONGER:
        return "good", figure, "Replies keep about the length they had at first.", mend
    how = "longer" if last > first else "shorter"
    ended_first, ended_last = _ends(_series(rows, "eos_rate") or [0.0])
    if last < first and ended_last - ended_first >= EOS_ROSE:
        mend = "Read some; if they say too little, lower missing_eos_penalty."
        return "watch", figure, "Replies have grown much shorter, in part because more of them end.", mend
    if _moved(_series(rows, "score")) > 0:
        meaning = f"Replies grow much {how} while the score rises: it may be won by length alone (length hacking)."
        return "bad", figure, meaning, mend
    return "watch", figure, f"Replies have grown much {how}, and the score does not rise with it.", mend


def _entropy(values: list[float], rows: list[Row], config: Row) -> Judgement:
    first, last = fmean(values[: min(FEW_ROUNDS, len(values) // 4)]), _ends(values)[1]
    figure, mend = f"{first:.2g} -> {last:.2g} nats", "Go back to a checkpoint before the fall; raise kl_coef."
    if last < first * ENTROPY_BAD:
        return "bad", figure, "The policy says nearly the same each time, and so has nothing to learn from.", mend
    if last < first * ENTROPY_WATCH:
        return "watch", figure, "Replies vary much less than at the start.", mend
    return "good", figure, "Replies still vary.", mend


def _time(values: list[float], rows: list[Row], config: Row) -> Judgement:
    mends = {
        "rollout": "Raise generation_batch_size, or set engine: vllm_server.",
        "reward": "Raise per_device_train_batch_size: reward functions then get more replies at a time.",
        "reference": "Raise micro_batch_tokens, or set reference: copy where it is offload.",
        "update": "Raise micro_batch_tokens as far as memory/peak_mb allows.",
    }
    seconds = {part: fmean(_series(rows, f"seconds/{part}") or [0.0]) for part in mends}
    parts = sorted(mends, key=lambda part: -seconds[part])
    total = sum(seconds.values()) or 1.0
    figure = ", ".join(f"{part} {seconds[part] / total:.0%}" for part in parts)
    meaning = f"A round takes {total:.3g} s, and most of it goes to {parts[0]}."
    return "good", figure, meaning, mends[parts[0]]


CHECKS = (
    Check("skipped updates", "updates_skipped", _skipped, needed=0),
    Check("first-minibatch ratio", "ratio/first_deviation", _first_ratio, needed=1),
    Check("KL at the start", "kl", _first_kl, needed=1),
    Check("score", "score", _score, FEW_ROUNDS_OF_HALF),
    Check("gold against score", "guard/gold", _gold, needed=0),
    Check("KL and its ceiling", "kl", _ceiling, needed=1),
    Check("update size", "approx_kl", _update_size, trained=True),
    Check("clip fraction", "clip_fraction", _clip, trained=True),
    Check("explained variance", "explained_variance", _value),
    Check("replies that end", "eos_rate", _eos),
    Check("reply length", "length", _length),
    Check("entropy", "entropy", _entropy),
    Check("time", "seconds/rollout", _time, needed=1),
)


def _early(seen: int, needed: int, what: str) -> Judgement:
    return "unknown", "too early", f"There are {seen} of the {needed} {what} it takes to tell.", "Ask again later."


def _absent(key: str) -> Judgement:
    return "unknown", "not logged", f"No row holds `{key}`.", "Train with this version's `rlhf ppo`, which logs it."


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _series(rows: list[Row], key: str) -> list[float]:
    """The figures of this key that are numbers, in the order of the steps."""
    return [value for row in rows if (value := _number(row, key)) is not None]


def _is_half(config: Row) -> bool:
    """Whether the policy computes in 16 bits."""
    quantized = config.get("load_in_4bit") or config.get("load_in_8bit")
    return bool(config.get("bf16") or config.get("fp16") or quantized) or str(config.get("dtype")).endswith("float16")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last quarter."""
    quarter = max(1, len(values) // 4)
    return fmean(values[:quarter]), fmean(values[-quarter:])


def _sustained(values: Sequence[float]) -> float:
    """The mean of all or of the last quarter, whichever is larger: one odd round does not make it."""
    return max(fmean(values), _ends(values)[1])


def _moved(values: Sequence[float], errors: float = 2) -> int:
    """1 or -1 where the last quarter lies above or below the first by more than chance, else 0.

    Chance is within so many standard errors of the difference. A round's variance is half the mean square of the
    steps from round to round, which a trend hardly enlarges (von Neumann 1941).
    """
    if len(values) < 2:
        return 0
    first, last = _ends(values)
    variance = fmean((after - before) ** 2 for before, after in itertools.pairwise(values)) / 2
    bound = errors * math.sqrt(variance * 2 / max(1, len(values) // 4)) + 1e-9 * max(map(abs, values))
    return 0 if abs(last - first) <= bound else int(math.copysign(1, last - first))
