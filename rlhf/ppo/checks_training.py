"""The doctor's checks of the training: numbers that are numbers, ratios, steps, the value model, time.

Each has the figures of its key, all rows (one a step) and the run's config; see `Check`. The thresholds'
sources stand in diagnostics.py.
"""

import itertools
import math
from statistics import fmean

from rlhf.ppo.findings import Judgement, absent
from rlhf.ppo.series import Row, ends, number, series, sustained

# |pi/pi_old - 1| above which to watch, and above which it is bad. Float32 rounds to about 1e-6, TF32 to 1e-3. In
# bf16 a 3M model's largest deviation between batches of 1 and of 32 was 0.10 of 1,261 tokens: 0.05 alone is no
# proof, but 0.2 is the default cliprange, and the clip would bind before anything was learned.
RATIO_FLOAT32 = (1e-4, 1e-2)
RATIO_HALF = (0.05, 0.2)
FIRST_KL_FLOAT32 = 1e-3  # nats a token: the same weights give 0 up to rounding
FIRST_KL_HALF = 1e-2  # rounding of single tokens is of this size, and their mean far below it
CLIP_TINY = 0.001  # less than one token in a thousand: the clip might as well not be there
CLIP_WATCH, CLIP_BAD = 0.2, 0.3  # clipped tokens give no gradient: at 0.3 a third of the round is thrown away
UPDATE_WATCH, UPDATE_BAD = 0.05, 0.1  # Spinning Up: a target is "usually small, 0.01 or 0.05"; Schulman: no spikes
STOPPED_WATCH = 0.5  # target_kl is a brake for the odd round; in every second one it drives
EXPLAINED_WATCH, EXPLAINED_BAD = 0.3, 0.0  # 0 is what a constant reaches (Schulman)
SKIPPED_BAD = 0.01  # of all updates; a single one may be one odd batch


def skipped(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Updates without a finite gradient are few, and no figure is NaN or infinite."""
    mend = "Lower learning_rate, or train in float32 (bf16: false, dtype: float32)."
    for row, key in itertools.product(rows, ("loss", "score", "kl", "approx_kl")):
        if isinstance(row.get(key), float) and not math.isfinite(row[key]):
            meaning = f"`{key}` is no number in round {row['step']}: the training has broken down there."
            return "bad", f"{key} {row[key]}", meaning, mend
    if not values:
        return absent("updates_skipped")
    # A row holds the mean of its rounds.
    share = fmean(values) / (config.get("num_ppo_epochs", 4) * config.get("num_mini_batches", 4))
    if not share:
        return "good", "none", "Every update had a finite gradient.", mend
    verdict = "bad" if share > SKIPPED_BAD else "watch"
    return verdict, f"{share:.1%} of all updates", "Updates were dropped: their gradients were no numbers.", mend


def first_ratio(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Before its first step a round's policy gives each token the probability that the rollout gave it."""
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


def first_kl(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Before any update policy and reference are the same model."""
    first = next(row for row in rows if number(row, "kl") is not None)
    length = number(first, "length")
    if not length or first["step"] > 1 + (config.get("value_warmup_steps") or 0):
        meaning = f"The first KL logged is of round {first['step']}, after updates, or without a length."
        return "unknown", "not logged", meaning, "Set logging_steps: 1 to see it in the next run."
    kl = first["kl"] / length
    mend = "Set reference: copy (adapter_off leaves out an adapter that model_name_or_path came with)."
    if abs(kl) > (FIRST_KL_HALF if _is_half(config) else FIRST_KL_FLOAT32):
        meaning = "The policy differs from the reference before any update, so the KL price pulls it elsewhere."
        return "bad", f"{kl:.2g} nats a token", meaning, mend
    return "good", f"{kl:.2g} nats a token", "Policy and reference start as the same model.", mend


def update_size(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """A round's updates stay near the policy that wrote the replies, and are not cut short."""
    size, stopped = sustained(values), fmean(series(rows, "updates_stopped") or [0.0])
    figure, mend = f"{size:.2g} nats a token", "Lower learning_rate or num_ppo_epochs"
    if size > UPDATE_WATCH:
        meaning = "A round moves the policy far from the one that wrote the replies: learning becomes unsteady."
        return "bad" if size > UPDATE_BAD else "watch", figure, meaning, f"{mend}, or set target_kl: {UPDATE_WATCH}."
    if stopped > STOPPED_WATCH:
        meaning = f"target_kl ends the updates early in {stopped:.0%} of the rounds: much of each is never used."
        return "watch", figure, meaning, f"{mend}, or raise target_kl."
    return "good", figure, "Updates stay near the policy that wrote the replies.", f"{mend}."


def clip(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Some tokens reach the clip, and not many."""
    mean, high = fmean(values), sustained(values)
    if high > CLIP_WATCH:
        meaning = f"{high:.0%} of the tokens hit the clip: a round's steps are too large, and much of it is lost."
        mend = "Lower learning_rate or num_ppo_epochs."
        return "bad" if high > CLIP_BAD else "watch", f"{high:.2g}", meaning, mend
    mend = "Raise learning_rate or num_ppo_epochs."
    if mean < CLIP_TINY:
        return "watch", f"{mean:.2g}", "The policy hardly moves within a round: the steps are tiny.", mend
    return "good", f"{mean:.2g}", "The steps are neither tiny nor too large.", mend


def value(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """The value model foresees the returns."""
    explained, mend = ends(values)[1], "Raise value_learning_rate or value_warmup_steps."
    if config.get("lam", 1.0) < 1:
        mend = "Raise value_learning_rate or value_warmup_steps, or set lam: 1.0, which rests on the value model least."
    if explained < EXPLAINED_BAD:
        return "bad", f"{explained:.2f}", "The value model is worse than a constant: it adds noise.", mend
    if explained < EXPLAINED_WATCH:
        return "watch", f"{explained:.2f}", "The value model foresees little, so advantages are noisy.", mend
    return "good", f"{explained:.2f}", "The value model foresees much of the returns.", mend


def time(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Where a round's time goes; told, not judged."""
    mends = {
        "rollout": "Raise generation_batch_size, or set engine: vllm_server.",
        "reward": "Raise per_device_train_batch_size: reward functions then get more replies at a time.",
        "reference": "Raise micro_batch_tokens, or set reference: copy where it is offload.",
        "update": "Raise micro_batch_tokens as far as memory/peak_mb allows.",
    }
    seconds = {part: fmean(series(rows, f"seconds/{part}") or [0.0]) for part in mends}
    parts = sorted(mends, key=lambda part: -seconds[part])
    total = sum(seconds.values()) or 1.0
    figure = ", ".join(f"{part} {seconds[part] / total:.0%}" for part in parts)
    meaning = f"A round takes {total:.3g} s, and most of it goes to {parts[0]}."
    return "good", figure, meaning, mends[parts[0]]


def _is_half(config: Row) -> bool:
    """Whether the policy computes in 16 bits."""
    quantized = config.get("load_in_4bit") or config.get("load_in_8bit")
    return bool(config.get("bf16") or config.get("fp16") or quantized) or str(config.get("dtype")).endswith("float16")
