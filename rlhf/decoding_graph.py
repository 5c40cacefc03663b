"""The decode loop on a GPU: one step recorded as a CUDA graph, and played back for each token.

A step of a language model is hundreds of small kernels, and on a GPU it takes longer to start them one by one
than to run them. A graph starts them all at once. It wants every tensor in one place and of one shape: keys and
values fill a buffer of the final length behind a mask, and the step itself moves the place where it writes. Rows that
have ended stay until half of them have; then the rest is put together and recorded again.

The same replies as rlhf/decoding.py draws, but for rounding. On a CPU the step runs as it is, which is how
tests/test_decoding_graph.py holds it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_SHRINK = 0.5  # recording again costs about as much as this many steps of the other half
_LOOK_EVERY = 8  # steps between two looks at who has ended: a look waits for the GPU


class _Fixed(DynamicLayer):
    """Keys and values in a buffer of the final length; a step writes where `at` says and sees all of it."""

    def __init__(self, capacity: int, at: Tensor) -> None:
        super().__init__()
        self.capacity = capacity
        self.at = at  # (1,)
        self.filled = False

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.filled:  # the prompts
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.capacity, key_states.shape[3])
            # Zeros, and not whatever was there: a masked NaN is still one.
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
            self.keys[:, :, : key_states.shape[2]] = key_states
            self.values[:, :, : value_states.shape[2]] = value_states
            self.filled = True
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Leave only these rows."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows].contiguous(), self.values[rows].contiguous()


def can_be_fixed(config: Any) -> bool:
    """Whether all layers of this model have a plain cache, whose whole length every token sees."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class FixedDecoder:
    """One batch of prompts, decoded by steps that do the same to the same tensors.

    Args:
        body: the model's trunk.
        logits: from its hidden states to logits.
        draw: `(logits, uniforms, temperature)` -> tokens.
        config: the text model's.
        input_ids: `(batch, width)`, padded on the left.
        mask: `(batch, width + length)`, 0 on the padding.
        uniforms: `(batch, length)`.
        stops: tokens that end a reply.
        temperature: what logits are divided by.
        note: what to keep of each token (`rlhf.decoding.Note`).
    """

    def __init__(
        self,
        body: Any,
        logits: Callable[[Tensor], Tensor],
        draw: Callable[[Tensor, Tensor, float], Tensor],
        config: Any,
        input_ids: Tensor,
        mask: Tensor,
        uniforms: Tensor,
        stops: Tensor,
        temperature: float,
        note: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.body, self.logits, self.draw, self.stops, self.temperature = body, logits, draw, stops, temperature
        self.uniforms, self.note = uniforms, note
        (batch, width), device = input_ids.shape, input_ids.device
        self.capacity = mask.shape[1]
        self.at = torch.tensor([width], device=device)  # where the next keys and values go
        self.t = torch.zeros(1, dtype=torch.long, device=device)  # the token of the reply that is drawn next
        self.cache = DynamicCache(config=config)
        self.layers = [_Fixed(self.capacity, self.at) for _ in self.cache.layers]
        self.cache.layers = list[Any](self.layers)
        self.tokens = torch.zeros(batch, uniforms.shape[1], dtype=torch.long, device=device)
        self.notes = torch.zeros(batch, uniforms.shape[1], 0, device=device)
        self.ended = torch.zeros(batch, dtype=torch.bool, device=device)
        positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self.seen = mask.bool()[:, None, None].clone()  # (batch, 1, 1, capacity)
        self.seen[..., width:] = False
        hidden = body(
            input_ids=input_ids,
            attention_mask=mask[:, :width],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.position = positions[:, -1:].clone()
        self.last = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._take(hidden)

    def _take(self, hidden: Tensor) -> None:
        """Draw a token for every row from its last hidden state."""
        uniforms = self.uniforms.index_select(1, self.t).squeeze(1)
        scores = self.logits(hidden).float()
        drawn = self.draw(scores, uniforms, self.temperature)
        self.tokens.index_copy_(1, self.t, drawn[:, None])
        if self.note is not None:
            noted = self.note(hidden, scores, drawn)
            if self.notes.shape[2] == 0:  # the first token's tell how wide they are
                self.notes = noted.new_zeros(*self.tokens.shape, noted.shape[1])
            self.notes.index_copy_(1, self.t, noted[:, None])
        self.ended.logical_or_((drawn[:, None] == self.stops).any(1))
        self.last.copy_(drawn[:, None])
        self.t += 1

    def step(self) -> None:
        """One token more for every row."""
        self.position += 1
        self.seen.index_fill_(3, self.at, True)
        hidden = self.body(
            input_ids=self.last,
            attention_mask=self.seen,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.at += 1
        self._take(hidden)

    def run(self) -> tuple[list[list[int]], Tensor | None]:
        """Every row's tokens, and with `note` its figures; what follows a row's end of turn means nothing."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        replies, notes = self.tokens.clone(), self.notes.clone()
        play = self._recorded()
        for t in range(1, self.tokens.shape[1]):
            if t % _LOOK_EVERY == 1:
                running = ~self.ended
                num_running = int(running.sum())
                if num_running == 0:
                    break
                if num_running <= _SHRINK * len(running):
                    replies[rows], notes[rows] = self.tokens, self.notes
                    kept = running.nonzero().squeeze(1)
                    rows = rows[kept]
                    self._keep(kept)
                    play = self._recorded()
            play()
        replies[rows], notes[rows] = self.tokens, self.notes
        return replies.tolist(), None if self.note is None else notes.cpu()

    def _state(self) -> list[Tensor]:
        return [self.at, self.t, self.tokens, self.notes, self.ended, self.seen, self.position, self.last]

    def _keep(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.keep(rows)
        for name in ("tokens", "notes", "ended", "seen", "position", "last", "uniforms"):
            setattr(self, name, getattr(self, name)[rows].contiguous())

    def _recorded(self) -> Callable[[], None]:
        """The step as a CUDA graph; as it is on a CPU."""
        if self.tokens.device.type != "cuda":
            return self.step
        before = [tensor.clone() for tensor in self._state()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in a first run, which cannot be recorded
            self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):  # torch.cuda.graph would also collect garbage and empty the allocator's cache
            graph.capture_begin()
            try:
                self.step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(self._state(), before, strict=True):
            tensor.copy_(value)
        return graph.replay
