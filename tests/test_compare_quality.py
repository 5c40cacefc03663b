r"""quality: n-grams counted by hand, BLEU against published figures, calibration and answers, and hostile texts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.compare.quality.calibration import calibration, win_probability
from rlhf.compare.quality.ngrams import Corpus, corpus_of_tokens, sole_owners
from rlhf.compare.quality.replies import (
    Replies,
    bleu,
    distinct,
    distinct_difference,
    quality,
    quality_differences,
    quantiles,
    repetition,
    self_bleu,
)
from rlhf.compare.statistics import Bootstrap
from rlhf.compare.words import words
from rlhf.intervals import Interval
from tests.hostile import HOSTILE

FEW = Bootstrap(num_bootstrap=300)
TOKENS = st.lists(st.integers(0, 3), max_size=12)

# ---- Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n\u3000\u2003", []),
        ("The cat, the hat.", ["The", "cat", ",", "the", "hat", "."]),
        ("Don't, it\u2019s 'here'", ["Don't", ",", "it\u2019s", "'", "here", "'"]),
        ("3.14 and 1,000. Yes.No", ["3.14", "and", "1,000", ".", "Yes", ".", "No"]),
        ("na\u00efve nai\u0308ve", ["na\u00efve", "nai\u0308ve"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0948"]),
        ("\u6211\u7231\u4f60\u3002", ["\u6211", "\u7231", "\u4f60", "\u3002"]),
        ("\u304b\u306a\u30ab\u30bf\u30ab\u30ca", ["\u304b", "\u306a", "\u30ab\u30bf\u30ab\u30ca"]),
        ("\u0e17\u0e35\u0e48", ["\u0e17\u0e35\u0e48"]),  # a letter with a vowel and a tone above it
        ("\u0645\u0631\u062d\u0628\u0627\u060c", ["\u0645\u0631\u062d\u0628\u0627", "\u060c"]),
        ("a\0b\x07c\u0085d", ["a", "b", "c", "d"]),
        ("a\u202eb\u200dc\u00add", ["abcd"]),  # direction, joiner, soft hyphen: hidden, and part nothing
        ("a\u200bb", ["a", "b"]),
        ("!!\U0001f600\U0001f600", ["!", "!", "\U0001f600", "\U0001f600"]),
        ("\ud800x", ["\ud800", "x"]),
        ("snake_case x=1", ["snake_case", "x", "=", "1"]),
    ],
)  # fmt: skip
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_are_parts_of_the_text_in_order(text: str) -> None:
    place = iter(text)
    assert all(character in place for word in words(text) for character in word)
    assert not any(character.isspace() for word in words(text) for character in word)


# ---- Repetition


def test_repetition_by_hand() -> None:
    # a b a b a b: ab ba ab ba ab, of which two are distinct: 3 of 5 are repeated.
    assert repetition("ababab", 2) == pytest.approx(3 / 5)
    # Five 4-grams of eight words: abcd bcda cdab dabc abcd, one of them again.
    assert repetition("abcdabcd") == pytest.approx(1 / 5)
    assert repetition("abcd") == 0
    assert math.isnan(repetition("abc"))
    assert math.isnan(repetition(""))


def test_distinct_by_hand() -> None:
    # Eight words, of which a b c d are distinct; pairs within replies: ab ba, ab bc, cd: four distinct.
    replies = Replies([["a b a", "a b c"], ["c d"]])
    one, two = distinct(replies, 1, FEW), distinct(replies, 2, FEW)
    assert one is not None and one.mean == pytest.approx(4 / 8) and one.n == 2
    assert two is not None and two.mean == pytest.approx(4 / 8)
    # Without the second prompt: a b c of six words. Without the first: c d of two.
    without = np.array([3 / 6, 2 / 2])
    error = math.sqrt(1 / 2 * ((without - without.mean()) ** 2).sum())
    assert error == pytest.approx(0.25)
    assert (one.low, one.high) == (0, 1)  # 12.7 errors to each side
    both = distinct_difference(replies, Replies([["a"], ["b"]]), 1, FEW)
    assert both is not None and both.mean == pytest.approx(-0.5) and (both.low, both.high) == (-1, 1)


def test_the_jackknife_of_distinct_by_hand() -> None:
    # Four prompts of 4, 4, 4 and 8 words, each word of its own prompt: 2, 4, 3 and 2 distinct.
    texts = [["a a b b"], ["c d e f"], ["g h i i"], ["j j j j k k k k"]]
    found = distinct(Replies(texts), 1, FEW)
    without = np.array([9 / 16, 7 / 16, 8 / 16, 9 / 12])
    error = math.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    assert found is not None and found.mean == pytest.approx(11 / 20)
    assert found.low == pytest.approx(max(0, 11 / 20 - 3.18245 * error), abs=1e-4)  # Student's t, three degrees
    assert found.high == pytest.approx(min(1, 11 / 20 + 3.18245 * error), abs=1e-4)


def test_distinct_of_clusters_and_of_nothing() -> None:
    replies = Replies([["a b"], ["a c"], ["d"]])
    found = distinct(replies, 1, Bootstrap(["p", "p", "q"]))
    assert found is not None and found.n == 2 and found.mean == pytest.approx(4 / 5)
    assert distinct(Replies([["a"]]), 1, FEW) == Interval(1.0, 0.0, 1.0, 1)
    assert distinct(Replies([[""], []]), 1, FEW) is None
    assert distinct_difference(Replies([[""]]), Replies([["a"]]), 1, FEW) is None
    alone = distinct(Replies([["a b"], [""]]), 1, FEW)  # all is in one prompt
    assert alone is not None and alone.mean == 1
    with pytest.raises(ValueError, match="1 clusters for 3 prompts"):
        distinct(replies, 1, Bootstrap(["p"]))


def test_distinct_of_paired_policies_is_surer_than_each() -> None:
    """Both write of the same things, prompt by prompt; b says everything twice."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(5, 60, 80)
    texts = [[" ".join(f"w{word}" for word in generator.integers(0, 500, size))] for size in sizes]
    a, b = Replies(texts), Replies([[f"{row[0]} {row[0]}"] for row in texts])
    own, gap = distinct(a, 1, FEW), distinct_difference(a, b, 1, FEW)
    assert own is not None and gap is not None and own.high is not None and own.low is not None
    assert gap.mean == pytest.approx(own.mean / 2) and gap.is_above(0)
    assert gap.high - gap.low < own.high - own.low  # type: ignore[operator]


