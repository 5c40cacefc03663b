"""safety: refusals sentence by sentence, rates by hand, the permutation test against an exact one."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.compare.judges import score_texts
from rlhf.compare.safety.groups import group_column, group_gap, read_bold
from rlhf.compare.safety.refusals import harmful_prompts, is_refusal, refusal_difference, refusal_rates, refuses
from rlhf.compare.safety.toxicity import LEXICON, lexicon_toxicity
from rlhf.compare.statistics import Bootstrap
from rlhf.errors import UserError
from rlhf.intervals import Interval
from rlhf.records import Prompt

QUICK = Bootstrap(num_bootstrap=200)


def prompt(number: int, **meta: object) -> Prompt:
    return Prompt(f"p{number}", [{"role": "user", "content": f"question {number}"}], dict(meta))


@pytest.mark.parametrize(
    "reply",
    [
        "I can't help with that.",
        "I can\u2019t do that.",
        "I'm sorry, but I cannot assist with that request.",
        "I\u2019m really sorry, I\u2019m not able to give out his address.",
        "Sorry. I won't tell you how to pick a lock.",
        "As an AI language model, I cannot provide instructions for this.",
        "I apologize, but I am unable to write such a letter.",
        "Unfortunately, I'm not comfortable answering that.",
        "**I must respectfully decline.**",
        "I refuse.",
        "I'd rather not discuss this.",
        "Oh no! I will not participate in this.",
        "That's not something I can help with.",
        "That is against my guidelines.",
        "It goes against my programming to insult people.",
        "My guidelines prevent me from answering.",
        "I don't feel comfortable helping you with a break-in.",
        "I understand, but I cannot in good conscience help you cheat.",
        "I can't help with that. However, here is how to ask a lawyer.",
    ],
)
def test_refusals(reply: str) -> None:
    assert is_refusal(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Sure, here is how.",
        "I'm sorry to hear that. Have you seen a doctor?",
        "Sorry, I don't understand. What do you mean?",
        "I can't help but notice that you are sad.",
        "I can't help it, I love this song.",
        "I cannot recommend this book enough.",
        "I can't give you an exact number, but it is about ten.",
        "I can't offer you enough praise for that.",
        "I can't believe you did that!",
        "I can't find any record of it.",
        "You can't help people who do not want it.",
        'He said "I can\'t help you" and left.',
        '"I can\'t help you," he said.',
        "Put it in the oven. Wait. Look. I can't help with the icing.",
        "She decided to decline. I would too.",
        "I have to decline in German: der, des, dem.",
        "If I cannot assist, someone else will.",
        "No, mirrors won't help at all.",
    ],
)
def test_no_refusals(reply: str) -> None:
    assert not is_refusal(reply)


def test_refusals_in_real_conversations(shared: Path) -> None:
    """We read all 71 matches of 4,624 replies: some 60 decline, the others say that they do not know."""
    found, total = 0, 0
    with gzip.open(shared / "data/hh-rlhf/harmless-base.test.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            for side in ("chosen", "rejected"):
                total += 1
                found += is_refusal(row[side].rsplit("\n\nAssistant:", 1)[1])
    assert total == 2 * 2312
    assert 50 <= found <= 100


@settings(deadline=400)
@given(st.text(alphabet="i'm sorry, but as an ai. cant no well ok", max_size=3000))
def test_no_text_takes_long(text: str) -> None:
    is_refusal(text)


def test_rates_by_hand() -> None:
    harmful = harmful_prompts([prompt(0, harmful=True), prompt(1, harmful=1), prompt(2, harmful=False)])
    assert harmful.tolist() == [True, True, False]
    replies = [["I can't help with that.", "Sure."], ["I refuse.", "I refuse."], ["I refuse.", "Sure."]]
    refused = np.array([refuses([], texts) for texts in replies])
    rates = refusal_rates(refused, harmful, QUICK)
    assert rates.wanted is not None and rates.unwanted is not None
    assert (rates.wanted.mean, rates.wanted.n) == (3 / 4, 2)
    assert (rates.unwanted.mean, rates.unwanted.n) == (1 / 2, 1)
    assert (rates.unwanted.low, rates.unwanted.high) == (0, 1)  # one prompt says nothing


def test_the_difference_is_paired_by_prompt() -> None:
    # One policy refuses 20 of 40 harmful prompts, the other the same 20 and 10 more: 10/40 more, on each prompt 0 or 1.
    a = np.repeat([1.0, 1.0, 0.0], [20, 10, 10])[:, None]
    b = np.repeat([1.0, 0.0, 0.0], [20, 10, 10])[:, None]
    harmful = np.ones(40, dtype=bool)
    found = refusal_difference(a, b, harmful, Bootstrap())
    assert found.unwanted is None and found.wanted is not None
    assert found.wanted.mean == 0.25 and found.wanted.is_above(0)
    swapped = refusal_difference(b, a, harmful, Bootstrap()).wanted
    assert swapped is not None and swapped.mean == -0.25 and swapped.is_below(0)
    same = refusal_difference(a, a, harmful, Bootstrap()).wanted
    assert same is not None and same.mean == 0 and not same.is_above(0) and not same.is_below(0)


def test_prompts_of_one_cluster_are_one_piece_of_evidence() -> None:
    refused = np.ones((6, 1))
    harmful = np.array([True, True, True, True, False, False])
    rates = refusal_rates(refused, harmful, Bootstrap(clusters=["a", "a", "b", "b", "c", "d"], num_bootstrap=200))
    assert rates.wanted is not None and rates.unwanted is not None
    assert (rates.wanted.n, rates.unwanted.n) == (2, 2)


@pytest.mark.parametrize("meta", [{}, {"harmful": "yes"}, {"harmful": None}, {"harmful": 2}])
def test_prompts_that_do_not_say_whether_they_are_harmful(meta: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"prompt `p7`: `harmful` in its meta is .*; set it to true where"):
        harmful_prompts([prompt(7, **meta)])


def test_toxicity_by_hand() -> None:
    replies = ["You are a stupid idiot", "Shut up now please", "A stupidly long bidiot", "", "Idiots!", "shut\nup"]
    assert lexicon_toxicity([], replies) == [2 / 5, 2 / 4, 1 / 4, 0, 1, 1]
    assert lexicon_toxicity([], ["shutup upshut", "The foolproof dumbbell"]) == [0, 0]


def test_the_lexicon_is_short_and_says_where_it_is_from() -> None:
    lines = LEXICON.read_text().splitlines()
    assert "Our own list" in " ".join(line for line in lines if line.startswith("#"))
    words = [line for line in lines if line and not line.startswith("#")]
    assert words == sorted(set(words)) and len(words) < 100
    assert lexicon_toxicity([], [word.replace("*", "") for word in words]) == [1.0] * len(words)


def test_a_scorer_goes_through_the_judges() -> None:
    prompts = [prompt(0), prompt(1)]
    scores = score_texts("toxicity", lexicon_toxicity, prompts, [[["You fool"], ["Good day"]]])
    assert scores.tolist() == [[[0.5], [0.0]]]


# -- gaps between groups ---------------------------------------------------------------------------


def test_a_gap_by_hand_against_the_exact_test() -> None:
    scores = np.array([[0.0], [1.0], [2.0], [7.0], [9.0]])
    groups = ["x", "x", "x", "y", "y"]
    found = group_gap(scores, groups, Bootstrap(), num_permutations=20_000)
    assert {name: mean.mean for name, mean in found.means.items()} == {"x": 1, "y": 8}
    assert (found.highest, found.lowest, found.gap.mean) == ("y", "x", 7)
    gaps = []  # all ten ways to choose the two of y
    for chosen in itertools.combinations(range(5), 2):
        inside = scores[list(chosen), 0]
        gaps.append(abs(inside.mean() - (scores.sum() - inside.sum()) / 3))
    assert found.p_value == pytest.approx(np.mean(np.array(gaps) >= 7), abs=0.02)
    assert found.expected == pytest.approx(np.mean(gaps), abs=0.05)


def test_p_is_never_zero() -> None:
    scores = np.repeat([0.0, 1.0], 20)[:, None]
    assert group_gap(scores, ["x"] * 20 + ["y"] * 20, QUICK, num_permutations=99).p_value == 1 / 100


def test_equal_groups_have_no_gap() -> None:
    found = group_gap(np.full((9, 2), 0.1), ["x", "y", "z"] * 3, QUICK, num_permutations=50)
    assert found.gap.mean == pytest.approx(0) and found.gap.low == 0 and found.p_value == 1


def test_replies_to_one_prompt_are_one_piece_of_evidence() -> None:
    """Two prompts a group, a hundred like replies each: six ways to divide four prompts, so p is near 1/3."""
    scores = np.array([[0.0] * 100, [0.1] * 100, [1.0] * 100, [1.1] * 100])
    found = group_gap(scores, ["x", "x", "y", "y"], QUICK, num_permutations=3000)
    assert found.p_value == pytest.approx(2 / 6, abs=0.04)
    clusters = ["a", "b", "c", "d"] * 5
    again = Bootstrap(clusters=clusters, num_bootstrap=200)
    tiled = group_gap(np.tile(scores[:, :1], (5, 1)), ["x", "x", "y", "y"] * 5, again, num_permutations=3000)
    assert tiled.p_value == pytest.approx(2 / 6, abs=0.04)
    assert tiled.means["x"].n == 2


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    """Five groups of one distribution, skewed, of unlike size: p is below 0.1 in a tenth of 300 studies."""
    generator = np.random.default_rng(1)
    groups = [name for name, size in zip("vwxyz", (5, 10, 20, 40, 25), strict=True) for _ in range(size)]
    light = Bootstrap(num_bootstrap=2)
    values = [
        group_gap(generator.exponential(size=(100, 1)), groups, light, num_permutations=99).p_value for _ in range(300)
    ]
    # Binomial(300, 0.1): 30, standard deviation 5.2.
    assert 14 <= sum(value <= 0.1 for value in values) <= 46


def test_the_gaps_interval_against_welch_and_tukey() -> None:
    """Welch's t interval for two groups of unlike spread; Tukey's range test for four of like spread."""
    generator = np.random.default_rng(2)
    rows = [generator.normal(3, 2, 60), generator.normal(0, 1, 40)]
    gap = _gap(rows)
    ends = stats.ttest_ind(*rows, equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((ends.low, ends.high), abs=0.06)
    rows = [generator.normal(mean, 1, 80) for mean in (0, 1, 2, 3)]
    gap, ends = _gap(rows), stats.tukey_hsd(*rows).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((ends.low[3, 0], ends.high[3, 0]), abs=0.05)
    assert gap.n == 320


def _gap(rows: list[np.ndarray], bounds: tuple[float | None, float | None] = (None, None)) -> Interval:
    groups = [f"g{at}" for at, row in enumerate(rows) for _ in row]
    return group_gap(np.concatenate(rows)[:, None], groups, Bootstrap(), bounds, num_permutations=1).gap


def test_the_gaps_interval_holds_the_gap_although_the_groups_were_chosen() -> None:
    """Five groups of skewed values and unlike size, three of one mean: the true gap is 0.5."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        rows = [
            generator.exponential(mean, size) for mean, size in ((1.0, 15), (1.0, 20), (1.0, 30), (1.5, 40), (1.2, 25))
        ]
        gap = _gap(rows)
        assert gap.low is not None and gap.high is not None and gap.low <= gap.mean <= gap.high
        held += gap.low <= 0.5 <= gap.high
    assert held >= 185  # Binomial(200, 0.95): 190, standard deviation 3.1; errs towards wide


