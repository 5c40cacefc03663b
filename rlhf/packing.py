"""Rows of unlike length in one forward pass without padding, on CPUs.

Every layer but attention handles each token by itself, so rows can lie end to end in one; attention is then asked
row by row. On a GPU, where that would start a kernel for each row, rows are padded.

It is transformers' own way of adding an attention (`AttentionInterface`), under a name of its own: models that are
made to use it behave in all other calls as with `sdpa`.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.decoding import causal, trunk

_NAME = "sdpa_row_by_row"


def pack_rows(model: Any) -> bool:
    """Make a model that will run on a CPU ask attention row by row, where it can. Returns whether it does.

    Left alone are models with layers that carry something from token to token beside attention (state-space and
    linear attention, convolutions), with windows or chunks, with positions that are not an argument, and
    those that were loaded with another attention than `sdpa`.
    """
    if _can_pack(causal(model)):
        causal(model).set_attn_implementation(_NAME)
    return packs_rows(model)


def packs_rows(model: Any) -> bool:
    """Whether `pack_rows` was asked and could: `packed_hidden` then takes the model."""
    return causal(model).config._attn_implementation == _NAME


def packed_hidden(model: Any, input_ids: Tensor, seen: Tensor) -> Tensor:
    """The last hidden states of the seen tokens, row after row, `(tokens, hidden)`.

    Args:
        model: one that `packs_rows`.
        input_ids: `(batch, time)`.
        seen: `(batch, time)`, true on the first tokens of each row; the others take no part.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    lengths = seen.sum(1, dtype=torch.int32)
    lengths = lengths[lengths > 0]
    return trunk(model)(
        input_ids=input_ids[seen][None],
        position_ids=positions[seen][None],
        attention_mask=lengths[None, None, None],  # models hand on a mask of four dimensions as it is
        use_cache=False,
    ).last_hidden_state[0]


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`sdpa`, and row by row where the mask is the rows' lengths.

    The states are `(1, heads, tokens, size)`; returns `(1, tokens, heads, size)`.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = attention_mask.flatten().tolist()
    rows = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in rows], dim=1), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def _can_pack(model: Any) -> bool:
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
