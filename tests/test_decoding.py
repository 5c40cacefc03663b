"""The decode loop against a sampler that keeps no cache, pads nothing and inverts the distribution in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from rlhf.decoding import check_decoding, decode, decode_noted, draw, rollout_cache
from rlhf.errors import UserError
from rlhf.layers import trunk
from rlhf.packing import pack_rows
from tests.architectures import SETTINGS, lora, tiny

PROMPTS = [[5, 3, 9], [40, 7, 8, 12, 60, 33, 21, 4, 50], [6, 0, 0, 11, 63, 62], [30], [1, 2, 3, 4, 5, 6, 7], [9, 30]]
STOPS = {1, 7, 20, 30, 40, 50, 63}  # about one token in nine: some replies end, some do not, and prompts hold them
LENGTH = 12
UNIFORMS = torch.rand(len(PROMPTS), LENGTH, generator=torch.Generator().manual_seed(8))


def probabilities(policy: Any, ids: list[int], temperature: float) -> np.ndarray:
    """Of the token after `ids`, in float64."""
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy() / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def sample(
    policy: Any, prompt: list[int], uniforms: Tensor, stops: set[int] = STOPS, temperature: float = 1.0
) -> list[int]:
    reply: list[int] = []
    for uniform in uniforms.double().tolist():
        cumulative = probabilities(policy, prompt + reply, temperature).cumsum()
        reply.append(int((cumulative > uniform * cumulative[-1]).argmax()))
        if reply[-1] in stops:
            break
    return reply


def steered(policy: Any, prompts: list[list[int]], replies: list[list[int]], length: int) -> Tensor:
    """Uniform numbers that make the policy say these replies: the middle of each token's share of [0, 1)."""
    uniforms = torch.rand(len(prompts), length, generator=torch.Generator().manual_seed(0))
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        for at, token in enumerate(reply):
            odds = probabilities(policy, prompt + reply[:at], 1.0)
            uniforms[row, at] = odds[:token].sum() + odds[token] / 2
    return uniforms


def replies_of(
    policy: Any,
    prompts: list[list[int]],
    uniforms: Tensor,
    batch_size: int = 64,
    stops: set[int] = STOPS,
    temperature: float = 1.0,
) -> list[list[int]]:
    return decode(policy, prompts, uniforms, stops, temperature, batch_size)


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny("llama")


@pytest.fixture
def shapes(policy: Any) -> Any:
    """`(rows, columns)` of what goes into the policy, forward pass by forward pass."""
    seen: list[tuple[int, ...]] = []
    hook = trunk(policy).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


# The same replies as the plain sampler's


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_replies_are_those_of_a_sampler_without_cache_and_padding(architecture: str, packed: bool) -> None:
    model = tiny(architecture)
    if packed and not pack_rows(model):
        return  # as it is without
    wanted = [sample(model, prompt, row, STOPS, 0.9) for prompt, row in zip(PROMPTS, UNIFORMS, strict=True)]
    ended = [reply[-1] in STOPS for reply in wanted]
    assert any(ended) and max(map(len, wanted)) > 5  # else there were nothing to see
    assert replies_of(model, PROMPTS, UNIFORMS, temperature=0.9) == wanted
    assert replies_of(model, PROMPTS, UNIFORMS, batch_size=4, temperature=0.9) == wanted


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_size", [64, 4])
def test_notes_are_of_the_tokens_that_were_drawn(packed: bool, batch_size: int) -> None:
    """Rows leave the batch, are sorted and cut: each note must stay with its token."""
    model = tiny("llama")
    if packed:
        pack_rows(model)

    def note(hidden: Tensor, logits: Tensor, drawn: Tensor) -> Tensor:
        return torch.stack([(logits / 0.9).log_softmax(-1).gather(1, drawn[:, None]).squeeze(1), drawn.float()], dim=1)

    replies, notes = decode_noted(model, PROMPTS, UNIFORMS, STOPS, 0.9, batch_size, note=note)
    assert replies == replies_of(model, PROMPTS, UNIFORMS, batch_size, temperature=0.9)
    assert len({len(reply) for reply in replies}) > 2
    for prompt, reply, noted in zip(PROMPTS, replies, notes, strict=True):
        assert noted[:, 1].tolist() == reply
        wanted = [np.log(probabilities(model, prompt + reply[:at], 0.9)[token]) for at, token in enumerate(reply)]
        np.testing.assert_allclose(noted[:, 0], wanted, atol=1e-4)


