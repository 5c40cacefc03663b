"""Policy, value model and reference, against what transformers' own models say of unpadded prefixes, one at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.errors import UserError
from rlhf.ppo import networks
from rlhf.ppo.networks import (
    VALUE_ADAPTER,
    PolicyAndValue,
    Reference,
    disable_dropout,
    kept_hidden,
    logits_of,
    score_head,
    token_entropy,
    token_logps,
    trunk,
)

VOCABULARY = 64
_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA |= _SIZES | {"max_position_embeddings": 64}
_GQA = _LLAMA | {"num_key_value_heads": 1, "head_dim": 16}
_GPT2 = _SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
_BLOOM = _SIZES | {"hidden_size": 32, "n_layer": 2, "n_head": 2}
_GPT_NEO = _SIZES | {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
_GPT_NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 4}
_OPT = _SIZES | {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_QWEN3_5 = _GQA | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
_QWEN3_5 |= {"linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
# What the last layer's logits go through is set so that it shows.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA | {"num_key_value_heads": 2},
    "qwen3": _GQA,
    "mistral": _GQA | {"sliding_window": 4},
    "gemma2": _GQA | _WINDOWS | {"final_logit_softcapping": 2.0},
    "gemma3_text": _GQA | _WINDOWS | {"final_logit_softcapping": 2.0},
    "cohere": _LLAMA | {"logit_scale": 0.3},
    "granite": _LLAMA | {"logits_scaling": 3.0},
    "phi": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _LLAMA,
    "opt": _OPT | {"word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "bloom": _BLOOM,
    "mpt": _SIZES | {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "falcon": _LLAMA,
    "qwen3_5_text": _QWEN3_5,
    "hyperclovax": _LLAMA | {"logits_scaling": 3.0},
}
WITH_A_HEAD_OF_THEIR_OWN = {"gemma2", "gemma3_text", "cohere", "granite", "hyperclovax"}


def tiny(architecture: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    """A model of two layers with weights so large that its distributions are far from uniform; in eval mode."""
    config = CONFIG_MAPPING[architecture](**SETTINGS[architecture] | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.15)
    return model


def lora(policy: Any, with_value: bool = False, targets: tuple[str, ...] = ("q_proj", "v_proj"), dropout: float = 0.0):
    """The policy with a LoRA that is not 0, and a second one for the value."""
    shape = LoraConfig(r=2, target_modules=list(targets), lora_dropout=dropout)
    policy = get_peft_model(policy, shape).eval()
    if with_value:
        policy.add_adapter(VALUE_ADAPTER, shape)
        policy.set_adapter("default")
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3).requires_grad_(True)
    return policy


def pair(kind: str) -> PolicyAndValue:
    policy = lora(tiny("llama"), with_value=True) if kind == "adapter" else tiny("llama")
    classifier = tiny("llama", AutoModelForSequenceClassification, num_labels=1) if kind == "separate" else None
    networks = PolicyAndValue(policy, kind, classifier)
    if networks.value_head is not None:
        nn.init.normal_(networks.value_head.weight)
    return networks


# Three rows: prompts of 2, 3 and 1 tokens, replies of 3, 1 and 4; what lies behind them is padding.
ROWS, PROMPTS = [[5, 9, 7, 3, 8], [4, 6, 11, 20], [13, 30, 31, 32, 33]], [2, 3, 1]
TOKENS = [(row, at) for row, ids in enumerate(ROWS) for at in range(PROMPTS[row], len(ids))]
KINDS = ["separate", "shared", "adapter"]


def padded(fill: int = 0, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS)) + extra
    keep = torch.zeros(len(ROWS), width - 1, dtype=torch.bool)
    for row, at in TOKENS:
        keep[row, at - 1] = True
    return torch.tensor([ids + [fill] * (width - len(ids)) for ids in ROWS]), keep


def prefixes() -> list[Tensor]:
    """What comes before each token of the replies."""
    return [torch.tensor([ROWS[row][:at]]) for row, at in TOKENS]


def close(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol)


# The head


@pytest.mark.parametrize("architecture", SETTINGS)
def test_logits_are_the_models_own(architecture: str) -> None:
    model, ids = tiny(architecture), torch.arange(3, 25).view(2, 11)
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


@pytest.mark.parametrize("architecture", SETTINGS)
def test_what_lies_behind_a_token_changes_nothing(architecture: str) -> None:
    model = tiny(architecture)
    (ids, keep), (wider, kept) = padded(), padded(fill=17, extra=4)
    close(kept_hidden(model, ids, keep), kept_hidden(model, wider, kept))


# Log-probabilities and entropy


def by_hand(*probabilities: float) -> Callable[[Tensor], Tensor]:
    """A head that gives this distribution whatever the hidden state is."""
    return lambda hidden: torch.tensor(probabilities).log().expand(len(hidden), -1)


def test_log_probabilities_by_hand() -> None:
    head, hidden = by_hand(0.5, 0.25, 0.25), torch.zeros(3, 1)
    found = token_logps(head, hidden, torch.tensor([0, 1, 2]), temperature=1.0)
    close(found.exp(), torch.tensor([0.5, 0.25, 0.25]))
    # At temperature 1/2 the probabilities are as their squares: 4, 1 and 1 of 6.
    found = token_logps(head, hidden, torch.tensor([0, 1, 2]), temperature=0.5)
    close(found.exp(), torch.tensor([4 / 6, 1 / 6, 1 / 6]))


def test_the_entropy_of_even_odds_is_the_log_of_the_vocabulary() -> None:
    even = by_hand(*[1 / 50] * 50)
    for temperature in (0.3, 1.0, 4.0):
        close(token_entropy(even, torch.zeros(4, 1), temperature), torch.full((4,), math.log(50)))


def test_entropy_by_hand() -> None:
    # 1/4 log 4 + 3/4 log 4/3. At temperature 1/2: a tenth and nine tenths.
    head, hidden = by_hand(0.25, 0.75), torch.zeros(2, 1)
    wanted = math.log(4) / 4 + 3 * math.log(4 / 3) / 4
    close(token_entropy(head, hidden, 1.0), torch.full((2,), wanted))
    wanted = math.log(10) / 10 + 9 * math.log(10 / 9) / 10
    close(token_entropy(head, hidden, 0.5), torch.full((2,), wanted))


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
            close(token_entropy(head, hidden, temperature), -(logps.exp() * logps).sum(-1))
    assert max(sizes) <= max(1, limit // 11)  # logits at a time, in the backward pass too


# Policy and value


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_the_log_probability_and_the_value_of_the_state_before_it(kind: str) -> None:
    both = pair(kind)
    with torch.no_grad():
        logps, values, entropy = both(*padded(), temperature=0.7, entropy=True)
        assert logps.shape == values.shape == entropy.shape == (len(TOKENS),)
        assert logps.dtype == values.dtype == torch.float32
        logits = torch.stack([both.policy(input_ids=prefix).logits[0, -1] for prefix in prefixes()])
        wanted = (logits / 0.7).log_softmax(-1)
        close(logps, wanted[torch.arange(len(TOKENS)), [ROWS[row][at] for row, at in TOKENS]])
        close(entropy, -(wanted.exp() * wanted).sum(-1))
        close(values, torch.stack([value_of(both, prefix) for prefix in prefixes()]))
        assert values.std() > 0.01


def value_of(both: PolicyAndValue, prefix: Tensor) -> Tensor:
    """The value after a prefix, from the outputs that transformers' own models give."""
    if both.value_model is not None:
        return both.value_model(input_ids=prefix).logits[0, 0]
    if both.kind == "adapter":
        both.policy.set_adapter(VALUE_ADAPTER)
    hidden = both.policy(input_ids=prefix, output_hidden_states=True).hidden_states[-1]
    if both.kind == "adapter":
        both.policy.set_adapter("default")
    assert both.value_head is not None
    return both.value_head.weight[0] @ hidden[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_right_padding_changes_nothing(kind: str) -> None:
    both = pair(kind)
    with torch.no_grad():
        for mine, theirs in zip(both(*padded(), 1.0), both(*padded(fill=17, extra=6), 1.0), strict=True):
            close(mine, theirs)


@pytest.mark.parametrize("kind", ["shared", "adapter"])
def test_the_first_values_are_0_and_there_is_no_entropy_unless_asked_for(kind: str) -> None:
    policy = lora(tiny("llama"), with_value=True) if kind == "adapter" else tiny("llama")
    _, values, entropy = PolicyAndValue(policy, kind)(*padded(), 1.0)
    assert values.tolist() == [0.0] * len(TOKENS)
    assert entropy.shape == (0,)


def gradients(both: PolicyAndValue, weight_of_logps: float, weight_of_values: float, **kwargs: Any) -> set[str]:
    """The names of the weights that a loss on log-probabilities and values moves."""
    both.zero_grad()
    logps, values, _ = both(*padded(), 1.0, **kwargs)
    (weight_of_logps * logps.sum() + weight_of_values * values.square().sum()).backward()
    return {name for name, p in both.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_a_detached_value_leaves_the_trunk_alone() -> None:
    both = pair("shared")
    trunk_weights = {name for name, _ in both.named_parameters()} - {"value_head.weight"}
    assert gradients(both, 0, 1, detach_value=True) == {"value_head.weight"}
    assert gradients(both, 0, 1) >= {"value_head.weight", "policy.model.layers.0.self_attn.q_proj.weight"}
    assert gradients(both, 1, 0, detach_value=True) == trunk_weights


def adapter_weights(both: PolicyAndValue, name: str) -> set[str]:
    return {weight for weight, _ in both.named_parameters() if f".{name}." in weight}


def test_each_adapter_learns_from_its_own_loss_and_the_base_from_none() -> None:
    both = pair("adapter")
    policys, values = adapter_weights(both, "default"), adapter_weights(both, VALUE_ADAPTER) | {"value_head.weight"}
    assert len(policys) == 8 and len(values) == 9  # A and B of two layers' q and v
    assert gradients(both, 1, 0) == policys
    assert gradients(both, 0, 1) == values
    assert gradients(both, 1, 1) == policys | values


def test_both_adapters_still_learn_after_the_reference_was_asked() -> None:
    both = pair("adapter")
    before = gradients(both, 1, 1)
    with Reference("adapter_off", both.policy).active("cpu"), torch.no_grad():
        pass
    assert gradients(both, 1, 1) == before
    assert {name for name, p in both.named_parameters() if p.requires_grad} == before


def test_the_value_adapter_does_not_move_the_policy() -> None:
    both = pair("adapter")
    with torch.no_grad():
        logps, values, _ = both(*padded(), 1.0)
        for name, weight in both.policy.named_parameters():
            if f".{VALUE_ADAPTER}." in name:
                weight.add_(0.5)
        moved_logps, moved_values, _ = both(*padded(), 1.0)
    assert torch.equal(moved_logps, logps)
    assert (moved_values - values).abs().min() > 1e-3


def test_the_policys_adapter_is_back_after_an_error() -> None:
    both = pair("adapter")

    def refuse(module: nn.Module, *_: Any) -> None:
        if both.policy.active_adapter == VALUE_ADAPTER:
            raise MemoryError

    trunk(both.policy).register_forward_pre_hook(refuse)
    with pytest.raises(MemoryError):
        both(*padded(), 1.0)
    assert both.policy.active_adapter == "default"
    assert adapter_weights(both, "default") <= {name for name, p in both.named_parameters() if p.requires_grad}


def test_the_values_own_weights() -> None:
    for kind in KINDS:
        both = pair(kind)
        names = {id(weight): name for name, weight in both.named_parameters()}
        found = {names[id(weight)] for weight in both.value_parameters()}
        if kind == "separate":
            assert found == {name for name in names.values() if name.startswith("value_model.")}
        else:
            assert found == adapter_weights(both, VALUE_ADAPTER) | {"value_head.weight"}


@pytest.mark.parametrize("kind", ["separate", "shared"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    both = pair(kind).train()
    assert not both.is_gradient_checkpointing
    gradients(both, 1, 1)
    wanted = {name: weight.grad.clone() for name, weight in both.named_parameters() if weight.grad is not None}
    both.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    models = [model for model in (both.policy, both.value_model) if model is not None]
    assert both.is_gradient_checkpointing and all(model.is_gradient_checkpointing for model in models)
    gradients(both, 1, 1)
    for name, weight in both.named_parameters():
        if weight.grad is not None:
            close(weight.grad, wanted[name])
    both.gradient_checkpointing_disable()
    assert not any(model.is_gradient_checkpointing for model in models)


def test_two_adapters_and_recomputed_activations_do_not_go_together() -> None:
    with pytest.raises(UserError, match="gradient_checkpointing: recomputes under the wrong adapter with value_model"):
        pair("adapter").gradient_checkpointing_enable()


def test_a_value_model_needs_a_score_layer() -> None:
    with pytest.raises(UserError, match=r"value model: LlamaForCausalLM has no `score` layer; use --value_model_kind"):
        score_head(tiny("llama"))
    classifier = tiny("llama", AutoModelForSequenceClassification, num_labels=1)
    assert score_head(classifier) is classifier.score


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
