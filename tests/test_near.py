"""Near matches: the exact Jaccard of word triples, against all pairs by hand."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.near import near_matches, shingles, similarity

SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9).map(" ".join)


def test_shingles_by_hand() -> None:
    assert shingles("The cat, the CAT sat.") == {("the", "cat", "the"), ("cat", "the", "cat"), ("the", "cat", "sat")}
    assert shingles("Two words") == {("two", "words")}
    assert shingles("... !") == frozenset()


def test_similarity_by_hand() -> None:
    one, other = shingles("a b c d e"), shingles("a b c d f")  # abc bcd cde, abc bcd cdf
    assert similarity(one, other) == 2 / 4
    assert similarity(frozenset(), frozenset()) == 0.0


@given(st.lists(SENTENCE, max_size=6), st.lists(SENTENCE, max_size=6), st.sampled_from([0.2, 0.5, 0.8, 0.9, 1.0]))
def test_nothing_near_is_missed(texts: list[str], others: list[str], threshold: float) -> None:
    found = near_matches(texts, others, threshold)
    best: dict[int, float] = {}
    for (at, text), other in product(enumerate(texts), others):
        near = similarity(shingles(text), shingles(other))
        if near >= threshold:
            best[at] = max(best.get(at, 0.0), near)
    assert {at: near for at, (_, near) in found.items()} == best
    for at, (place, near) in found.items():
        assert similarity(shingles(texts[at]), shingles(others[place])) == near


def test_a_threshold_that_is_none() -> None:
    for threshold in (0.0, 1.1):
        with pytest.raises(ValueError, match="must be over 0 and at most 1"):
            near_matches([], [], threshold)
