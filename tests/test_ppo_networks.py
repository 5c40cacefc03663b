"""The head, log-probabilities, dropout and the reference, against what transformers' own models say."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.errors import UserError
from rlhf.layers import logits_of, trunk
from rlhf.ppo import networks
from rlhf.ppo.networks import Reference, disable_dropout, token_logps, token_logps_and_entropy
from tests.architectures import SETTINGS, VOCABULARY, close, lora, tiny

WITH_A_HEAD_OF_THEIR_OWN = {"gemma2", "gemma3_text", "cohere", "granite", "hyperclovax"}


# The head


@pytest.mark.parametrize("architecture", SETTINGS)
def test_logits_are_the_models_own(architecture: str) -> None:
    model, ids = tiny(architecture), torch.arange(VOCABULARY).view(4, -1)
    hidden = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    close(logits_of(model)(hidden), model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_the_last_layer_alone_is_not_the_head_where_there_is_a_scale_or_cap(architecture: str) -> None:
    model, ids = tiny(architecture), torch.arange(3, 14)[None]
    raw = model.get_output_embeddings()(trunk(model)(input_ids=ids, use_cache=False).last_hidden_state)
    alone = torch.allclose(raw, model(input_ids=ids, use_cache=False).logits, atol=1e-3)
    assert alone == (architecture not in WITH_A_HEAD_OF_THEIR_OWN)


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "lm_head")])
def test_logits_of_a_lora_policy_are_its_own(targets: tuple[str, ...]) -> None:
    plain, ids = tiny("llama", tie_word_embeddings=False), torch.arange(3, 14)[None]
    before = plain(input_ids=ids).logits.detach()
    model = lora(plain, targets=targets)
    found = logits_of(model)(trunk(model)(input_ids=ids, use_cache=False).last_hidden_state)
    close(found, model(input_ids=ids).logits)
    assert not torch.allclose(found, before, atol=1e-2)


# Log-probabilities and entropy


def by_hand(*probabilities: float) -> Callable[[Tensor], Tensor]:
    """A head that gives this distribution whatever the hidden state is."""
    return lambda hidden: torch.tensor(probabilities).log().expand(len(hidden), -1)


def entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, temperature: float) -> Tensor:
    return token_logps_and_entropy(head, hidden, torch.zeros(len(hidden), dtype=torch.long), temperature)[1]


def test_log_probabilities_by_hand() -> None:
    head, hidden, targets = by_hand(0.5, 0.25, 0.25), torch.zeros(3, 1), torch.tensor([0, 1, 2])
    # At temperature 1/2 the probabilities are as their squares: 4, 1 and 1 of 6.
    for temperature, wanted in ((1.0, [0.5, 0.25, 0.25]), (0.5, [4 / 6, 1 / 6, 1 / 6])):
        close(token_logps(head, hidden, targets, temperature).exp(), torch.tensor(wanted))
        close(token_logps_and_entropy(head, hidden, targets, temperature)[0].exp(), torch.tensor(wanted))


def test_the_entropy_of_even_odds_is_the_log_of_the_vocabulary() -> None:
    even = by_hand(*[1 / 50] * 50)
    for temperature in (0.3, 1.0, 4.0):
        close(entropy(even, torch.zeros(4, 1), temperature), torch.full((4,), math.log(50)))


def test_entropy_by_hand() -> None:
    # 1/4 log 4 + 3/4 log 4/3. At temperature 1/2: a tenth and nine tenths.
    head, hidden = by_hand(0.25, 0.75), torch.zeros(2, 1)
    wanted = math.log(4) / 4 + 3 * math.log(4 / 3) / 4
    close(entropy(head, hidden, 1.0), torch.full((2,), wanted))
    wanted = math.log(10) / 10 + 9 * math.log(10 / 9) / 10
    close(entropy(head, hidden, 0.5), torch.full((2,), wanted))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.integers(1, 8), st.sampled_from([1, 11, 20, 33, 50, 1000]), st.floats(0.3, 3))
def test_pieces_give_what_the_whole_gives(tokens: int, width: int, limit: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(tokens * 100 + width)
    start = torch.randn(tokens, width, generator=generator), torch.randn(11, width, generator=generator)
    targets, prices = torch.randint(11, (tokens,), generator=generator), torch.randn(tokens, generator=generator)

    hidden, weight = (tensor.clone().requires_grad_() for tensor in start)
    wanted = torch.log_softmax(hidden @ weight.T / temperature, -1)[torch.arange(tokens), targets]
    gradients = torch.autograd.grad((wanted * prices).sum(), (hidden, weight))

    sizes = []

    def head(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part @ weight.T

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MAX_LOGITS", limit)
        found = token_logps(head, hidden, targets, temperature)
        for mine, theirs in zip(torch.autograd.grad((found * prices).sum(), (hidden, weight)), gradients, strict=True):
            close(mine, theirs)
        close(found, wanted)
        with torch.no_grad():
            close(token_logps(head, hidden, targets, temperature), wanted)
            logps = torch.log_softmax(hidden @ weight.T / temperature, -1)
            both = token_logps_and_entropy(head, hidden, targets, temperature)
            close(both[0], wanted)
            close(both[1], -(logps.exp() * logps).sum(-1))
    assert max(sizes) <= max(1, limit // 11)  # logits at a time, in the backward pass too


# Dropout


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "bloom", "opt"])
def test_without_dropout_train_mode_says_the_same_twice(architecture: str) -> None:
    everywhere = {
        "attention_dropout": 0.5,
        "hidden_dropout": 0.5,
        "dropout": 0.5,
        "resid_pdrop": 0.5,
        "attn_pdrop": 0.5,
    }
    model, ids = tiny(architecture, **everywhere).train(), torch.arange(3, 14)[None]
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        disable_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        close(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_a_loras_dropout_goes_too() -> None:
    model, ids = lora(tiny("llama"), dropout=0.5).train(), torch.arange(3, 14)[None]
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        disable_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# The reference


def shift(policy: Any) -> None:
    """Move every weight that is trained."""
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(0.1)


@pytest.mark.parametrize("kind", ["copy", "offload", "adapter_off"])
def test_the_reference_stays_the_start(kind: str) -> None:
    ids = torch.arange(3, 14)[None]
    policy = tiny("llama")
    with torch.no_grad():
        start = policy(input_ids=ids).logits
        policy = lora(policy) if kind == "adapter_off" else policy
        reference = Reference(kind, policy)
        shift(policy)
        now = policy(input_ids=ids).logits
        with reference.active("cpu") as model:
            close(model(input_ids=ids).logits, start, atol=1e-6)
        assert not torch.allclose(now, start, atol=1e-2)
        assert torch.equal(policy(input_ids=ids).logits, now)  # the policy is the policy again


@pytest.mark.parametrize("given", [False, True])
def test_a_reference_is_frozen_in_eval_mode_and_copied_unless_given(given: bool) -> None:
    policy, theirs = tiny("llama").train(), tiny("llama").train()
    reference = Reference("copy", policy, theirs if given else None)
    assert reference.model is not None
    assert (reference.model is theirs) == given
    assert reference.model is not policy
    assert not reference.model.training and policy.training
    assert not any(weight.requires_grad for weight in reference.model.parameters())
    assert all(weight.requires_grad for weight in policy.parameters())


@pytest.mark.parametrize(("kind", "moves"), [("copy", ["card"]), ("offload", ["card", "cpu"])])
def test_only_an_offloaded_reference_goes_back_to_the_host(
    kind: str, moves: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, seen = Reference(kind, tiny("llama")), list[str]()
    monkeypatch.setattr(reference.model, "to", seen.append)
    with reference.active("card"):
        assert seen == ["card"]
    assert seen == moves


def test_a_reference_follows_by_hand() -> None:
    # 0.75 of 1 and 0.25 of 3 is 1.5; of 1.5 and 3 it is 1.875. Tied weights move once.
    policy = tiny("llama", tie_word_embeddings=True)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.fill_(1.0)
        reference = Reference("copy", policy)
        for weight in policy.parameters():
            weight.fill_(3.0)
    assert reference.model is not None
    for wanted in (1.5, 1.875):
        reference.follow(policy, 0.75)
        assert {value for weight in reference.model.parameters() for value in weight.unique().tolist()} == {wanted}
    assert {value for weight in policy.parameters() for value in weight.unique().tolist()} == {3.0}


def test_without_lora_there_is_no_adapter_to_turn_off() -> None:
    with pytest.raises(UserError, match=r"reference: adapter_off needs LoRA \(--use_peft true\); set --reference copy"):
        Reference("adapter_off", tiny("llama"))