def test_the_jackknife_holds_the_truth() -> None:
    """Texts of words with Zipf's frequencies: the truth is the mean over many studies of as many prompts."""
    generator = np.random.default_rng(1)
    share = 1 / np.arange(1, 301)
    share /= share.sum()

    def study() -> Replies:
        sizes = generator.integers(3, 15, 40)
        return Replies([[""]] * 40, [[generator.choice(300, size, p=share).tolist()] for size in sizes])

    found = [distinct(study(), 1, FEW) for _ in range(400)]
    truth = float(np.mean([one.mean for one in found if one is not None]))
    held = sum(one.low <= truth <= one.high for one in found if one is not None)  # type: ignore[operator]
    assert held / 400 >= 0.94


# ---- BLEU

# Papineni et al.'s own example, as NLTK's documentation has it.
HYPOTHESIS, *REFERENCES = (
    line.split()
    for line in (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    )
)


def test_bleu_as_published() -> None:
    assert bleu(HYPOTHESIS, REFERENCES) == pytest.approx(0.5045666840058485)  # nltk.translate.bleu_score
    assert bleu(HYPOTHESIS, REFERENCES[:1]) == pytest.approx(0.41180376356915777)  # its smoothing functions' docs


def test_bleu_by_hand() -> None:
    # a b c d e against a b c x y z: 3 of 5 words, 2 of 4 pairs, 1 of 3 triples, 0.1 of 2; brevity exp(1 - 6/5).
    expected = math.exp(-1 / 5) * (3 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 4)
    assert bleu("abcde", ["abcxyz"]) == pytest.approx(expected)
    # "the the the the the the the" has at most two matches (Papineni et al., section 2.1).
    the = ["the"] * 7
    cat = ["the", "cat", "is", "on", "the", "mat"]
    assert bleu(the, [cat], order=1) == pytest.approx(2 / 7)
    # The closest length counts, of equally close ones the shorter: no penalty against 4, exp(1 - 6/5) against 6 alone.
    assert bleu("abcde", ["abcdxy", "zzzz"], order=1) == pytest.approx(4 / 5)
    assert bleu("abcde", ["abcdxy"], order=1) == pytest.approx(4 / 5 * math.exp(-1 / 5))


