"""The decode loop: token ids in, replies out, one random number a token.

Prompts of like length share a batch. A reply that is finished leaves it once a quarter of the rows
are, so that a few long replies do not keep the short ones computing. Each token is drawn from its own
uniform number by inverting the distribution, so a reply depends on neither its batch nor the number
of ranks. `benchmarks/decoding.py` sets it beside transformers' `generate`.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rlhf.decoding_graph import FixedDecoder, can_be_fixed
from rlhf.errors import UserError
from rlhf.layers import causal, logits_of, trunk
from rlhf.packing import packed_hidden, packs_rows

# What to keep of each token that is drawn: hidden states `(batch, hidden)`, logits `(batch, vocabulary)` in float32,
# and the tokens `(batch,)`; to `(batch, figures)` float32.
Note = Callable[[Tensor, Tensor, Tensor], Tensor]

# Rounding in 16 bits moves the probability up to a token by hundredths, some more.
_MAX_MOVE = 0.05
_MIN_SHARE_EXPLAINED = 0.75


@torch.no_grad()
def decode(
    policy: Any,
    prompts: list[list[int]],
    uniforms: Tensor,
    stop_ids: Collection[int],
    temperature: float,
    batch_size: int,
    graphs: bool = True,
) -> list[list[int]]:
    """One reply a prompt: ids up to the end-of-turn token, that included where there is one.

    Args:
        policy: a causal language model, a PEFT one included.
        prompts: token ids, not padded.
        uniforms: `(prompts, max_new_tokens)`, each in [0, 1): the randomness of each token.
        stop_ids: tokens that end a reply.
        temperature: what logits are divided by; 0 takes the likeliest token. No top-k, no top-p.
        batch_size: replies at a time.
        graphs: on a GPU, record a step as a CUDA graph where the model allows it (rlhf/decoding_graph.py).
    """
    return decode_noted(policy, prompts, uniforms, stop_ids, temperature, batch_size, graphs)[0]


@torch.no_grad()
def decode_noted(
    policy: Any,
    prompts: list[list[int]],
    uniforms: Tensor,
    stop_ids: Collection[int],
    temperature: float,
    batch_size: int,
    graphs: bool = True,
    note: Note | None = None,
) -> tuple[list[list[int]], list[Tensor]]:
    """As `decode`; beside each reply what `note` made of its tokens, `(tokens, figures)` on the CPU, none without it.

    With `graphs` it is recorded with the step: it may not wait for the GPU, nor take another way for other numbers.
    """
    if "past_key_values" not in inspect.signature(trunk(policy).forward).parameters:
        raise UserError(
            f"{type(causal(policy)).__name__}: replies are decoded with a cache of keys and values, which this "
            "architecture does not take; use a transformer"
        )
    replies: list[list[int]] = [[] for _ in prompts]
    notes = [torch.zeros(0, 0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch, noted = _decode_batch(
            policy, [prompts[row] for row in rows], uniforms[rows], sorted(stop_ids), temperature, graphs, note
        )
        for at, row in enumerate(rows):
            replies[row] = cut(batch[at], stop_ids)
            if noted is not None:
                notes[row] = noted[at, : len(replies[row])]
    return replies, notes if note else []


def cut(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """Up to the first end of turn: found by position, since pad and eos are one token in many checkpoints."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), None)
    return ids if end is None else ids[: end + 1]


@torch.no_grad()
def check_decoding(
    policy: Any, prompts: list[list[int]], replies: list[list[int]], uniforms: Tensor, temperature: float
) -> None:
    """Hold the shortest and the longest prompt's replies against the model's own whole forward pass.

    Models are many: some scale their logits in a way of their own, some cannot decode prompts of
    unlike length together. Their replies would come from another distribution, without an error.

    Raises UserError where the replies are not those that the same uniform numbers draw from the forward pass.
    """
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    num_tokens = num_explained = 0
    for at in {order[0], order[-1]}:
        ids = torch.tensor([prompts[at] + replies[at]], device=policy.get_input_embeddings().weight.device)
        logits = policy(input_ids=ids, use_cache=False).logits[0, len(prompts[at]) - 1 : -1].float()
        tokens = ids[0, len(prompts[at]) :, None]
        num_tokens += len(tokens)
        num_explained += int(_explained(logits, tokens, uniforms[at, : len(tokens)].to(logits.device), temperature))
    if num_explained < _MIN_SHARE_EXPLAINED * num_tokens:
        raise UserError(
            f"model: {type(policy).__name__} does not decode prompts of unlike length together as it does each alone "
            f"({num_tokens - num_explained} of {num_tokens} tokens differ); choose another model, and report this one"
        )


