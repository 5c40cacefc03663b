"""Judges that need no network: how likely a model finds a reply, and the reward that a DPO run has learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.compare.quality.likelihoods import load_policy_or_base, sequence_nlls
from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.lineage import Lineage, run_folder, trace
from rlhf.models import Policy
from rlhf.records import Messages, RewardFunction

LIKELIHOOD, IMPLICIT = "likelihood", "implicit"

Encoded = list[tuple[list[int], list[int]]]  # of each reply: ids with the prompt's, and a mask of what counts


def is_likelihood_judge(place: str) -> bool:
    """Whether `place` is `likelihood:MODEL` or `implicit:RUN`."""
    kind, colon, path = place.partition(":")
    return bool(colon and path) and kind in (LIKELIHOOD, IMPLICIT)


def likelihood_judge(place: str, batch_size: int = 32) -> RewardFunction:
    """The judge of `likelihood:MODEL` or `implicit:RUN`, its models loaded. Raises UserError where they cannot be."""
    kind, _, path = place.partition(":")
    return mean_likelihood(path, batch_size) if kind == LIKELIHOOD else implicit_reward(path, batch_size)


def mean_likelihood(path: str, batch_size: int = 32) -> RewardFunction:
    """log p(reply | prompt) under the model at `path`, in nats a token, the end of turn one of them.

    So an empty reply has a token too. It likes what the model would write itself: plain and safe replies.
    """
    judge = load_policy_or_base(path)

    def scores(prompts: Sequence[Messages], responses: Sequence[str], **columns: Any) -> list[float]:
        encoded = _encoded(judge, prompts, responses, judge.max_length)
        totals = sequence_nlls(judge, encoded, batch_size)
        return [-nll / sum(mask) for nll, (_, mask) in zip(totals, encoded, strict=True)]

    return scores


def implicit_reward(path: str, batch_size: int = 32) -> RewardFunction:
    """beta (log pi(reply | prompt) - log ref(reply | prompt)) of a DPO run, with its own beta and start.

    The reward that the run's policy is the best for, but for a number that depends on the prompt alone, which no
    comparison of two replies sees (Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
    Secretly a Reward Model", equation 5). It is of the data that the run trained on, and favours the run's own replies.

    Raises UserError for a folder of no DPO run, and one without its beta or its start.
    """
    beta, start = _beta_and_start(path)
    policy, reference = load_policy_or_base(path), load_policy_or_base(start)
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UserError(f"judges: {path} and its start {start} have different tokenizers; give the start that it had")

    def scores(prompts: Sequence[Messages], responses: Sequence[str], **columns: Any) -> list[float]:
        encoded = _encoded(policy, prompts, responses, min(policy.max_length, reference.max_length))
        before, after = (sequence_nlls(model, encoded, batch_size) for model in (reference, policy))
        return [beta * (old - new) for old, new in zip(before, after, strict=True)]

    return scores


def _encoded(judge: Policy, prompts: Sequence[Messages], responses: Sequence[str], max_length: int) -> Encoded:
    encoded: Encoded = []
    for messages, response in zip(prompts, responses, strict=True):
        both = judge.encoder.encode_reply(messages, [response], max_length, CutReport())
        if both is None:
            raise UserError(f"{judge.path}: max_length {max_length} is too short for any prompt; leave it out")
        prompt, (reply,) = both
        encoded.append((prompt + reply, [0] * len(prompt) + [1] * len(reply)))
    return encoded


def _beta_and_start(path: str) -> tuple[float, str]:
    lineage = trace(path)
    folder = run_folder(path)
    run = None if folder is None else list(lineage.runs.values())[-1].run
    if run is None or run.stage != "dpo":
        what = "no run folder" if run is None else f"a run of {run.stage}"
        raise UserError(f"judges: {path} is {what}; implicit: takes the folder of a run of rlhf dpo")
    beta, start = run.config.get("beta"), run.config.get("model_name_or_path")
    if not isinstance(beta, int | float) or not isinstance(start, str):
        raise UserError(f"judges: {path}/run.json holds no beta or no model_name_or_path; give a run that has both")
    return float(beta), _start(lineage, run.parents, start)


def _start(lineage: Lineage, parents: Sequence[str], given: str) -> str:
    """Where the model that a run began from lies: as its config says, else the parent of that name beside it."""
    if Path(given).is_dir():
        return given
    near = [lineage.runs[one].folder for one in parents if one in lineage.runs]
    return next((str(folder) for folder in near if folder.name == Path(given).name), given)
