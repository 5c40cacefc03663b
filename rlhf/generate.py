"""Prompts to responses: sampled in batches of like length, the same for the same seed."""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.models import Policy
from rlhf.records import Messages


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. Temperature 0 takes the likeliest token; no top-k, no top-p."""

    temperature: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One generated reply.

    `prompt_ids` are the prompt's tokens as the policy saw them, `ids` the reply's, the end-of-turn
    token included where the policy wrote one (`finished`).
    """

    prompt_index: int
    index: int
    prompt_ids: list[int]
    ids: list[int]
    text: str
    finished: bool


def generate(
    policy: Policy,
    prompts: list[Messages],
    num_responses: int,
    sampling: Sampling,
    batch_size: int,
    skip: Container[int] = (),
    cut: CutReport | None = None,
) -> Iterator[tuple[int, list[Reply]]]:
    """Sample `num_responses` replies to each prompt, `batch_size` replies at a time.

    Yields `(batch number, replies)`. Prompts of like length share a batch. A prompt's random numbers
    come from the seed and its index alone, so neither the batch size nor a batch in `skip` (done
    before a kill) changes the other replies. Prompts that do not fit lose their start, counted in `cut`.
    Raises UserError where the context has no room for a prompt beside `max_new_tokens`, and for a
    model that the decode loop does not suit.
    """
    space = check_room(policy, sampling)
    cut = cut if cut is not None else CutReport()
    cut.num_examples += len(prompts)
    encoded = [policy.encoder.fit_prompt(messages, space, cut) for messages in prompts]
    for number, batch in batches(encoded, num_responses, batch_size):
        if number not in skip:
            yield number, _generate_batch(policy, encoded, batch, num_responses, sampling, number)


def check_room(policy: Policy, sampling: Sampling) -> int:
    """The tokens left for a prompt. Raises UserError where there are none."""
    space = policy.max_length - sampling.max_new_tokens
    if space < 1:
        raise UserError(
            f"max_new_tokens: {sampling.max_new_tokens} leaves no room for a prompt in the context of {policy.path}, "
            f"which is {policy.max_length}; set --max_new_tokens {policy.max_length // 2} or less"
        )
    return space


def batches(encoded: list[list[int]], num_responses: int, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Prompt indices, longest first (so that what does not fit in memory shows at once), numbered."""
    order = sorted(range(len(encoded)), key=lambda index: (-len(encoded[index]), index))
    step = max(1, batch_size // num_responses)
    for number, start in enumerate(range(0, len(order), step)):
        yield number, order[start : start + step]


def _generate_batch(
    policy: Policy, encoded: list[list[int]], batch: list[int], num_responses: int, sampling: Sampling, number: int
) -> list[Reply]:
    import torch

    from rlhf.decoding import check_decoding, decode

    prompts = [encoded[index] for index in batch for _ in range(num_responses)]
    shape = (num_responses, sampling.max_new_tokens)
    uniforms = torch.cat([torch.rand(shape, generator=_generator(sampling.seed, index)) for index in batch])
    stops = policy.encoder.stop_ids
    replies = decode(policy.model, prompts, uniforms, stops, sampling.temperature, len(prompts))
    if number == 0:
        check_decoding(policy.model, prompts, replies, uniforms, sampling.temperature)
    return [
        Reply(
            batch[row // num_responses],
            row % num_responses,
            prompts[row],
            ids,
            policy.encoder.text(ids),
            finished=bool(ids) and ids[-1] in stops,
        )
        for row, ids in enumerate(replies)
    ]


def sampling_options(sampling: Sampling) -> dict[str, Any]:
    """What `generate` of transformers is told (by chat, which streams); all of it, since checkpoints bring defaults."""
    plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
    if sampling.temperature == 0:
        return plain | {"do_sample": False}
    return plain | {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}


def _generator(seed: int, prompt_index: int) -> Any:
    """The random numbers of one prompt's replies."""
    import torch

    digest = hashlib.sha256(f"{seed}/{prompt_index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
