"""Replies as they are written: of one policy, or of several at the same time."""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.encode import CutReport
from rlhf.generate import Sampling, sampling_options
from rlhf.models import Policy
from rlhf.records import Messages


@dataclass(frozen=True)
class Piece:
    """The reply of one policy so far; `ending` says in words how it ended, None while it grows."""

    column: int
    text: str
    ending: str | None = None


def stream(
    policies: Sequence[Policy], conversations: Sequence[Messages], sampling: Sampling, stop: threading.Event
) -> Iterator[Piece]:
    """The replies of all policies while they are written at the same time, each to its conversation.

    Yields the newest state of each reply, the last one of each with its `ending`. Setting `stop`, or
    closing the iterator, ends the writing at the next token. An error in a policy becomes its ending.
    """
    pieces: queue.Queue[Piece] = queue.Queue()
    writers = [
        threading.Thread(target=_write, args=(*column, sampling, stop, pieces), daemon=True)
        for column in zip(range(len(policies)), policies, conversations, strict=True)
    ]
    try:
        for writer in writers:
            writer.start()
        running = len(writers)
        while running:
            # Where tokens come faster than they are shown, only the newest state of each counts.
            newest = {piece.column: piece for piece in _waiting(pieces)}
            running -= sum(piece.ending is not None for piece in newest.values())
            yield from newest.values()
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def _waiting(pieces: queue.Queue[Piece]) -> Iterator[Piece]:
    yield pieces.get()
    with contextlib.suppress(queue.Empty):
        while True:
            yield pieces.get_nowait()


class _Feed:
    """What `generate` calls with each token.

    Not transformers' TextIteratorStreamer: it holds a word back until the next space, so text
    without spaces would not stream, and its text is not always the one that training sees.
    """

    def __init__(self, column: int, policy: Policy, pieces: queue.Queue[Piece]) -> None:
        self.column, self.policy, self.pieces = column, policy, pieces
        self.ids: list[int] = []
        self.replies = False  # once the prompt has passed

    def put(self, ids: Any) -> None:
        if not self.replies:
            self.replies = True
            return
        self.ids += ids.tolist()
        text = self.policy.encoder.text(self.ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character of which only some bytes are there
            self.pieces.put(Piece(self.column, text))

    def end(self) -> None:
        """The last state is put by the writer, which knows how the reply ended."""


def _write(
    column: int, policy: Policy, messages: Messages, sampling: Sampling, stop: threading.Event, pieces: queue.Queue
) -> None:
    feed = _Feed(column, policy, pieces)
    try:
        ending = _generate(policy, messages, sampling, stop, feed)
    except Exception as error:  # or the page would wait for ever
        logging.getLogger(__name__).exception("%s could not reply", policy.path)
        ending = f"failed: {error}"
    pieces.put(Piece(column, policy.encoder.text(feed.ids), ending))


def _generate(policy: Policy, messages: Messages, sampling: Sampling, stop: threading.Event, feed: _Feed) -> str:
    import torch
    from transformers import StoppingCriteriaList

    def stopped(ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    cut = CutReport()
    prompt = policy.encoder.fit_prompt(messages, policy.max_length - sampling.max_new_tokens, cut)
    input_ids = torch.tensor([prompt], device=policy.model.device)
    policy.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(policy.encoder.stop_ids),
        pad_token_id=policy.tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([stopped]),
        streamer=feed,
        **sampling_options(sampling),
    )
    ids = feed.ids
    how = "ended its turn" if ids and ids[-1] in policy.encoder.stop_ids else "reached the longest reply"
    if stop.is_set() and how != "ended its turn":
        how = "stopped"
    forgot = "; the start of the conversation no longer fits its context" if cut.num_prompts_cut else ""
    return f"{how} after {len(ids)} token{'s' * (len(ids) != 1)}{forgot}"
