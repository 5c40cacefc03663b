"""Policy and value model, against what transformers' own models say of unpadded prefixes, one at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf.errors import UserError
from rlhf.layers import trunk
from rlhf.packing import pack_rows
from rlhf.ppo.networks import VALUE_ADAPTER, PolicyAndValue, Reference, kept_hidden, score_head
from tests.architectures import SETTINGS, close, lora, tiny

# Three rows: prompts of 2, 3 and 1 tokens, replies of 3, 1 and 4; what lies behind them is padding.
ROWS, PROMPTS = [[5, 9, 7, 3, 8], [4, 6, 11, 20], [13, 30, 31, 32, 33]], [2, 3, 1]
TOKENS = [(row, at) for row, ids in enumerate(ROWS) for at in range(PROMPTS[row], len(ids))]
KINDS = ["separate", "shared", "adapter"]


def pair(kind: str) -> PolicyAndValue:
    policy = lora(tiny("llama"), with_value=True) if kind == "adapter" else tiny("llama")
    classifier = tiny("llama", AutoModelForSequenceClassification, num_labels=1) if kind == "separate" else None
    networks = PolicyAndValue(policy, kind, classifier)
    if networks.value_head is not None:
        nn.init.normal_(networks.value_head.weight)
    return networks


def padded(fill: int = 0, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS)) + extra
    keep = torch.zeros(len(ROWS), width - 1, dtype=torch.bool)
    for row, at in TOKENS:
        keep[row, at - 1] = True
    return torch.tensor([ids + [fill] * (width - len(ids)) for ids in ROWS]), keep


def prefixes() -> list[Tensor]:
    """What comes before each token of the replies."""
    return [torch.tensor([ROWS[row][:at]]) for row, at in TOKENS]


@pytest.mark.parametrize("architecture", SETTINGS)
def test_what_lies_behind_a_token_changes_nothing(architecture: str) -> None:
    model = tiny(architecture)
    (ids, keep), (wider, kept) = padded(), padded(fill=17, extra=4)
    close(kept_hidden(model, ids, keep), kept_hidden(model, wider, kept))


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_decode_loop_s_note_is_what_a_forward_pass_gives(kind: str) -> None:
    both = pair(kind)
    with torch.no_grad():
        hidden = torch.stack([trunk(both.policy)(input_ids=prefix).last_hidden_state[0, -1] for prefix in prefixes()])
        logits = torch.stack([both.policy(input_ids=prefix).logits[0, -1] for prefix in prefixes()])
        drawn = torch.tensor([ROWS[row][at] for row, at in TOKENS])
        noted = both.note(0.7)(hidden, logits, drawn)
        logps, values, entropy = both(*padded(), temperature=0.7, entropy=True)
    close(noted, torch.stack([logps, entropy, *([values] if kind == "shared" else [])], dim=1))


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


@pytest.mark.parametrize("kind", ["separate", "adapter"])
def test_policy_and_value_may_be_asked_apart(kind: str) -> None:
    both = pair(kind)
    wanted = both(*padded(), 1.0, entropy=True)
    logps, nothing, entropy = both(*padded(), 1.0, entropy=True, part="policy")
    assert torch.equal(logps, wanted[0]) and torch.equal(entropy, wanted[2]) and nothing.shape == (0,)
    *nothings, values = [both(*padded(), 1.0, entropy=True, part="value")[at] for at in (0, 2, 1)]
    assert torch.equal(values, wanted[1]) and all(one.shape == (0,) for one in nothings)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_end_to_end_give_the_same(kind: str) -> None:
    both = pair(kind)
    wanted = both(*padded(fill=17), 0.7, entropy=True)
    assert not both.packs_rows
    pack_rows(both.policy)
    assert both.packs_rows == (kind != "separate")  # the value model pads still
    if both.value_model is not None:
        pack_rows(both.value_model)
    assert both.packs_rows
    for found, one in zip(both(*padded(fill=17), 0.7, entropy=True), wanted, strict=True):
        close(found, one)


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