def test_without_a_note_nothing_is_noted(policy: Any) -> None:
    assert decode_noted(policy, PROMPTS, UNIFORMS, STOPS, 1.0, 4) == (replies_of(policy, PROMPTS, UNIFORMS), [])


def test_packed_prompts_are_read_without_padding_and_keys_are_float32() -> None:
    model = tiny("llama")
    pack_rows(model)
    seen: list[tuple[int, ...]] = []
    trunk(model).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        replies = replies_of(model, PROMPTS, UNIFORMS)
    assert seen[0] == (1, sum(map(len, PROMPTS))) and {width for _, width in seen[1:]} == {1}
    assert [len(reply) > 0 for reply in replies] == [True] * len(PROMPTS)
    check_decoding(model, PROMPTS, replies, UNIFORMS, 1.0)
    for kept_as, wanted in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        layer: Any = rollout_cache(model.config, 4, kept_as).layers[0]
        keys, values = layer.update(*torch.ones(2, 1, 2, 3, 16, dtype=torch.bfloat16))
        assert {keys.dtype, values.dtype} == {wanted} and torch.equal(keys, torch.ones(1, 2, 3, 16, dtype=wanted))


def test_the_list_has_windows_and_models_without_positions() -> None:
    """The cases that the test above is there for, or it would say less than it seems to."""
    for architecture in ("mistral", "gemma2", "gemma3_text"):
        layers = rollout_cache(tiny(architecture).config, 64).layers
        assert any(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers)
        assert SETTINGS[architecture]["sliding_window"] < max(map(len, PROMPTS))
    for architecture in ("bloom", "mpt"):
        assert "position_ids" not in trunk(tiny(architecture)).forward.__code__.co_varnames


def test_a_lora_policy_decodes_with_its_adapter() -> None:
    plain = tiny("llama")
    without = replies_of(plain, PROMPTS, UNIFORMS)
    model = lora(plain)
    wanted = [sample(model, prompt, row) for prompt, row in zip(PROMPTS, UNIFORMS, strict=True)]
    assert replies_of(model, PROMPTS, UNIFORMS) == wanted != without


@pytest.fixture(scope="module")
def alone(policy: Any) -> list[list[int]]:
    """The replies that each prompt gets all by itself."""
    return [replies_of(policy, [prompt], row[None])[0] for prompt, row in zip(PROMPTS, UNIFORMS, strict=True)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=9), st.integers(1, 9))
def test_neither_batch_size_nor_order_nor_company_changes_a_reply(
    policy: Any, alone: list[list[int]], rows: list[int], batch_size: int
) -> None:
    replies = replies_of(policy, [PROMPTS[row] for row in rows], UNIFORMS[rows], batch_size)
    assert replies == [alone[row] for row in rows]


def test_no_prompts_give_no_replies(policy: Any) -> None:
    assert replies_of(policy, [], torch.zeros(0, LENGTH)) == []


def test_the_policy_is_left_as_it_was(policy: Any) -> None:
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    replies_of(policy, PROMPTS, UNIFORMS)
    assert not policy.training
    assert all(torch.equal(weight, before[name]) and weight.grad is None for name, weight in policy.named_parameters())


# Where replies end


def test_a_reply_ends_at_any_stop_and_keeps_it(policy: Any) -> None:
    prompts = [[5, 20, 9], [7], [3, 3, 7, 20]]  # a stop in a prompt ends nothing
    replies = [[9, 8, 7], [20], [11, 12, 13, 14, 15]]
    uniforms = steered(policy, prompts, replies, 5)
    assert replies_of(policy, prompts, uniforms, stops={7, 20}) == replies
    longer = replies_of(policy, prompts, uniforms, stops={20})
    assert longer[0][:3] == [9, 8, 7] and (len(longer[0]) == 5 or longer[0][-1] == 20)  # 7 is no stop now
    assert longer[1:] == replies[1:]