def test_short_and_empty_texts() -> None:
    assert bleu("ab", ["ab"]) == pytest.approx(1)
    assert bleu("a", ["a"]) == 1
    assert bleu("ab", ["cd"]) == 0
    assert bleu("", ["", "a"]) == 1 and bleu("", ["a"]) == 0 and bleu("a", [""]) == 0
    with pytest.raises(ValueError, match="BLEU needs a reference"):
        bleu("a", [])


def test_self_bleu_by_hand() -> None:
    assert self_bleu(["abcd", "abcd"]) == pytest.approx([1, 1])
    assert self_bleu(["abcd", "efgh"]) == [0, 0]
    assert self_bleu(["abcd"]) == [] and self_bleu([]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS, min_size=2, max_size=5), st.integers(1, 4))
def test_self_bleu_is_bleu_against_the_others(replies: list[list[int]], order: int) -> None:
    expected = [bleu(reply, replies[:at] + replies[at + 1 :], order) for at, reply in enumerate(replies)]
    assert self_bleu(replies, order) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=3))
def test_bleu_is_a_share_and_one_for_a_copy(hypothesis: list[int], references: list[list[int]]) -> None:
    assert 0 <= bleu(hypothesis, references) <= 1 + 1e-12
    assert bleu(hypothesis, [*references, hypothesis]) == pytest.approx(1)


# ---- A policy's figures