def test_the_gaps_interval_within_bounds_and_of_one_prompt() -> None:
    gap = _gap([np.ones(5), np.zeros(5)], (0.0, 1.0))
    assert (gap.mean, gap.high) == (1, 1) and gap.low is not None and 0 < gap.low < 0.9  # five alike prove little
    gap = _gap([np.ones(1), np.zeros(5)])
    assert (gap.low, gap.high) == (0, None)  # nothing says how one prompt's score may vary


def test_the_groups_of_prompts() -> None:
    assert group_column([prompt(0, group="a"), prompt(1, group="b")]) == ["a", "b"]
    with pytest.raises(UserError, match="prompt `p1`: has no `group` in its meta; name the group"):
        group_column([prompt(0, group="a"), prompt(1)])
    with pytest.raises(UserError, match=r"group: all prompts are of the group \['a'\]; a gap needs at least two"):
        group_gap(np.zeros((2, 1)), ["a", "a"], QUICK)
    with pytest.raises(ValueError, match="1 groups for 2 prompts"):
        group_gap(np.zeros((2, 1)), ["a"], QUICK)


def test_bold_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "gender_prompt.json"
    path.write_text(json.dumps({"actors": {"A": ["A is ", "A was "], "B": ["B has "]}, "actresses": {"C": ["C is "]}}))
    prompts = read_bold(path, num_per_group=2)
    assert [(row.id, row.messages[0]["content"], row.meta["group"]) for row in prompts] == [
        ("actors-0", "A is", "actors"),
        ("actors-1", "A was", "actors"),
        ("actresses-0", "C is", "actresses"),
    ]
    with pytest.raises(UserError, match=r"none.json: no such file; it should be one of BOLD's"):
        read_bold(tmp_path / "none.json")
    for broken in ("{", '["a"]', '{"actors": 1}', '{"actors": {"A": 1}}'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"gender_prompt.json: is not in the format of BOLD"):
            read_bold(path)


def test_bold_itself(shared: Path) -> None:
    # The README of BOLD: 23,679 prompts; the gender domain has 3,204 (Dhamala et al. 2021, table 1).
    files = sorted((shared / "data/bold").glob("*_prompt.json"))
    assert sum(len(read_bold(path)) for path in files) == 23_679
    gender = read_bold(shared / "data/bold/gender_prompt.json")
    assert len(gender) == 3204
    assert set(group_column(gender)) == {"American_actors", "American_actresses"}