def test_the_pad_ends_a_reply_where_it_is_a_stop_and_only_there() -> None:
    policy = tiny("llama", pad_token_id=0, eos_token_id=0)
    prompts, replies = [[5, 0, 9], [4, 4, 4, 4, 0], [0]], [[9, 0, 0, 7], [0, 0, 0, 0], [0, 5, 0, 0]]
    uniforms = steered(policy, prompts, replies, 4)
    assert replies_of(policy, prompts, uniforms, stops={7}) == replies
    assert replies_of(policy, prompts, uniforms, stops={0, 7}) == [[9, 0], [0], [0]]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_no_reply_is_longer_than_allowed(policy: Any, shapes: list[tuple[int, ...]], length: int) -> None:
    replies = replies_of(policy, PROMPTS, UNIFORMS[:, :length], stops=set())
    assert [len(reply) for reply in replies] == [length] * len(PROMPTS)
    assert len(shapes) == length


def test_a_stop_in_the_last_place_is_kept(policy: Any) -> None:
    uniforms = steered(policy, [[5, 3]], [[9, 8, 7]], 3)
    assert replies_of(policy, [[5, 3]], uniforms, stops={7}) == [[9, 8, 7]]


# What is computed


def test_finished_rows_leave_once_a_quarter_of_the_batch_is(policy: Any, shapes: list[tuple[int, ...]]) -> None:
    # Rows that go on, of those in the batch: 7 of 8, 6 of 8 (three quarters: out go two), 5 of 6, 4 of 6
    # (out go two), 1 of 4 (out go three). Replies end at either of two stops.
    lengths = [5, 1, 3, 2, 6, 5, 4, 5]
    prompts = [[5, 9, 11, 3, 4, 6][:width] for width in (3, 1, 6, 2, 4, 4, 5, 1)]
    replies = [[10 + at for at in range(length - 1)] + [7 if row % 2 else 20] for row, length in enumerate(lengths)]
    uniforms = steered(policy, prompts, replies, 9)
    shapes.clear()
    assert replies_of(policy, prompts, uniforms, stops={7, 20}) == replies
    assert shapes == [(8, 6), (8, 1), (6, 1), (6, 1), (4, 1), (1, 1)]


def test_prompts_of_like_length_share_a_batch_the_longest_first(policy: Any, shapes: list[tuple[int, ...]]) -> None:
    prompts = [[5], [5] * 9, [5, 6], [5] * 8, [5] * 4]
    replies_of(policy, prompts, UNIFORMS[:, :1], batch_size=2, stops=set())
    assert shapes == [(2, 9), (2, 4), (1, 1)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.data())
def test_the_cache_holds_what_transformers_own_would(steps: list[int], data: st.DataObject) -> None:
    config = tiny("llama", num_hidden_layers=1).config
    mine, theirs, rows = rollout_cache(config, sum(steps)), DynamicCache(config=config), 4
    for step in steps:
        keys, values = torch.randn(2, rows, 2, step, 16).unbind()
        for found, wanted in zip(mine.update(keys, values, 0), theirs.update(keys, values, 0), strict=True):
            assert torch.equal(found, wanted)
        assert mine.get_seq_length() == theirs.get_seq_length()
        assert mine.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0)
        kept = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
        for cache in (mine, theirs):
            cache.batch_select_indices(torch.tensor(kept))
        rows = len(kept)


def test_the_cache_does_not_copy_as_it_grows() -> None:
    cache = rollout_cache(tiny("llama").config, 6)
    keys, values = torch.randn(2, 4, 2, 1, 16).unbind()
    places = {cache.update(keys, values, 0)[0].data_ptr() for _ in range(6)}
    assert len(places) == 1


# The draw


