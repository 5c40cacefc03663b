"""Generation and likelihood: ends by position, the same for a seed, KL exactly as defined."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf import packing
from rlhf.errors import UserError
from rlhf.generate import Reply, Sampling, generate
from rlhf.likelihood import reply_kl, sequence_nlls
from rlhf.models import Policy, load_causal, load_policy
from tests.tiny import tiny_policy

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("Hello", "I would like to return the shoes", "What time?", "Thank you, that is very kind of you")
]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(str(policy_folder))


def _replies(policy: Policy, num: int, skip: tuple[int, ...] = (), seed: int = 0) -> dict[tuple[int, int], Reply]:
    sampling = Sampling(max_new_tokens=12, seed=seed)
    batches = generate(policy, PROMPTS, num, sampling, batch_size=4, skip=skip)
    return {(reply.prompt_index, reply.index): reply for _, batch in batches for reply in batch}


def test_every_prompt_gets_its_replies_in_any_batch(policy: Policy) -> None:
    replies = _replies(policy, 3)
    assert set(replies) == {(prompt, index) for prompt in range(4) for index in range(3)}
    assert len({tuple(reply.ids) for reply in replies.values()}) > 6


def test_the_same_seed_gives_the_same_replies_and_a_skipped_batch_changes_no_other(policy: Policy) -> None:
    whole = _replies(policy, 2)
    assert whole == _replies(policy, 2)
    assert whole != _replies(policy, 2, seed=1)
    rest = _replies(policy, 2, skip=(0,))
    assert len(rest) == 4
    assert all(whole[key] == reply for key, reply in rest.items())


def test_sampling_leaves_the_process_s_random_numbers_alone(policy: Policy) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _replies(policy, 1)
    assert torch.equal(torch.rand(3), expected)


def test_an_end_is_found_by_position_even_where_pad_is_eos(policy: Policy) -> None:
    """A model that writes eos at once: the reply is that one token, and finished."""
    tokenizer = policy.tokenizer
    tokenizer_pad, tokenizer.pad_token = tokenizer.pad_token, tokenizer.eos_token
    bias = torch.zeros(policy.model.config.vocab_size)
    bias[tokenizer.eos_token_id] = 1e4
    hook = policy.model.lm_head.register_forward_hook(lambda _m, _i, out: out + bias)
    try:
        replies = _replies(policy, 1)
    finally:
        hook.remove()
        tokenizer.pad_token = tokenizer_pad
    assert all(reply.ids == [tokenizer.eos_token_id] and reply.finished for reply in replies.values())
    assert all(reply.text == "" for reply in replies.values())


def test_temperature_zero_is_greedy(policy: Policy) -> None:
    (_, (reply,)), = generate(policy, PROMPTS[:1], 1, Sampling(temperature=0, max_new_tokens=3), 1)  # fmt: skip
    ids = list(reply.prompt_ids)
    for token in reply.ids:
        with torch.no_grad():
            assert int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_kl_equals_the_definition_one_reply_at_a_time(policy: Policy, tmp_path: Path) -> None:
    other = load_policy(str(tiny_policy(tmp_path / "other", seed=1)))
    replies = list(_replies(policy, 2).values())
    for temperature in (1.0, 0.7):
        kls = reply_kl(policy, other, replies, temperature, batch_size=3)
        for reply, kl in zip(replies, kls, strict=True):
            ids = torch.tensor([reply.prompt_ids + reply.ids])
            start = len(reply.prompt_ids)
            with torch.no_grad():
                p = torch.softmax(policy.model(ids).logits[0].double() / temperature, -1)[start - 1 : -1]
                q = torch.softmax(other.model(ids).logits[0].double() / temperature, -1)[start - 1 : -1]
            assert kl == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-4)


def test_rows_end_to_end_are_as_likely_as_padded_ones(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs policies that are only asked have no padding; several passes make up a batch."""
    monkeypatch.setattr(packing, "CPU_TOKENS", 64)
    folders = [policy.path, str(tiny_policy(tmp_path / "other", seed=1))]
    packed, other = (load_policy(folder) for folder in folders)
    plain, plain_other = (replace(one, model=load_causal(one.path).eval()) for one in (packed, other))
    assert [packing.packs_logits(one.model) for one in (packed, other, plain)] == [True, True, False]
    replies = list(_replies(policy, 2).values())
    assert sum(len(reply.prompt_ids + reply.ids) for reply in replies) > 128
    kls = reply_kl(plain, plain_other, replies)
    assert reply_kl(packed, other, replies) == pytest.approx(kls, rel=1e-4)
    assert reply_kl(packed, plain_other, replies) == pytest.approx(kls, rel=1e-4)
    rows = [(reply.prompt_ids + reply.ids, [0] * len(reply.prompt_ids) + [1] * len(reply.ids)) for reply in replies]
    nothing = ([5, 6, 7], [0, 0, 0])
    nlls = [sequence_nlls(one, [*rows, nothing], 32) for one in (packed, plain)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-5) and nlls[0][-1] == 0.0
    assert sequence_nlls(packed, [nothing], 32) == [0.0]


def test_kl_to_oneself_is_zero(policy: Policy) -> None:
    assert reply_kl(policy, policy, list(_replies(policy, 1).values())) == [0.0] * 4


def _logps(policy: Policy, replies: list[Reply]) -> Tensor:
    """log pi(reply | prompt) of each reply; its padding lies behind it, where a causal model does not look."""
    ids = pad_sequence([torch.tensor(reply.prompt_ids + reply.ids) for reply in replies], batch_first=True)
    with torch.no_grad():
        logps = policy.model(ids).logits[:, :-1].double().log_softmax(-1)
    taken = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)
    starts = [len(reply.prompt_ids) - 1 for reply in replies]  # what is predicted at t is the token at t + 1
    return torch.stack([taken[row, at : at + len(replies[row].ids)].sum() for row, at in enumerate(starts)])


def test_kl_is_the_mean_log_ratio_in_expectation(policy: Policy, tmp_path: Path) -> None:
    """Rao-Blackwellised or not, the expectation is the same; the spread is not."""
    other = load_policy(str(tiny_policy(tmp_path / "other", seed=1)))
    sampling = Sampling(max_new_tokens=3)
    batches = generate(policy, PROMPTS[:1], 1500, sampling, 1500)
    replies = [reply for _, batch in batches for reply in batch]
    smooth = torch.tensor(reply_kl(policy, other, replies, batch_size=500)).double()
    raw = _logps(policy, replies) - _logps(other, replies)
    error = float(raw.std()) / math.sqrt(len(replies))
    assert abs(float(raw.mean() - smooth.mean())) < 4 * error
    assert smooth.std() < raw.std()


def test_no_room_for_a_prompt_is_an_error(policy: Policy) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens: 256 leaves no room .* set --max_new_tokens 128"):
        next(generate(policy, PROMPTS, 1, Sampling(max_new_tokens=256), 4))


def test_a_checkpoint_s_own_sampling_defaults_are_not_used(policy: Policy) -> None:
    before = _replies(policy, 1)
    config = policy.model.generation_config
    kept = {name: getattr(config, name) for name in ("top_k", "top_p", "repetition_penalty", "temperature")}
    config.top_k, config.top_p, config.repetition_penalty, config.temperature = 1, 0.1, 5.0, 0.1
    try:
        assert _replies(policy, 1) == before
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


def test_policies_are_frozen(policy: Policy) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.path = "x"  # type: ignore[misc]
