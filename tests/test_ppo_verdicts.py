"""The doctor's verdicts, each on rows made by hand and at its boundaries."""

from typing import Any

import pytest

from rlhf.ppo.diagnostics import diagnose
from tests.doctor_cases import CONFIG, finding, healthy, with_figures

NAN = float("nan")


def looks(gold: list[float], score: list[float]) -> list[dict[str, Any]]:
    """Rows of the guard, from step 0 on, every 10 rounds."""
    return [
        {"step": 10 * n, "guard/gold": g, "guard/score": s} for n, (g, s) in enumerate(zip(gold, score, strict=True))
    ]


@pytest.mark.parametrize(
    ("dtype", "deviation", "verdict"),
    [
        ("float32", 1e-4, "good"),
        ("float32", 1.1e-4, "watch"),
        ("float32", 1e-2, "watch"),
        ("float32", 1.1e-2, "bad"),
        ("bfloat16", 0.05, "good"),
        ("bfloat16", 0.051, "watch"),
        ("bfloat16", 0.2, "watch"),
        ("bfloat16", 0.21, "bad"),
    ],
)
def test_the_first_ratio_is_one_up_to_the_rounding_of_the_precision(dtype: str, deviation: float, verdict: str) -> None:
    rows = with_figures(healthy(), ratio__first_deviation=[0.0] * 7 + [deviation] + [0.0] * 4)
    assert finding("first-minibatch ratio", rows, dtype=dtype).verdict == verdict


@pytest.mark.parametrize(
    "half",
    [{"bf16": True}, {"fp16": True}, {"dtype": "float16"}, {"dtype": "torch.bfloat16"}, {"load_in_4bit": True}],
)
def test_sixteen_bits_are_known_by_any_of_their_keys(half: dict[str, Any]) -> None:
    rows = with_figures(healthy(), ratio__first_deviation=0.04)
    assert finding("first-minibatch ratio", rows, **half).verdict == "good"
    assert finding("first-minibatch ratio", rows).verdict == "bad"


@pytest.mark.parametrize(
    ("kl", "half", "verdict"),
    # Of 40 tokens: 0.04 nats a reply are 0.001 a token.
    [(0.04, False, "good"), (0.041, False, "bad"), (-0.041, False, "bad"), (0.4, True, "good"), (0.41, True, "bad")],
)
def test_the_kl_starts_at_nothing(kl: float, half: bool, verdict: str) -> None:
    rows = with_figures(healthy(), kl=[kl] + [5.0] * 11)
    assert finding("KL at the start", rows, bf16=half).verdict == verdict


def test_a_first_row_after_updates_does_not_show_the_start() -> None:
    rows = with_figures(healthy(), kl=3.0)[4:]
    found = finding("KL at the start", rows)
    assert (found.verdict, found.mend) == ("unknown", "Set logging_steps: 1 to see it in the next run.")
    assert "round 5" in found.meaning
    # Rounds 1 to 4 warmed up the value model: the policy of round 5's rollout is still the start.
    assert finding("KL at the start", rows, value_warmup_steps=4).verdict == "bad"
    assert finding("KL at the start", rows, value_warmup_steps=3).verdict == "unknown"


@pytest.mark.parametrize(("rate", "verdict"), [(0.8, "good"), (0.79, "watch"), (0.5, "watch"), (0.49, "bad")])
def test_replies_should_end(rate: float, verdict: str) -> None:
    found = finding("replies that end", with_figures(healthy(), eos_rate=[1.0] * 9 + [rate] * 3))
    assert found.verdict == verdict
    assert ("max_new_tokens (96)" in found.meaning) == (verdict != "good")


@pytest.mark.parametrize(
    ("fraction", "verdict", "key"),
    [
        (0.0009, "watch", "Raise learning_rate"),
        (0.001, "good", ""),
        (0.2, "good", ""),
        (0.21, "watch", "Lower learning_rate"),
        (0.3, "watch", "Lower learning_rate"),
        (0.31, "bad", "Lower learning_rate"),
    ],
)
def test_steps_are_neither_tiny_nor_large(fraction: float, verdict: str, key: str) -> None:
    found = finding("clip fraction", with_figures(healthy(8), clip_fraction=fraction))
    assert found.verdict == verdict
    assert found.mend.startswith(key)


def test_steps_that_became_large_count_and_one_odd_round_does_not() -> None:
    assert finding("clip fraction", with_figures(healthy(), clip_fraction=[0.1] * 9 + [0.4] * 3)).verdict == "bad"
    assert (
        finding("clip fraction", with_figures(healthy(), clip_fraction=[0.1] * 5 + [0.9] + [0.1] * 6)).verdict == "good"
    )
    assert finding("update size", with_figures(healthy(), approx_kl=[0.01] * 9 + [0.2] * 3)).verdict == "bad"
    # A learning rate that decays to 0 ends with tiny steps: nothing is wrong with it.
    assert finding("clip fraction", with_figures(healthy(), clip_fraction=[0.1] * 9 + [0.0] * 3)).verdict == "good"


