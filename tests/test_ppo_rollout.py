"""Episodes as tensors: small ones by hand, and what must hold however they are cut."""

from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.ppo.rollout import Batch, Episode, micro_batches, pack, padded, reply_mask, seeded, shares

drawn = settings(max_examples=100, deadline=None)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=24)
IDS = st.lists(st.integers(1, 99), min_size=1, max_size=5)
EPISODES = st.lists(st.builds(Episode, IDS, IDS, st.booleans()), min_size=1, max_size=6)


@st.composite
def lengths_and_rows(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """The lengths of all episodes, and some of their rows in any order."""
    lengths = draw(LENGTHS)
    rows = draw(st.permutations(range(len(lengths))))
    return lengths, rows[: draw(st.integers(1, len(rows)))]


# Padded on the right


def test_rows_are_padded_with_0() -> None:
    assert padded([[1.5], [], [2.0, 3.0]], 3).tolist() == [[1.5, 0, 0], [0, 0, 0], [2, 3, 0]]
    assert padded([[1.0]], 1).dtype == torch.float32


def test_an_episode_packed_by_hand() -> None:
    # The hidden state at t predicts the token at t + 1: `keep` begins at the prompt's last token.
    input_ids, keep = pack([Episode([5, 6, 7], [8, 9], True), Episode([3], [4, 2, 1], False)], "cpu")
    assert input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 2, 1, 0]]
    assert keep.int().tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]
    assert (input_ids.dtype, keep.dtype) == (torch.long, torch.bool)


def test_a_mask_by_hand() -> None:
    episodes = [Episode([5, 6, 7], [8, 9], True), Episode([3], [4, 2, 1], False), Episode([3], [4], False)]
    assert reply_mask(episodes).int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert [episode.length for episode in episodes] == [5, 4, 2]


@drawn
@given(EPISODES)
def test_what_is_kept_is_the_replies_end_to_end(episodes: list[Episode]) -> None:
    input_ids, keep = pack(episodes, "cpu")
    assert input_ids[:, 1:][keep].tolist() == [token for episode in episodes for token in episode.ids]
    for episode, row in zip(episodes, input_ids.tolist(), strict=True):
        assert row[: episode.length] == episode.prompt_ids + episode.ids
        assert not any(row[episode.length :])
    assert keep.sum(1).tolist() == reply_mask(episodes).sum(1).tolist()


# A batch


FIGURES = ["old_logps", "old_values", "kl", "rewards", "advantages", "returns", "weights"]


def batch(episodes: list[Episode], weighted: bool) -> Batch:
    """Each figure tells its name, row and column: 100,000 name + 100 row + column, also where there is no token."""
    mask = reply_mask(episodes)
    row, column = (torch.arange(size) for size in mask.shape)
    figures = {key: 100_000 * name + 100 * row[:, None] + column for name, key in enumerate(FIGURES)}
    return Batch(episodes, mask, **(figures if weighted else figures | {"weights": None}))  # type: ignore[arg-type]


@drawn
@given(EPISODES, st.data(), st.booleans())
def test_flat_figures_are_in_the_order_of_what_is_kept(
    episodes: list[Episode], data: st.DataObject, weighted: bool
) -> None:
    rows = data.draw(st.permutations(range(len(episodes))))[: data.draw(st.integers(1, len(episodes)))]
    flat = batch(episodes, weighted).flat(rows)
    for name, key in enumerate(FIGURES if weighted else FIGURES[:-1]):
        wanted = [100_000 * name + 100 * row + at for row in rows for at in range(len(episodes[row].ids))]
        assert getattr(flat, key).tolist() == wanted
    assert (flat.weights is None) == (not weighted)
    assert flat.episodes == [episodes[row] for row in rows]

    # The tokens themselves, once as the model's side keeps them and once as the figures' side does.
    input_ids, keep = pack(flat.episodes, "cpu")
    ids = padded([[float(token) for token in episode.ids] for episode in episodes], int(reply_mask(episodes).shape[1]))
    assert input_ids[:, 1:][keep].tolist() == ids[rows][flat.mask].tolist()


# Cut by tokens


def test_micro_batches_by_hand() -> None:
    # Twice 9 is over 14. 7 and 6 take 14 with padding, a third would take 21; 4, 3 and 1 take 12.
    lengths = [3, 9, 4, 7, 1, 6]
    assert micro_batches(lengths, list(range(6)), 14) == [[1], [3, 5], [2, 0, 4]]
    assert micro_batches(lengths, [4, 0], 14) == [[0, 4]]
    assert micro_batches(lengths, [1, 3], 5) == [[1], [3]]  # too long for the limit: each by itself
    assert micro_batches(lengths, [], 14) == []


