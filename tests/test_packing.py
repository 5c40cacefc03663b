"""Rows end to end in one forward pass, against transformers' own forward pass of each row alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf.layers import trunk
from rlhf.packing import first_pass, pack_rows, packed_hidden, packed_logits, packs_logits, packs_rows
from rlhf.ppo.networks import kept_hidden
from tests.architectures import SETTINGS, close, lora, tiny

ROWS = [[5, 9, 7, 3, 8, 11, 12, 44], [4, 6, 11, 20], [13, 30, 31, 32, 33]]
# The others have windows, an attention that is not a part to be changed, or layers that remember.
PACKED = {"llama", "qwen2", "qwen3", "cohere", "granite", "phi", "gpt2", "gpt_neox", "opt", "hyperclovax"}
WINDOWED = {"mistral", "gemma2", "gemma3_text"}


def rows_and_seen(fill: int = 17) -> tuple[Tensor, Tensor]:
    """The rows padded on the right with a token that must not matter, and where they are."""
    width = max(map(len, ROWS))
    seen = torch.tensor([[at < len(ids) for at in range(width)] for ids in ROWS])
    return torch.tensor([ids + [fill] * (width - len(ids)) for ids in ROWS]), seen


def packing(architecture: str, **changes: Any) -> Any:
    model = tiny(architecture, **changes)
    assert pack_rows(model) and packs_rows(model)
    return model


def alone(model: Any) -> Tensor:
    """The last hidden states of all rows, each from a pass of its own."""
    return torch.cat([trunk(model)(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in ROWS])


def gradients(model: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Of a loss in which every number has a weight of its own."""
    model.zero_grad()
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_which_architectures_are_packed() -> None:
    assert {name for name in SETTINGS if pack_rows(tiny(name))} == PACKED
    assert not {name for name in SETTINGS if packs_rows(tiny(name))}  # unless it was asked for


@pytest.mark.parametrize("architecture", sorted(set(SETTINGS) - PACKED))
def test_the_others_are_left_as_they_were(architecture: str) -> None:
    model = tiny(architecture)
    before = model.config._attn_implementation
    pack_rows(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_a_row_sees_itself_alone(architecture: str) -> None:
    model = packing(architecture)
    with torch.no_grad():
        close(packed_hidden(model, *rows_and_seen()), alone(tiny(architecture)))


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_logits_are_the_model_s_own_and_made_for_kept_tokens_alone(architecture: str) -> None:
    model, plain, made = packing(architecture), tiny(architecture), list[int]()
    assert packs_logits(model) and not packs_logits(plain)
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: made.append(output.shape[1]))
    ids, seen = rows_and_seen()
    keep = seen.clone()
    keep[0, :6] = keep[1, 2:] = False
    with torch.no_grad():
        found = packed_logits(model, ids, keep)
        wanted = [plain(input_ids=torch.tensor([row])).logits[0] for row in ROWS]
    close(found, torch.cat([wanted[0][6:], wanted[1][:2], wanted[2]]))
    assert made == [2 + 2 + 5]


def test_what_has_no_logits_to_keep_packs_none() -> None:
    assert not packs_logits(packing("llama").model)
    assert not packs_logits(tiny("llama")) and not packs_logits(object())
    assert packs_logits(lora(packing("llama")))