def test_a_draw_by_hand() -> None:
    # A half, a quarter, a quarter: the tokens' shares of [0, 1) are [0, 0.5), [0.5, 0.75) and [0.75, 1).
    uniforms = torch.tensor([0.0, 0.25, 0.499, 0.501, 0.7, 0.749, 0.751, 0.9999])
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(len(uniforms), -1)
    assert draw(logits, uniforms).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_share_begins_at_its_lower_bound() -> None:
    step = 2.0**-24  # the smallest between two numbers of torch.rand
    uniforms = torch.tensor([0.0, 0.25 - step, 0.25, 0.5 - step, 0.5, 0.75 - step, 0.75, 1 - step])
    assert draw(torch.zeros(len(uniforms), 4), uniforms).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-20, 20, width=32), st.just(-float("inf"))), min_size=2, max_size=40).filter(
        lambda logits: max(logits) > -float("inf")
    ),
    st.one_of(st.sampled_from([0.0, 0.5, 1 - 2**-24, 1.0]), st.floats(0, 1, width=32)),
)
def test_what_cannot_be_is_never_drawn(logits: list[float], uniform: float) -> None:
    assert logits[int(draw(torch.tensor([logits]), torch.tensor([uniform])))] > -float("inf")


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_a_token_of_probability_0_is_not_drawn_at_either_end(uniform: float) -> None:
    none = -float("inf")
    assert draw(torch.tensor([[none, none, 1.0, none, none]]), torch.tensor([uniform])).tolist() == [2]


def test_logits_that_are_no_numbers_still_give_a_token() -> None:
    # So that the update, which sees the NaN and says so, is reached.
    assert 0 <= int(draw(torch.full((1, 5), float("nan")), torch.tensor([0.5]))) < 5


def test_tokens_come_as_often_as_softmax_says() -> None:
    generator = torch.Generator().manual_seed(5)
    logits, uniforms = torch.randn(40, generator=generator) * 1.5, torch.rand(100_000, generator=generator)
    counts = torch.bincount(draw(logits.expand(len(uniforms), -1), uniforms), minlength=40).numpy()
    weights = np.exp(logits.double().numpy())
    wanted = weights / weights.sum() * len(uniforms)
    assert wanted.min() > 5
    assert chisquare(counts, wanted).pvalue > 0.01


def test_a_large_vocabulary_does_not_blur_the_odds() -> None:
    # As many points as tokens, one in the middle of each token's share: each is drawn once.
    size = 2**17
    uniforms = (torch.arange(0, size, 997) + 0.5) / size
    assert draw(torch.zeros(len(uniforms), size), uniforms).tolist() == list(range(0, size, 997))


# Temperature


def test_half_the_temperature_is_twice_the_logits() -> None:
    policy = tiny("llama", tie_word_embeddings=False)
    cold = replies_of(policy, PROMPTS, UNIFORMS, temperature=0.5)
    assert cold != replies_of(policy, PROMPTS, UNIFORMS)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(2)
    assert replies_of(policy, PROMPTS, UNIFORMS) == cold


def test_near_temperature_0_the_likeliest_token_is_drawn(policy: Any) -> None:
    replies = replies_of(policy, PROMPTS, UNIFORMS, temperature=1e-4)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        for at, token in enumerate(reply):
            assert token == probabilities(policy, prompt + reply[:at], 1.0).argmax()


def test_temperature_0_takes_the_likeliest(policy: Any) -> None:
    for prompt, reply in zip(PROMPTS, replies_of(policy, PROMPTS, UNIFORMS, temperature=0), strict=True):
        for at, token in enumerate(reply):
            assert token == probabilities(policy, prompt + reply[:at], 1.0).argmax()


# What does not suit


def test_replies_of_another_distribution_are_found(policy: Any) -> None:
    replies = replies_of(policy, PROMPTS, UNIFORMS)
    check_decoding(policy, PROMPTS, replies, UNIFORMS, 1.0)
    with pytest.raises(UserError, match=r"LlamaForCausalLM does not decode prompts of unlike length .* tokens differ"):
        check_decoding(policy, PROMPTS, replies, UNIFORMS.flip(1), 1.0)


def test_a_model_without_keys_and_values_is_refused() -> None:
    class Recurrent(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> None: ...

    model = torch.nn.Module()
    model.base_model = Recurrent()
    with pytest.raises(UserError, match=r"Module: replies are decoded with a cache of keys and values"):
        decode(model, PROMPTS, UNIFORMS, STOPS, 1.0, 4)
