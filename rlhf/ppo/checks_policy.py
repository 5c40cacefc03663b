"""The doctor's checks of what becomes of the policy: score and gold, KL, how replies end, their length, how they vary.

Each has the figures of its key, all rows (one a step) and the run's config; see `Check`. The thresholds'
sources stand in diagnostics.py.
"""

from statistics import fmean

from rlhf.ppo.findings import FEW_ROUNDS, Judgement, early
from rlhf.ppo.series import Row, ends, moved, number, series

EOS_WATCH, EOS_BAD = 0.8, 0.5  # compare warns of more than a fifth unfinished, too
LENGTH_LONGER, LENGTH_SHORTER = 1.5, 0.67  # and about its inverse
EOS_ROSE = 0.1  # by so much more replies end: shorter ones are then no trick
ENTROPY_WATCH, ENTROPY_BAD = 0.4, 0.2  # of the start's; a policy without entropy cannot explore (Schulman)
STD_VANISHED = 0.05  # of the start's: whitened advantages would be noise made large
KL_CLIMB = 1.1  # by so much the KL must grow over the last half to count as climbing
GOLD_ERRORS = 3  # standard errors, not two: the best look is picked for being high (3% false alarms in 20 looks)
CEILING_NEAR = 0.8  # of kl_ceiling: time to look before the run stops


def score(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """The score rises, or holds, and replies still differ in it."""
    first, last = ends(values)
    figure = f"{first:.3g} -> {last:.3g}"
    spread, kl = series(rows, "score/std"), series(rows, "kl")
    if spread and ends(spread)[1] <= max(STD_VANISHED * ends(spread)[0], 1e-6):
        meaning = "All replies now get about the same score, so there is nothing left to tell them apart by."
        return "bad", figure, meaning, "Lower max_steps to end here, or pay by a reward that still tells them apart."
    if moved(values) < 0:
        meaning = "The score has fallen by more than chance: the run unlearns what it is paid for."
        return "bad", figure, meaning, "Lower learning_rate, or kl_coef where the KL costs more than the score gives."
    late, mend = kl[len(kl) // 2 :], "Use a checkpoint from the middle; next time raise kl_coef or lower max_steps."
    climbs = len(late) >= FEW_ROUNDS and moved(late) > 0 and ends(late)[1] > KL_CLIMB * ends(late)[0]
    if climbs and moved(values[len(values) // 2 :]) <= 0:
        meaning = "The score is flat over the last half while the KL climbs: the policy drifts and gains nothing."
        return "watch", figure, meaning, mend
    return "good", figure, "The score rises." if moved(values) > 0 else "The score holds; it has not risen.", mend


def gold(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """The gold does not fall while the score climbs."""
    looks = [row for row in rows if number(row, "guard/gold") is not None and number(row, "guard/score") is not None]
    if not looks and not config.get("guard_steps"):
        meaning = "Nothing holds the score against a gold, so overoptimisation would not show."
        return "unknown", "no guard", meaning, "Give a gold and set guard_steps: 10."
    patience = config.get("guard_patience") or 2
    if len(looks) <= patience:
        return early(len(looks), patience + 1, "looks at the gold")
    gold, score = ([row[key] for row in looks] for key in ("guard/gold", "guard/score"))
    peak = max(range(len(gold)), key=gold.__getitem__)
    figure, mend = f"gold {gold[0]:.3g} -> {gold[-1]:.3g}", "Use the policy in best/; next time raise kl_coef."
    since = f"since step {looks[peak]['step']} while the score climbs"
    climbs = moved(score[peak:]) > 0
    worse = int(number(looks[-1], "guard/worse") or 0)  # by the guard's test, paired over prompts
    if worse >= patience or (climbs and moved(gold[peak:], GOLD_ERRORS) < 0):
        return "bad", figure, f"The gold falls {since}: the policy learns the reward's faults.", mend
    if worse:
        meaning = f"The gold falls {since}, by more than chance at {worse} of the {patience} looks that end a run."
        return "watch", figure, meaning, mend
    in_a_row = all(gold[at] < gold[at - 1] and score[at] > score[peak] for at in range(-patience, 0))
    if in_a_row or (climbs and moved(gold[peak:]) < 0):
        return "watch", figure, f"The gold falls {since}; it may be chance still.", mend
    if moved(gold) < 0:
        return "watch", figure, f"The gold falls; it was best at step {looks[peak]['step']}.", mend
    return "good", figure, "The gold does not fall while the score climbs.", mend


def ceiling(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """The KL is below the ceiling at which the run stops."""
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


def eos(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Replies end by themselves."""
    rate, mend = ends(values)[1], "Raise max_new_tokens, or missing_eos_penalty so that an end pays."
    if rate >= EOS_WATCH:
        return "good", f"{rate:.0%}", "Replies end by themselves.", mend
    much = "Most" if rate < EOS_BAD else "Many"
    meaning = (
        f"{much} replies are cut off at max_new_tokens ({config.get('max_new_tokens')}), and so is what is scored."
    )
    return "bad" if rate < EOS_BAD else "watch", f"{rate:.0%}", meaning, mend


def length(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Replies keep about their length, or the score does not rise with it."""
    first, last = ends(values)
    figure, mend = f"{first:.0f} -> {last:.0f} tokens", "Read some; raise kl_coef, or mend what pays for length."
    if first * LENGTH_SHORTER <= last <= first * LENGTH_LONGER:
        return "good", figure, "Replies keep about the length they had at first.", mend
    how = "longer" if last > first else "shorter"
    ended_first, ended_last = ends(series(rows, "eos_rate") or [0.0])
    if last < first and ended_last - ended_first >= EOS_ROSE:
        mend = "Read some; if they say too little, lower missing_eos_penalty."
        return "watch", figure, "Replies have grown much shorter, in part because more of them end.", mend
    if moved(series(rows, "score")) > 0:
        meaning = f"Replies grow much {how} while the score rises: it may be won by length alone (length hacking)."
        return "bad", figure, meaning, mend
    return "watch", figure, f"Replies have grown much {how}, and the score does not rise with it.", mend


def entropy(values: list[float], rows: list[Row], config: Row) -> Judgement:
    """Replies still vary."""
    first, last = fmean(values[: min(FEW_ROUNDS, len(values) // 4)]), ends(values)[1]
    figure, mend = f"{first:.2g} -> {last:.2g} nats", "Go back to a checkpoint before the fall; raise kl_coef."
    if last < first * ENTROPY_BAD:
        return "bad", figure, "The policy says nearly the same each time, and so has nothing to learn from.", mend
    if last < first * ENTROPY_WATCH:
        return "watch", figure, "Replies vary much less than at the start.", mend
    return "good", figure, "Replies still vary.", mend
