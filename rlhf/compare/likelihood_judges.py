"""Judges that need no network: how likely a model finds a reply, and the reward that a DPO run has learned."""

from collections.abc import Sequence
from typing import Any

from rlhf.compare.quality.likelihoods import load_policy_or_base
from rlhf.data.encode import CutReport
from rlhf.implicit import load_implicit_reward
from rlhf.likelihood import encode_replies, sequence_nlls
from rlhf.records import Messages, RewardFunction

LIKELIHOOD, IMPLICIT = "likelihood", "implicit"


def is_likelihood_judge(place: str) -> bool:
    """Whether `place` is `likelihood:MODEL` or `implicit:RUN`."""
    kind, colon, path = place.partition(":")
    return bool(colon and path) and kind in (LIKELIHOOD, IMPLICIT)


def likelihood_judge(place: str, batch_size: int = 32) -> RewardFunction:
    """The judge of `likelihood:MODEL` or `implicit:RUN`, its models loaded. Raises UserError where they cannot be."""
    kind, _, path = place.partition(":")
    return (
        mean_likelihood(path, batch_size) if kind == LIKELIHOOD else load_implicit_reward(path, batch_size=batch_size)
    )


def mean_likelihood(path: str, batch_size: int = 32) -> RewardFunction:
    """log p(reply | prompt) under the model at `path`, in nats a token, the end of turn one of them.

    So an empty reply has a token too. It likes what the model would write itself: plain and safe replies.
    """
    judge = load_policy_or_base(path)

    def scores(prompts: Sequence[Messages], responses: Sequence[str], **columns: Any) -> list[float]:
        encoded = encode_replies(judge, prompts, responses, judge.max_length, CutReport())
        totals = sequence_nlls(judge, encoded, batch_size)
        return [-nll / sum(mask) for nll, (_, mask) in zip(totals, encoded, strict=True)]

    return scores