def test_warm_up_rounds_of_the_value_model_say_nothing_about_steps() -> None:
    rows = with_figures(healthy(), clip_fraction=[0.0] * 8 + [0.25] * 4, approx_kl=[0.0] * 8 + [0.06] * 4)
    assert finding("clip fraction", rows, value_warmup_steps=8).figure == "0.25"
    assert finding("update size", rows, value_warmup_steps=8).verdict == "watch"
    assert finding("update size", rows, value_warmup_steps=9).figure == "too early"


@pytest.mark.parametrize(("size", "verdict"), [(0.05, "good"), (0.06, "watch"), (0.1, "watch"), (0.11, "bad")])
def test_updates_stay_near_the_policy_that_wrote_the_replies(size: float, verdict: str) -> None:
    assert finding("update size", with_figures(healthy(8), approx_kl=size)).verdict == verdict


def test_a_target_kl_that_ends_most_rounds_is_told() -> None:
    often = with_figures(healthy(), updates_stopped=[1.0] * 7 + [0.0] * 5)
    assert finding("update size", often).verdict == "watch"
    assert "58%" in finding("update size", often).meaning  # 7 of 12
    half = with_figures(healthy(), updates_stopped=[1.0] * 6 + [0.0] * 6)
    assert finding("update size", half).verdict == "good"


@pytest.mark.parametrize(("explained", "verdict"), [(0.3, "good"), (0.29, "watch"), (0.0, "watch"), (-0.01, "bad")])
def test_the_value_model_should_beat_a_constant(explained: float, verdict: str) -> None:
    rows = with_figures(healthy(), explained_variance=[-3.0] * 9 + [explained] * 3)
    assert finding("explained variance", rows).verdict == verdict


def test_a_value_model_that_foresees_nothing_can_be_done_without() -> None:
    rows = with_figures(healthy(), explained_variance=0.0)
    assert "lam: 1.0" in finding("explained variance", rows, lam=0.95).mend
    assert "lam" not in finding("explained variance", rows, lam=1.0).mend


@pytest.mark.parametrize(
    ("last", "rising", "verdict"),
    [
        (60.0, True, "good"),
        (61.0, True, "bad"),
        (61.0, False, "watch"),
        (27.0, True, "good"),
        (26.0, True, "bad"),
        (26.0, False, "watch"),
    ],
)
def test_length_that_moves_with_the_score_is_length_hacking(last: float, rising: bool, verdict: str) -> None:
    rows = with_figures(healthy(), length=[40.0] * 6 + [last] * 6)
    rows = rows if rising else with_figures(rows, score=[0.0, 1.0] * 6)
    found = finding("reply length", rows)
    assert found.verdict == verdict
    assert ("length hacking" in found.meaning) == (verdict == "bad")


def test_replies_that_are_shorter_because_they_end_are_no_hack() -> None:
    rows = with_figures(healthy(), length=[90.0] * 6 + [40.0] * 6, eos_rate=[0.5] * 6 + [0.61] * 6)
    assert finding("reply length", rows).verdict == "watch"
    rows = with_figures(rows, eos_rate=[0.5] * 6 + [0.59] * 6)
    assert finding("reply length", rows).verdict == "bad"


@pytest.mark.parametrize(("last", "verdict"), [(0.8, "good"), (0.79, "watch"), (0.4, "watch"), (0.39, "bad")])
def test_entropy_is_held_against_the_start(last: float, verdict: str) -> None:
    assert finding("entropy", with_figures(healthy(), entropy=[2.0] * 3 + [1.0] * 6 + [last] * 3)).verdict == verdict


def test_the_start_of_the_entropy_is_its_first_four_rounds() -> None:
    # A quarter of 24 rounds are 6, of which the entropy has left 2 behind.
    rows = with_figures(healthy(24), entropy=[2.0] * 4 + [0.3] * 20)
    assert finding("entropy", rows).verdict == "bad"  # 0.3/2.0; the mean of 6 would make it 0.3/1.43


def test_a_score_that_rises_by_chance_alone_has_not_risen() -> None:
    assert finding("score", healthy()).meaning == "The score rises."
    noise = [0.0, 1.0, 0.2, 0.9, 0.1, 0.8, 0.3, 1.0, 0.0, 0.9, 0.2, 1.0]
    assert finding("score", with_figures(healthy(), score=noise, kl=0.0)).meaning.startswith("The score holds")


def test_a_score_that_falls_is_bad() -> None:
    assert finding("score", with_figures(healthy(), score=[-0.1 * n for n in range(12)])).verdict == "bad"


def test_a_flat_score_under_a_climbing_kl_is_saturation() -> None:
    saturated = with_figures(healthy(16), score=[0.1 * min(n, 8) for n in range(16)])
    assert finding("score", saturated).verdict == "watch"
    assert "KL climbs" in finding("score", saturated).meaning
    held = with_figures(saturated, kl=[0.5 * min(n, 8) for n in range(16)])
    assert finding("score", held).verdict == "good"
    barely = with_figures(saturated, kl=[10.0] * 8 + [10.0 + 0.1 * n for n in range(8)])  # by 6%
    assert finding("score", barely).verdict == "good"
    more = with_figures(saturated, kl=[10.0] * 8 + [10.0 + 0.2 * n for n in range(8)])  # by 12%
    assert finding("score", more).verdict == "watch"


