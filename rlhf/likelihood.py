"""How likely texts are under a policy, and how far it has moved from its reference on the replies that it writes."""

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.generate import Reply
from rlhf.models import Policy, scoring_batch
from rlhf.records import Messages

_MOST_TOKENS = 16_384  # in a batch, padding included: their logits over a large vocabulary are gigabytes


def reply_kl(
    policy: Policy, reference: Policy, replies: list[Reply], temperature: float = 1.0, batch_size: int = 32
) -> list[float]:
    """KL(policy || reference) of each reply, in nats, summed over its tokens.

    On replies that the policy sampled, sum_t KL(pi(. | y_<t) || ref(. | y_<t)) is an unbiased
    estimate of the KL between the two distributions over whole replies, with the sampled token
    integrated out: never negative, and of lower variance than log pi(y) - log ref(y)
    (Amini et al. 2025, "Better Estimation of the KL Divergence Between Language Models").
    Both distributions are those at `temperature`, the one that the replies were drawn at.
    """
    totals = [0.0] * len(replies)
    for _, batch in kl_batches(policy, reference, replies, temperature, batch_size):
        for row, total in batch:
            totals[row] = total
    return totals


def kl_batches(
    policy: Policy,
    reference: Policy,
    replies: list[Reply],
    temperature: float,
    batch_size: int,
    skip: Container[int] = (),
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """`reply_kl` batch by batch: its number, and the place in `replies` and KL of each reply in it.

    Batches of the numbers in `skip` are left out: the same replies and batch size make the same batches.
    """
    import torch

    scale = temperature if temperature > 0 else 1.0
    batch_size = scoring_batch(batch_size, policy.model)
    encoded = [(row.prompt_ids + row.ids, [0] * len(row.prompt_ids) + [1] * len(row.ids)) for row in replies]
    order = sorted(range(len(replies)), key=lambda row: len(encoded[row][0]))
    models = (policy.model, reference.model)
    with torch.no_grad(), _evaluating(policy.model), _evaluating(reference.model):
        for number, start in enumerate(range(0, len(order), batch_size)):
            if number in skip:
                continue
            rows = order[start : start + batch_size]
            totals = list[float]()
            while len(totals) < len(rows):
                left = [encoded[row] for row in rows[len(totals) :]]
                totals += _batch_kls(*models, left[: _first_pass([len(ids) for ids, _ in left], models)], scale)
            yield number, list(zip(rows, totals, strict=True))


def _batch_kls(model: Any, reference: Any, batch: Sequence[tuple[list[int], list[int]]], scale: float) -> list[float]:
    import torch

    input_ids, attention, keep = _padded(batch, model.device)
    logps, others = (
        torch.log_softmax(_logits(one, input_ids, attention, keep) / scale, dim=-1) for one in (model, reference)
    )
    kl = torch.nn.functional.kl_div(others, logps, reduction="none", log_target=True).sum(-1)  # (tokens,)
    table = kl.new_zeros(keep.shape)
    table[keep] = kl
    return table.sum(-1).clamp(min=0).tolist()


def text_logp(policy: Policy, texts: list[str], batch_size: int = 32) -> list[float]:
    """The log-likelihood of each text as a document of its own, in nats, summed over all its tokens.

    No chat template: the text follows the token that begins a document (the one that ends it where the
    tokenizer has none), as in lm-evaluation-harness, so that the first word counts too.
    Raises UserError for a text that does not fit the policy's context.
    """
    tokenizer = policy.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    rows = [_text_ids(policy, text) for text in texts]
    return [-nll for nll in sequence_nlls(policy, [([first, *ids], [0, *[1] * len(ids)]) for ids in rows], batch_size)]


def encode_replies(
    policy: Policy, prompts: Sequence[Messages], responses: Sequence[str], max_length: int, cut: CutReport
) -> list[tuple[list[int], list[int]]]:
    """Of each response its ids behind its prompt's, and a mask of as many, 1 on the reply and its end of turn.

    Longer prompts lose their start, counted in `cut`. Raises UserError where `max_length` has no room for any prompt.
    """
    encoded = []
    for prompt, response in zip(prompts, responses, strict=True):
        both = policy.encoder.encode_reply(prompt, [response], max_length, cut)
        if both is None:
            raise UserError(f"{policy.path}: max_length {max_length} is too short for any prompt; raise it")
        ids, (reply,) = both
        encoded.append((ids + reply, [0] * len(ids) + [1] * len(reply)))
    return encoded


def sequence_nlls(
    policy: Policy,
    encoded: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    done: Callable[[int], Any] = lambda _: None,
) -> list[float]:
    """The negative log-likelihood in nats of each sequence's counted tokens, given all before them.

    Args:
        policy: the model.
        encoded: token ids and a mask of as many, 1 on what counts; a first token has nothing before it, and is
            never counted.
        batch_size: sequences at a time, at most; long ones go fewer at a time.
        done: called with how many were done, after each batch.
    """
    import torch

    found = [0.0] * len(encoded)
    with torch.no_grad(), _evaluating(policy.model):
        for rows in _batches([len(ids) for ids, _ in encoded], scoring_batch(batch_size, policy.model), policy.model):
            nlls = _batch_nlls(policy.model, [encoded[row] for row in rows])
            for row, nll in zip(rows, nlls, strict=True):
                found[row] = nll
            done(len(rows))
    return found


def _batches(sizes: Sequence[int], batch_size: int, model: Any) -> Iterator[list[int]]:
    """Places of like size, the longest first, so that what does not fit in memory shows at once."""
    order = sorted((at for at, size in enumerate(sizes) if size > 1), key=lambda at: (-sizes[at], at))
    while order:
        step = min(batch_size, max(1, _MOST_TOKENS // sizes[order[0]]))
        step = _first_pass([sizes[at] for at in order[:step]], [model])
        yield order[:step]
        order = order[step:]


def _first_pass(sizes: Sequence[int], models: Iterable[Any]) -> int:
    """How many sequences of these sizes go through the models in one pass, from the first on."""
    from rlhf.packing import first_pass, packs_logits

    return first_pass(sizes) if all(map(packs_logits, models)) else len(sizes)


def _batch_nlls(model: Any, batch: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    import torch

    input_ids, attention, keep = _padded(batch, model.device)
    logits = _logits(model, input_ids, attention, keep)
    table = torch.zeros(keep.shape, dtype=torch.float64, device=keep.device)
    table[keep] = torch.nn.functional.cross_entropy(logits, input_ids[:, 1:][keep], reduction="none").double()
    return table.sum(-1).tolist()


def _text_ids(policy: Policy, text: str) -> list[int]:
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) + 1 > policy.max_length:
        raise UserError(
            f"{policy.path}: a text of {len(ids):,} tokens ({text[:40]!r}) does not fit its context, which is "
            f"{policy.max_length:,}; leave that text out"
        )
    return ids


def _logits(model: Any, input_ids: Any, attention: Any, keep: Any) -> Any:
    """(tokens, vocabulary) float32: what is predicted for each token that `keep`, (batch, time - 1), has."""
    from rlhf.packing import packed_logits, packs_logits

    if packs_logits(model) and keep.any():
        return packed_logits(model, input_ids[:, :-1], keep).float()
    return model(input_ids=input_ids, attention_mask=attention, use_cache=False).logits[:, :-1][keep].float()


def _padded(batch: Sequence[tuple[list[int], list[int]]], device: Any) -> tuple[Any, Any, Any]:
    """Ids and masks padded on the right: the ids, where they are (both (batch, time)), and what counts from id 1 on."""
    import torch

    width = max(len(ids) for ids, _ in batch)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    attention = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
    keep = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in batch])[:, 1:].bool()
    return input_ids.to(device), attention.to(device), keep.to(device)


@contextlib.contextmanager
def _evaluating(model: Any):
    """Dropout off, and back as it was."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