@drawn
@given(lengths_and_rows(), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_limit(
    episodes: tuple[list[int], list[int]], max_tokens: int
) -> None:
    lengths, rows = episodes
    groups = micro_batches(lengths, rows, max_tokens)
    assert sorted(row for group in groups for row in group) == sorted(rows)
    for group in groups:
        assert len(group) * max(lengths[row] for row in group) <= max_tokens or len(group) == 1
    for group, after in pairwise(groups):
        assert min(lengths[row] for row in group) >= max(lengths[row] for row in after)  # like lengths together
        assert (len(group) + 1) * max(lengths[row] for row in group) > max_tokens  # and no room left


def test_micro_batches_without_padding_by_hand() -> None:
    # 30 tokens take three groups of 14: longest first, each to the group with the fewest so far.
    lengths = [3, 9, 4, 7, 1, 6]
    assert micro_batches(lengths, list(range(6)), 14, padded=False) == [[1, 4], [3, 0], [5, 2]]
    assert micro_batches(lengths, list(range(6)), 16, padded=False) == [[1, 2, 0], [3, 5, 4]]
    # 12 tokens would fit two groups of 6, but no two of 4 do.
    assert micro_batches([4, 4, 4], [0, 1, 2], 6, padded=False) == [[0], [1], [2]]
    assert micro_batches(lengths, [1, 3], 5, padded=False) == [[1], [3]]  # too long for the limit: each by itself
    assert micro_batches(lengths, [], 14, padded=False) == []


@drawn
@given(lengths_and_rows(), st.integers(1, 200))
def test_without_padding_micro_batches_are_few_and_about_as_large_as_each_other(
    episodes: tuple[list[int], list[int]], max_tokens: int
) -> None:
    lengths, rows = episodes
    groups = micro_batches(lengths, rows, max_tokens, padded=False)
    assert sorted(row for group in groups for row in group) == sorted(rows)
    tokens = [sum(lengths[row] for row in group) for group in groups]
    assert all(count <= max_tokens or len(group) == 1 for count, group in zip(tokens, groups, strict=True))
    assert max(tokens) - min(tokens) <= max(lengths[row] for row in rows)
    if max(lengths[row] for row in rows) <= max_tokens:
        assert len(groups) <= 2 * -(-sum(tokens) // max_tokens)  # so many have room: half full, they take any row


@drawn
@given(lengths_and_rows(), st.integers(1, 200), st.randoms())
def test_the_order_of_rows_does_not_matter(episodes: tuple[list[int], list[int]], limit: int, random: Random) -> None:
    lengths, rows = episodes
    other = random.sample(rows, len(rows))
    for counts in (True, False):
        assert micro_batches(lengths, rows, limit, counts) == micro_batches(lengths, other, limit, counts)
    assert shares(lengths, rows, 3) == shares(lengths, other, 3)


# Dealt to ranks


def test_shares_by_hand() -> None:
    # 9 to the first; 7 to the second; 6 to the second (7 < 9); 4 to the first (9 < 13); 3 to either (13): the first.
    assert shares([3, 9, 4, 7, 6], list(range(5)), 2) == [[1, 2, 0], [3, 4]]
    assert shares([5], [0], 3) == [[0], [], []]


@drawn
@given(lengths_and_rows(), st.integers(1, 8))
def test_shares_hold_every_row_once_and_differ_by_no_more_than_the_longest(
    episodes: tuple[list[int], list[int]], num_ranks: int
) -> None:
    lengths, rows = episodes
    dealt = shares(lengths, rows, num_ranks)
    assert len(dealt) == num_ranks
    assert sorted(row for share in dealt for row in share) == sorted(rows)
    tokens = [sum(lengths[row] for row in share) for share in dealt]
    assert max(tokens) - min(tokens) <= max(lengths[row] for row in rows)
    assert all(dealt) == (len(rows) >= num_ranks)


# Randomness


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(8, generator=generator).tolist()


def test_the_same_parts_give_the_same_numbers_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = numbers(seeded(3, "train", 7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert numbers(seeded(3, "train", 7)) == first


@pytest.mark.parametrize(
    "parts", [(4, "train", 7), (3, "look", 7), (3, "train", 8), (3, "train", 7, 0), (3, "train"), (3, "train", "7")]
)
def test_other_parts_give_other_numbers(parts: tuple[int, str, int]) -> None:
    assert not set(numbers(seeded(3, "train", 7))) & set(numbers(seeded(*parts)))


def test_no_two_of_many_share_a_seed() -> None:
    seeds = [seeded(seed, "train", step).initial_seed() for seed in range(3) for step in range(1000)]
    assert len(set(seeds)) == len(seeds)