@pytest.mark.parametrize(("last", "verdict"), [(0.049, "bad"), (0.051, "good"), (0.0, "bad")])
def test_scores_that_no_longer_differ_teach_nothing(last: float, verdict: str) -> None:
    assert finding("score", with_figures(healthy(), score__std=[1.0] * 9 + [last] * 3)).verdict == verdict


def test_gold_that_falls_under_a_climbing_score_is_overoptimisation() -> None:
    gold = [0.0, 0.3, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    found = finding("gold against score", looks(gold, [0.1 * n for n in range(9)]))
    assert found.verdict == "bad"
    assert "step 20" in found.meaning
    # Not where the score falls with it.
    fallen = finding("gold against score", looks(gold[2:], [-0.1 * n for n in range(7)]))
    assert (fallen.verdict, "best at step 0" in fallen.meaning) == ("watch", True)


def test_a_straight_fall_of_the_gold_needs_more_than_three_steps() -> None:
    # With steps of d the noise is d/sqrt(2) and a difference's standard error d: k steps are k errors.
    score = [0.1 * n for n in range(5)]
    assert finding("gold against score", looks([0.4, 0.3, 0.2, 0.1], score[:4])).verdict == "watch"
    assert finding("gold against score", looks([0.4, 0.3, 0.2, 0.1, 0.0], score)).verdict == "bad"


def test_a_short_fall_of_the_gold_is_watched() -> None:
    score = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert finding("gold against score", looks([0.0, 0.3, 0.6, 0.5, 0.4], score)).verdict == "watch"
    assert finding("gold against score", looks([0.0, 0.3, 0.5, 0.6, 0.5], score)).verdict == "good"
    assert finding("gold against score", looks([0.0, 0.3, 0.5, 0.6, 0.5], score), guard_patience=1).verdict == "watch"
    # As much noise as fall.
    assert finding("gold against score", looks([0.3, 0.6, 0.2, 0.5, 0.3], score)).verdict == "good"


def test_without_a_guard_overoptimisation_is_unknown() -> None:
    rows = [{key: value for key, value in row.items() if "guard" not in key} for row in healthy()]
    found = finding("gold against score", rows, guard_steps=0)
    assert (found.verdict, found.figure) == ("unknown", "no guard")
    assert "guard_steps" in found.mend
    assert finding("gold against score", rows).figure == "too early"
    assert finding("gold against score", looks([1.0, 0.9], [0.0, 0.1])).figure == "too early"


@pytest.mark.parametrize(("kl", "verdict"), [(15.9, "good"), (16.0, "watch"), (19.9, "watch"), (20.0, "bad")])
def test_the_kl_is_held_against_its_ceiling(kl: float, verdict: str) -> None:
    assert finding("KL and its ceiling", with_figures(healthy(), kl=[0.0] * 5 + [kl] + [5.0] * 6)).verdict == verdict


def test_without_a_ceiling_the_kl_is_told_and_not_judged() -> None:
    found = finding("KL and its ceiling", healthy(), kl_ceiling=None)
    assert (found.verdict, found.figure) == ("unknown", "5.5 nats")
    assert "kl_ceiling" in found.mend


@pytest.mark.parametrize(
    ("skipped", "verdict", "figure"),
    # 12 rounds of 4 passes of 4 steps: 192 updates.
    [(0.0, "good", "none"), (1.5, "watch", "0.8% of all updates"), (2.0, "bad", "1.0% of all updates")],
)
def test_skipped_updates_are_counted(skipped: float, verdict: str, figure: str) -> None:
    found = finding("skipped updates", with_figures(healthy(), updates_skipped=[skipped] + [0.0] * 11))
    assert (found.verdict, found.figure) == (verdict, figure)


@pytest.mark.parametrize("key", ["loss", "score", "kl", "approx_kl"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_figure_that_is_no_number_is_bad(key: str, value: float) -> None:
    found = finding("skipped updates", with_figures(healthy(), **{key: [0.0] * 6 + [value] + [0.0] * 5}))
    assert found.verdict == "bad"
    assert f"`{key}` is no number in round 7" in found.meaning


def test_an_explained_variance_of_equal_returns_is_no_fault() -> None:
    rows = with_figures(healthy(), explained_variance=[NAN] * 6 + [0.5] * 6)
    assert {found.verdict for found in diagnose(rows, CONFIG)} == {"good"}


def test_where_the_time_goes() -> None:
    found = finding("time", healthy())
    assert found.figure == "rollout 50%, update 30%, reward 10%, reference 10%"
    assert found.meaning == "A round takes 10 s, and most of it goes to rollout."
    assert "generation_batch_size" in found.mend
    slow = finding("time", with_figures(healthy(), seconds__reward=30.0))
    assert "reward 77%" in slow.figure  # 30 of 39 seconds
