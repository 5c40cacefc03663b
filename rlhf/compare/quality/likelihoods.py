"""How likely texts are under a model: replies under a judge of fluency, held-out demonstrations under each policy."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.likelihood import sequence_nlls
from rlhf.models import Policy, as_policy, load_policy, load_to_ask, load_tokenizer
from rlhf.records import Demonstration, Messages, Response, make_id, read_jsonl

# A base model has no turns: what was said stands in paragraphs of their own.
_PARAGRAPHS = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}{{ message['content'] }}{{ '\\n\\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Likelihood:
    """How likely one text is under one model.

    Args:
        id: made from the model and the text.
        nll: negative log-likelihood of its counted tokens, in nats.
        num_tokens: how many those are; 0 for an empty text.
        tokens: a hash of them, so that two models are set side by side on the same tokens only.
    """

    id: str
    nll: float
    num_tokens: int
    tokens: str


def same_tokens(a: Sequence[Likelihood], b: Sequence[Likelihood]) -> bool:
    """Whether two models were asked about the same tokens, so that their nats a token say the same."""
    return [row.tokens for row in a] == [row.tokens for row in b]


def likelihood_sums(rows: Sequence[Likelihood], num_clusters: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats and tokens of each of `num_clusters` runs of as many rows, (clusters,) each."""
    nll, tokens = np.array([row.nll for row in rows]), np.array([float(row.num_tokens) for row in rows])
    return nll.reshape(num_clusters, -1).sum(1), tokens.reshape(num_clusters, -1).sum(1)


# ---- Fluency


def fluency_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a judge of fluency. One without a chat template, a base model's, gets one of paragraphs.

    Raises UserError where there is no tokenizer, or one without an end of text.
    """
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _PARAGRAPHS
    Encoder(tokenizer)
    return tokenizer


def load_policy_or_base(path: str, dtype: str | None = None, trust_remote_code: bool = False) -> Policy:
    """A policy, or a base model that has no turns, with `fluency_tokenizer`."""
    if load_tokenizer(path, trust_remote_code=trust_remote_code).chat_template:
        return load_policy(path, dtype, trust_remote_code)
    model = load_to_ask(path, dtype, trust_remote_code)
    return as_policy(model, fluency_tokenizer(path, trust_remote_code), path)


def reply_ids(model: str, messages: Sequence[Messages], replies: Sequence[Response]) -> list[str]:
    """The id of each reply's Likelihood under the model of this id."""
    return [make_id("nll", model, asked, reply.text) for asked, reply in zip(messages, replies, strict=True)]


def reply_likelihoods(
    judge: Policy, name: str, ids: Sequence[str], messages: Sequence[Messages], replies: Sequence[Response], batch: int
) -> list[Likelihood]:
    """The Likelihood of each reply after its prompt.

    Args:
        judge: the model.
        name: the policy's that wrote the replies, for the screen.
        ids: from `reply_ids`.
        messages: the prompt of each reply.
        replies: what was written. The text is tokenized anew, so that policies with other tokenizers are judged
            alike; the end of the turn is not counted, so that replies that were cut are judged as others.
        batch: replies at a time, at most.
    """
    cut, encoded = CutReport(), []
    for asked, reply in zip(messages, replies, strict=True):
        both = judge.encoder.encode_reply(asked, [reply.text], judge.max_length, cut)
        prompt, own = ([], []) if both is None else (both[0], both[1][0][:-1])
        encoded.append((prompt + own, [0] * len(prompt) + [1] * len(own)))
    return _measured(judge, f"replies of {name}", ids, encoded, batch, cut)


# ---- Held-out demonstrations


def read_demonstrations(path: str) -> list[Demonstration]:
    """Demonstrations held out from SFT. Raises UserError for one that does not end with a reply."""
    rows = read_jsonl(path, Demonstration)
    for row in rows:
        if len(row.messages) < 2 or row.messages[-1].get("role") != "assistant":
            raise UserError(
                f"{path}: demonstration `{row.id}` does not end with a reply; its last message must be the assistant's"
            )
    return rows


def demonstration_ids(model: str, rows: Sequence[Demonstration]) -> list[str]:
    """The id of each demonstration's Likelihood under the model of this id."""
    return [make_id("nll", model, row.messages) for row in rows]


def demonstration_likelihoods(
    policy: Policy, name: str, ids: Sequence[str], rows: Sequence[Demonstration], batch: int
) -> list[Likelihood]:
    """The Likelihood of what the assistant says in each demonstration, ends of turns included, as SFT learns it.

    Args:
        policy: the model.
        name: its name, for the screen.
        ids: from `demonstration_ids`.
        rows: the demonstrations.
        batch: demonstrations at a time, at most.
    """
    cut = CutReport()
    found = [policy.encoder.encode_conversation(row.messages, policy.max_length, cut) for row in rows]
    encoded = [([], []) if one is None else one for one in found]
    return _measured(policy, f"held-out demonstrations of {name}", ids, encoded, batch, cut)


# ---- Any texts


def _measured(
    policy: Policy,
    what: str,
    ids: Sequence[str],
    encoded: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    cut: CutReport,
) -> list[Likelihood]:
    if sentence := cut.sentence(what, policy.max_length):
        print(sentence)
    with tqdm(total=len(encoded), desc=what, unit=" texts") as bar:
        nlls = sequence_nlls(policy, encoded, batch_size, bar.update)
    if not np.isfinite(nlls).all():
        raise UserError(
            f"{policy.path}: its likelihood of {what} is not finite, so its numbers overflowed; set --dtype float32"
        )
    return [
        Likelihood(one, nll, sum(mask[1:]), hashlib.sha256(str((text, mask)).encode()).hexdigest()[:12])
        for one, nll, (text, mask) in zip(ids, nlls, encoded, strict=True)
    ]