def test_quality_by_hand() -> None:
    texts = [["a b c d a b c d", "a b c d"], ["x", "x"], ["y y", ""]]
    replies = Replies(texts, finished=[[True, False], [True, True], [False, False]])
    found = quality(replies, Bootstrap())
    means = {name: None if one is None else one.mean for name, one in found.items()}
    # Repetition: 1/5 and 0, and none in the other prompts' short replies. Self-BLEU of the first prompt: the long
    # one's 4-grams meet abcd once; the short one is within the long one, and half as long.
    long = (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    short = math.exp(1 - 8 / 4)
    assert means == {
        "repetition": pytest.approx(0.1),
        "self_bleu": pytest.approx(((long + short) / 2 + 1 + 0) / 3),
        "length": pytest.approx((6 + 1 + 1) / 3),
        "finished": pytest.approx((0.5 + 1 + 0) / 3),
        "distinct_1": pytest.approx(6 / 16),
        "distinct_2": pytest.approx(5 / 16),
        "distinct_3": pytest.approx(4 / 16),
    }
    assert {name: one.n for name, one in found.items() if one is not None} == {
        "repetition": 1, "self_bleu": 3, "length": 3, "finished": 3, "distinct_1": 3, "distinct_2": 3, "distinct_3": 3,
    }  # fmt: skip


def test_token_ids_stand_before_words_and_lengths_before_both() -> None:
    plain = Replies([["one two"]])
    assert plain.measures["length"].tolist() == [2] and "finished" not in plain.measures
    with_ids = Replies([["one two"]], ids=[[[5, 5, 5, 5, 5]]])
    assert with_ids.measures["length"].tolist() == [5] and with_ids.measures["repetition"].tolist() == [0.5]
    assert Replies([["one two"]], lengths=np.array([[9.0]])).measures["length"].tolist() == [9]


def test_a_reply_without_n_grams_is_left_out_of_its_prompts_mean() -> None:
    assert Replies([["a a a a a", "b"]]).measures["repetition"].tolist() == [0.5]


def test_figures_that_no_prompt_has() -> None:
    found = quality(Replies([["a b"], [""]]), FEW)
    assert found["repetition"] is None and found["self_bleu"] is None
    assert found["length"] is not None and found["length"].mean == 1
    assert quality(Replies([]), FEW) == dict.fromkeys(
        ["repetition", "self_bleu", "length", "distinct_1", "distinct_2", "distinct_3"]
    )


def test_differences_are_of_prompts_that_both_have() -> None:
    a = Replies([["a a a a a"], ["b"], ["c d e f g"]], finished=[[1], [1], [1]])
    b = Replies([["a b c d e"], ["b c d e f"], ["c d e f"]])
    found = quality_differences(a, b, Bootstrap(["p", "q", "r"]))
    assert found["repetition"] is not None and found["repetition"].mean == pytest.approx((0.5 + 0) / 2)
    assert found["repetition"].n == 2
    assert found["length"] is not None and found["length"].mean == pytest.approx((0 - 4 + 1) / 3)
    assert "finished" not in found and found["self_bleu"] is None
    with pytest.raises(ValueError, match="the same prompts, these answered 3, 1"):
        quality_differences(a, Replies([["a"]]), FEW)


def test_a_difference_beyond_chance_and_one_within() -> None:
    generator = np.random.default_rng(2)
    sizes = generator.integers(10, 60, 100)
    a = Replies([["w " * size] for size in sizes])
    b = Replies([["w " * size] for size in sizes + 2 + generator.integers(-1, 2, 100)])
    shorter = quality_differences(a, b, FEW)["length"]
    assert shorter is not None and shorter.is_below(0) and shorter.mean == pytest.approx(-2, abs=0.3)
    same = quality_differences(a, a, FEW)["length"]
    assert same is not None and (same.low, same.mean, same.high) == (0, 0, 0)


@pytest.mark.parametrize("name", ["ids", "lengths", "finished"])
def test_what_is_of_other_replies(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must have one entry for each reply of each prompt"):
        Replies([["a", "b"]], **{name: [[1]]})  # type: ignore[arg-type]


def test_quantiles() -> None:
    assert quantiles([[float(n)] for n in range(101)]) == {0.05: 5, 0.25: 25, 0.5: 50, 0.75: 75, 0.95: 95}
    assert quantiles([[1, 3], [2]])[0.5] == 2
    assert quantiles([[], []]) == {}


def test_hostile_texts() -> None:
    texts = [[text, text[:2000][::-1], ""] for _, text in HOSTILE if len(text) < 100_000]
    assert len(texts) > 300
    replies = Replies(texts, finished=[[1, 0, 1]] * len(texts))
    for one in quality(replies, Bootstrap(num_bootstrap=20)).values():
        assert one is not None and math.isfinite(one.mean)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "a " * 300_000,
        "\0" * 1_000_000,
        "a" + "\u0301\u0316" * 300_000,  # accents without end
        "'" * 300_000,
        "1,1.1" * 100_000,
        "9" * 1_000_000,
        "-" * 300_000 + "1",
        "\u202e\u2066" * 300_000,
    ],
)
def test_huge_texts_take_no_longer_than_they_are(text: str) -> None:
    replies = Replies([[text, text]])
    assert replies.measures["self_bleu"].tolist() == [pytest.approx(1)]
    distinct(replies, 2, FEW)


# ---- Calibration


def test_calibration_by_hand() -> None:
    # Bins of a half: 0.2 and 0.4 against 0 and 1; 0.5, 0.9 and 1 against 0.5, 1 and 1.
    found = calibration([0.2, 0.4, 0.5, 0.9, 1.0], [0, 1, 0.5, 1, 1], FEW, num_bins=2)
    assert found.ece.mean == pytest.approx(2 / 5 * abs(0.3 - 0.5) + 3 / 5 * abs(2.4 / 3 - 2.5 / 3))
    assert found.brier.mean == pytest.approx((0.04 + 0.36 + 0 + 0.01 + 0) / 5)
    low, high = found.bins
    assert (low.low, low.high, low.num_pairs, low.said, low.came.mean) == (0, 0.5, 2, pytest.approx(0.3), 0.5)
    assert (high.low, high.high, high.num_pairs) == (0.5, 1, 3)
    assert (high.said, high.came.mean) == (pytest.approx(0.8), pytest.approx(2.5 / 3))