def test_how_many_rows_go_in_one_pass() -> None:
    assert [first_pass(lengths) for lengths in ([600, 500], [2000], [2000, 1], [512, 512, 1], [3])] == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_its_gradients_are_those_of_the_rows_alone(architecture: str) -> None:
    model, plain = packing(architecture), tiny(architecture)
    found, wanted = gradients(model, packed_hidden(model, *rows_and_seen())), gradients(plain, alone(plain))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        close(found[name], gradient, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_recomputed_activations_are_packed_too() -> None:
    """They are made again in the backward pass, from the arguments that the layer had."""
    model, plain = packing("llama").train(), tiny("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found, wanted = gradients(model, packed_hidden(model, *rows_and_seen())), gradients(plain, alone(plain))
    for name, gradient in wanted.items():
        close(found[name], gradient, atol=1e-4)


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_all_other_calls_are_as_before(architecture: str) -> None:
    """Padded on the left, with and without the cache of keys and values that decoding has."""
    model, plain = packing(architecture), tiny(architecture)
    ids = torch.tensor([[0, 0, 5, 9, 7], [4, 6, 11, 20, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        for use_cache in (False, True):
            given = {"input_ids": ids, "attention_mask": mask, "use_cache": use_cache}
            assert torch.equal(model(**given).logits, plain(**given).logits)
        step = {"input_ids": torch.tensor([[8], [9]]), "attention_mask": torch.cat([mask, torch.ones(2, 1).long()], 1)}
        outputs = [one(input_ids=ids, attention_mask=mask, use_cache=True) for one in (model, plain)]
        found, wanted = (
            one(**step, past_key_values=output.past_key_values).logits
            for one, output in zip((model, plain), outputs, strict=True)
        )
        assert torch.equal(found, wanted)


def test_a_lora_and_a_classifier_are_packed() -> None:
    torch.manual_seed(0)
    policy, classifier = lora(tiny("llama")), tiny("llama", AutoModelForSequenceClassification, num_labels=1)
    ids, seen = rows_and_seen()
    wanted = [kept_hidden(model, ids, seen[:, 1:]) for model in (policy, classifier)]
    assert pack_rows(policy) and pack_rows(classifier)
    for model, hidden in zip((policy, classifier), wanted, strict=True):
        close(kept_hidden(model, ids, seen[:, 1:]), hidden)


def test_only_what_comes_before_a_kept_token_is_computed() -> None:
    model, counted = packing("llama"), list[int]()
    trunk(model).embed_tokens.register_forward_hook(lambda module, inputs, output: counted.append(inputs[0].numel()))
    ids, _ = rows_and_seen()
    keep = torch.zeros(len(ROWS), ids.shape[1] - 1, dtype=torch.bool)
    keep[0, 1] = keep[0, 3] = keep[2, 0] = True  # the third and fifth token of the first row, the second of the third
    with torch.no_grad():
        close(kept_hidden(model, ids, keep), alone(tiny("llama"))[[1, 3, 12]])
    assert counted == [4 + 1]


def test_a_model_with_another_attention_is_left_alone(policy_folder: Path) -> None:
    for attention, packed in (("eager", False), ("sdpa", True)):
        model = tiny("llama")
        model.set_attn_implementation(attention)
        assert pack_rows(model) is packed


def test_a_window_is_seen_by_its_setting_alone() -> None:
    """Qwen2's has layers of one kind, and a window where it is asked for."""
    assert not pack_rows(tiny("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0))
    assert pack_rows(tiny("mistral", sliding_window=None))
    assert WINDOWED.isdisjoint(PACKED)


def test_a_saved_model_does_not_name_it(tmp_path: Path) -> None:
    packing("llama").save_pretrained(tmp_path)
    assert "row_by_row" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_the_last_mlp_is_asked_about_kept_tokens_alone(architecture: str) -> None:
    model, counted = packing(architecture), list[int]()
    mlps = [module for name, module in trunk(model).named_modules() if name.endswith(".mlp")]
    for mlp in mlps:
        mlp.register_forward_hook(lambda _, inputs, output: counted.append(inputs[0].shape[1]))
    ids, seen = rows_and_seen()
    keep = torch.zeros_like(seen)
    keep[0, 2] = keep[0, 7] = keep[2, 4] = True
    found = packed_hidden(model, ids, keep)
    close(found, alone(tiny(architecture))[[2, 7, 16]])
    # OPT has its two layers without a module around them, and computes both everywhere.
    assert counted == ([] if architecture == "opt" else [8 + 5, 3])
    wanted = gradients(plain := tiny(architecture), alone(plain)[[2, 7, 16]])
    for name, gradient in gradients(model, packed_hidden(model, ids, keep)).items():
        close(gradient, wanted[name], atol=1e-4)
    counted.clear()
    trunk(model)(input_ids=ids)
    assert counted == [ids.shape[1]] * len(mlps)  # the next call is as any other


def test_an_error_leaves_no_hook() -> None:
    model = packing("llama")
    trunk(model).norm.register_forward_pre_hook(lambda *_: 1 / 0)
    ids, seen = rows_and_seen()
    with pytest.raises(ZeroDivisionError):
        packed_hidden(model, ids, seen)
    assert not any(module._forward_hooks for module in model.modules())


def test_in_bf16_attention_is_in_float32_and_numbers_of_tokens_are_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, seen) = packing("llama"), rows_and_seen()
    counted, dtypes = list[int](), set[torch.dtype]()
    trunk(model).embed_tokens.register_forward_hook(lambda _, inputs, output: counted.append(inputs[0].numel()))
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def asked(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtypes.add(query.dtype)
        return sdpa(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", asked)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = packed_hidden(model, ids, seen)
    torch.testing.assert_close(found.float(), alone(tiny("llama")), rtol=0.1, atol=0.1)
    assert (counted, dtypes) == ([64], {torch.float32})
    half = packing("llama").bfloat16()
    with torch.no_grad():
        found = packed_hidden(half, ids, seen)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), alone(tiny("llama")), rtol=0.2, atol=0.2)
