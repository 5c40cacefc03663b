"""Rows of unlike length in one forward pass without padding, on CPUs.

Every layer but attention handles each token by itself, so rows can lie end to end in one; attention is then asked
row by row. On a GPU, where that would start a kernel for each row, rows are padded.

It is transformers' own way of adding an attention (`AttentionInterface`), under a name of its own: models that are
made to use it behave in all other calls as with `sdpa`.
"""

import inspect
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.layers import causal, trunk

_NAME = "sdpa_row_by_row"
# Tokens in one pass through a model on a CPU: what more compute no longer fits its cache.
CPU_TOKENS = 1024
# In 16 bits oneDNN makes a program for each number of tokens that it meets, and keeps a thousand: 300 MiB.
_ROUND = 64


def pack_rows(model: Any) -> bool:
    """Make a model that will run on a CPU ask attention row by row, where it can. Returns whether it does.

    Left alone are models with layers that carry something from token to token beside attention (state-space and
    linear attention, convolutions), with windows or chunks, with positions that are not an argument, and
    those that were loaded with another attention than `sdpa`.
    """
    if can_pack_rows(model):
        causal(model).set_attn_implementation(_NAME)
    return packs_rows(model)


def can_pack_rows(model: Any) -> bool:
    """Whether `pack_rows` can, on a CPU."""
    model = causal(model)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return (
        config is model.config
        and config._attn_implementation == "sdpa"
        and model._supports_attention_backend
        and not getattr(model, "_is_stateful", False)
        and not config.is_encoder_decoder
        and kinds == {"full_attention"}
        and not any(windows)
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
    )


def packs_rows(model: Any) -> bool:
    """Whether `pack_rows` was asked and could: `packed_hidden` then takes the model."""
    return causal(model).config._attn_implementation == _NAME


def packed_hidden(model: Any, input_ids: Tensor, keep: Tensor, cache: Cache | None = None) -> Tensor:
    """The last hidden states of the kept tokens, row after row, `(tokens, hidden)`.

    Args:
        model: one that `packs_rows`.
        input_ids: `(batch, time)`.
        keep: `(batch, time)`; what comes behind a row's last kept token takes no part.
        cache: an empty one, to be given the keys and values: of each layer `(1, heads, tokens, size)`.
    """
    inputs, wanted = _end_to_end(model, input_ids, keep, round_up=cache is None)
    with _computed_at(_last_mlp(model), wanted):
        body = trunk(model)(**inputs, past_key_values=cache, use_cache=cache is not None)
        return body.last_hidden_state[0, wanted]


def packed_logits(model: Any, input_ids: Tensor, keep: Tensor) -> Tensor:
    """The logits behind the kept tokens as the model itself makes them, row after row, `(tokens, vocabulary)`.

    Args:
        model: one that `packs_logits`.
        input_ids: `(batch, time)`.
        keep: `(batch, time)`, true somewhere.
    """
    inputs, wanted = _end_to_end(model, input_ids, keep)
    with _computed_at(_last_mlp(model), wanted):
        return model(**inputs, use_cache=False, logits_to_keep=wanted.nonzero().squeeze(1)).logits[0]


def packs_logits(model: Any) -> bool:
    """Whether `packed_logits` takes this, which need not be a model."""
    return (
        isinstance(model, nn.Module)
        and packs_rows(model)
        and "logits_to_keep" in inspect.signature(causal(model).forward).parameters
    )


def attend_outside_programs() -> None:
    """See to it that torch.compile leaves attention out of its programs: how many rows there are it cannot know."""
    AttentionInterface.register(_NAME, torch.compiler.disable(_attention))


def first_pass(lengths: Iterable[int]) -> int:
    """How many rows of these lengths, from the first on, go through a model in one pass on a CPU; at least one."""
    return max(1, bisect_right(list(accumulate(lengths)), CPU_TOKENS))


def _end_to_end(model: Any, input_ids: Tensor, keep: Tensor, round_up: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """What a model is called with for `keep` of `input_ids`, and which of its tokens these are, `(tokens,)`."""
    seen = keep.flip(1).cumsum(1).flip(1) > 0
    lengths = seen.sum(1, dtype=torch.int32)
    lengths = lengths[lengths > 0]
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    ids, positions, wanted = input_ids[seen], places[seen], keep[seen]
    spare = -len(ids) % _ROUND
    if spare and round_up and _is_in_16_bits(model):  # one more row, of which nothing is wanted
        ids, wanted = nn.functional.pad(ids, (0, spare)), nn.functional.pad(wanted, (0, spare))
        positions = torch.cat([positions, torch.arange(spare, device=positions.device)])
        lengths = nn.functional.pad(lengths, (0, 1), value=spare)
    # Models hand on a mask of four dimensions as it is.
    inputs = {"input_ids": ids[None], "position_ids": positions[None], "attention_mask": lengths[None, None, None]}
    return inputs, wanted


def _is_in_16_bits(model: Any) -> bool:
    return torch.is_autocast_enabled("cpu") or causal(model).dtype.itemsize == 2


def _last_mlp(model: Any) -> nn.Module | None:
    """The last layer's MLP, whose work at a token nothing but that token's prediction sees; None where it has none.

    None too where activations are made again in the backward pass, when the hooks of `_computed_at` are gone.
    """
    if trunk(model).training and causal(model).is_gradient_checkpointing:
        return None
    return [None, *(module for name, module in trunk(model).named_modules() if name.endswith(".mlp"))][-1]


@contextmanager
def _computed_at(mlp: nn.Module | None, wanted: Tensor) -> Iterator[None]:
    """Meanwhile an MLP computes the wanted ones of all tokens, `(tokens,)`, and gives 0 at the others."""
    if mlp is None:
        yield
        return

    def spread(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.new_zeros(1, len(wanted), output.shape[-1]).index_copy(1, places, output)

    places = wanted.nonzero().squeeze(1)
    hooks = [
        mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, places], *inputs[1:])),
        mlp.register_forward_hook(spread),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`sdpa`, row by row where the mask is the rows' lengths; on a CPU in float32, whatever it is asked in.

    In 16 bits PyTorch's takes several times as long there for one query, and keeps a kernel of each length that it
    ever saw: half a gigabyte in a round of PPO (docs/decisions.md).

    The states are `(1, heads, tokens, size)`; returns `(1, tokens, heads, size)`.
    """
    if query.device.type != "cpu":
        return _row_by_row(module, query, key, value, attention_mask, **kwargs), None
    with torch.autocast("cpu", enabled=False):
        output = _row_by_row(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None


def _row_by_row(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Tensor:
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    lengths = attention_mask.flatten().tolist()
    rows = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in rows], dim=1)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