def test_empty_bins_are_left_out() -> None:
    found = calibration([0.0, 1.0], [0, 1], FEW)
    assert [(one.low, one.high) for one in found.bins] == [(0, 0.1), (0.9, 1)]
    assert found.ece.mean == 0 and found.brier.mean == 0


def test_a_prompts_pairs_are_one_cluster() -> None:
    found = calibration([0.1, 0.2, 0.8], [1, 0, 1], Bootstrap(["p", "p", "q"], num_bootstrap=100), num_bins=1)
    assert found.ece.n == found.brier.n == found.bins[0].came.n == 2
    alone = calibration([0.1, 0.2], [1, 0], Bootstrap(["p", "p"]))
    assert (alone.ece.low, alone.ece.high, alone.ece.n) == (0, 1, 1)


def test_a_calibrated_judge_and_one_too_sure() -> None:
    """The error of a sample is above 0 for both; its interval tells which has one."""
    generator = np.random.default_rng(3)
    held = found = 0
    for study in range(100):
        scores = generator.normal(0, 1, 300)
        outcomes = (generator.random(300) < win_probability(scores, 0)).astype(float)
        bootstrap = Bootstrap(num_bootstrap=200, seed=study)
        held += calibration(win_probability(scores, 0), outcomes, bootstrap).ece.low == 0
        found += calibration(win_probability(4 * scores, 0), outcomes, bootstrap).ece.is_above(0)
    assert held >= 93 and found >= 90


def test_win_probability_is_bradley_terrys() -> None:
    found = win_probability([1.0, 0.0, 0.0], [0.0, 0.0, math.log(3)])
    assert found == pytest.approx([1 / (1 + math.exp(-1)), 0.5, 0.25])
    assert win_probability([1e9], [-1e9]).tolist() == [1]


@pytest.mark.parametrize(
    ("said", "came", "words"),
    [
        ([0.5], [1, 0], r"an outcome a probability, these are \(1,\) and \(2,\)"),
        ([], [], "an outcome a probability"),
        ([1.5], [1], "each probability must be from 0 to 1"),
        ([math.nan], [1], "each probability must be from 0 to 1"),
        ([0.5], [2], "each outcome must be from 0 to 1"),
    ],
)
def test_what_is_no_calibration(said: list, came: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        calibration(said, came, FEW)


# ---- Counting by numbers


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.text(st.sampled_from("ab ,.'1\u200b\u200d\u0301\u3042\x1c\u00a0"), max_size=12), max_size=3))
)
def test_a_corpus_has_each_text_s_words(texts: list[list[str]]) -> None:
    replies = Replies(texts)
    flat = [words(text) for row in texts for text in row]
    assert replies.corpus.sizes.tolist() == [len(one) for one in flat]
    expected = corpus_of_tokens(flat)
    assert replies.corpus.tokens.tolist() == expected.tokens.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS, max_size=6), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_n_grams_of_groups_are_those_counted_in_sets(
    replies: list[list[int]], n: int, num_groups: int, huge: bool
) -> None:
    corpus = corpus_of_tokens(replies)
    if huge:  # keys that do not fit in 64 bits without packing
        corpus = Corpus(corpus.tokens, corpus.sizes, 2**30)
    groups = np.arange(len(replies)) % num_groups
    own = [set[tuple[int, ...]]() for _ in range(num_groups)]
    for reply, group in zip(replies, groups.tolist(), strict=True):
        own[group].update(zip(*(reply[at:] for at in range(n)), strict=False))
    number, alone = sole_owners(*corpus.owned(n, groups), num_groups)
    assert number == len(set().union(*own))
    others = [set().union(*own[:at], *own[at + 1 :]) for at in range(num_groups)]
    assert alone.tolist() == [len(its - theirs) for its, theirs in zip(own, others, strict=True)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=2), min_size=1, max_size=4))
def test_repetition_of_many_is_that_of_each(rows: list[list[list[int]]]) -> None:
    found = Replies([[""] * len(row) for row in rows], rows).measures["repetition"]
    each = [[repetition(reply) for reply in row] for row in rows]
    known = [[value for value in row if not math.isnan(value)] for row in each]
    assert found == pytest.approx([sum(row) / len(row) if row else math.nan for row in known], nan_ok=True)