def _explained(logits: Tensor, tokens: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """How many tokens `(time, 1)` the uniform numbers draw from these logits, or would but for rounding.

    Not whether the same token is drawn again: where thousands are about as likely, rounding picks a neighbour.
    """
    if temperature == 0:
        return (logits.gather(1, tokens) >= logits.amax(1, keepdim=True) - _MAX_MOVE).sum()
    probabilities = torch.softmax(logits / temperature, dim=-1)
    end = probabilities.cumsum(-1).gather(1, tokens).squeeze(1)
    start = end - probabilities.gather(1, tokens).squeeze(1)
    return ((uniforms >= start - _MAX_MOVE) & (uniforms <= end + _MAX_MOVE)).sum()


def _decode_batch(
    policy: Any,
    prompts: list[list[int]],
    uniforms: Tensor,
    stop_ids: list[int],
    temperature: float,
    graphs: bool,
    note: Note | None,
) -> tuple[list[list[int]], Tensor | None]:
    device = policy.get_input_embeddings().weight.device
    body, logits = trunk(policy), logits_of(policy)
    stops = torch.tensor(stop_ids, device=device)
    uniforms = uniforms.to(device)
    width, length = max(len(prompt) for prompt in prompts), uniforms.shape[1]
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.ones(len(prompts), width + length, dtype=torch.long)
    for row, prompt in enumerate(prompts):  # padded on the left: all replies begin in one column
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    input_ids, mask = input_ids.to(device), mask.to(device)
    takes_positions = "position_ids" in inspect.signature(body.forward).parameters
    config = policy.config.get_text_config()
    if graphs and device.type == "cuda" and takes_positions and can_be_fixed(config):
        return FixedDecoder(body, logits, draw, config, input_ids, mask, uniforms, stops, temperature, note).run()
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    # Its attention is in float32, and so are keys and values: made wider at every step they take as long as the rest.
    packs = device.type == "cpu" and packs_rows(policy)
    cache = rollout_cache(config, width + length, torch.float32 if packs else None)

    tokens = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
    notes: Tensor | None = None
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    alive = torch.arange(len(prompts), device=device)  # the rows that are still in the batch
    for t in range(length):
        if t == 0 and packs:
            hidden = _read_packed(policy, prompts, mask[:, :width].bool(), cache)
        else:
            places = {"position_ids": positions} if takes_positions else {}
            hidden = body(
                input_ids=input_ids,
                attention_mask=mask[alive, : width + t],
                past_key_values=cache,
                use_cache=True,
                **places,
            ).last_hidden_state[:, -1]
        scores = logits(hidden).float()
        drawn = draw(scores, uniforms[alive, t], temperature)
        tokens[alive, t] = drawn
        if note is not None:
            noted = note(hidden, scores, drawn)
            notes = noted.new_zeros(*tokens.shape, noted.shape[1]) if notes is None else notes
            notes[alive, t] = noted
        ended[alive] |= torch.isin(drawn, stops)
        running = ~ended[alive]
        num_running = int(running.sum())
        if num_running == 0:
            break
        positions = positions[:, -1:] + 1
        if num_running <= 0.75 * len(alive):
            keep = running.nonzero().squeeze(1)
            cache.reorder_cache(keep)  # type: ignore[arg-type]
            alive, drawn, positions = alive[keep], drawn[keep], positions[keep]
        input_ids = drawn[:, None]
    return tokens.tolist(), None if notes is None else notes.cpu()


def _read_packed(policy: Any, prompts: list[list[int]], mask: Tensor, cache: DynamicCache) -> Tensor:
    """The hidden states behind the prompts, `(batch, hidden)`; the cache gets keys and values where `mask` is true."""
    width = mask.shape[1]
    input_ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    last = torch.arange(width) == mask.sum(1, keepdim=True) - 1
    packed = DynamicCache(config=policy.config.get_text_config())
    hidden = packed_hidden(policy, input_ids, last, packed)

    def spread(states: Any) -> Tensor:
        out = states.new_zeros(*mask.shape, states.shape[1], states.shape[3])
        out[mask] = states[0].transpose(0, 1)
        return out.transpose(1, 2)

    layers: Any = zip(cache.layers, packed.layers, strict=True)
    for layer, read in layers:
        layer.update(spread(read.keys), spread(read.values))
    return hidden


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """The first token whose cumulative probability passes its uniform number; `(batch, vocabulary)` -> `(batch,)`."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(-1)
    points = uniforms.clamp(max=1 - 2**-20)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


class _Buffered(DynamicLayer):
    """Keys and values in one buffer of the final length: nothing is copied as the reply grows."""

    def __init__(self, capacity: int, kept_as: torch.dtype | None) -> None:
        super().__init__()
        self.capacity = capacity
        self.kept_as = kept_as
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.all_keys, self.all_values = (
            states.new_empty(*states.shape[:2], self.capacity, states.shape[3], dtype=self.kept_as)
            for states in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.all_keys[:, :, :end], self.all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        self.batch_select_indices(beam_idx)  # under the name that every kind of layer has


def rollout_cache(config: Any, capacity: int, kept_as: torch.dtype | None = None) -> DynamicCache:
    """transformers' cache for this model, its plain layers replaced by ones that do not copy as they grow.

    They keep what they are given `kept_as` a dtype, by default its own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_Buffered(capacity, kept_as) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
