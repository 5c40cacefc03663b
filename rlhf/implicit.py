"""The implicit reward of a policy: how much likelier it finds a reply than the model that it began from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.encode import CutReport
from rlhf.errors import UserError
from rlhf.likelihood import encode_replies, sequence_nlls
from rlhf.lineage import Lineage, run_folder, trace
from rlhf.models import Policy, load_policy, load_to_ask, load_tokenizer, whole_on_each_rank
from rlhf.records import Messages
from rlhf.runs import read_run

KIND = "implicit"  # what `reward_kind` calls it


class ImplicitReward:
    """beta (log pi(reply | prompt) - log ref(reply | prompt)), the end of the turn counted; a RewardFunction.

    The reward that pi is the best policy for at a KL price of beta, but for a number that depends on the prompt alone,
    which no comparison of two replies sees (Rafailov et al. 2023, "Direct Preference Optimization: Your Language
    Model is Secretly a Reward Model", equation 5). It is 0 for all replies where nothing was learned.

    Args:
        policy: pi, with its tokenizer.
        reference: ref, a causal language model with the same tokens.
        beta: reward a nat.
        max_length: tokens of prompt and reply together; longer prompts lose their start.
        batch_size: replies at a time.
    """

    def __init__(self, policy: Policy, reference: Policy, beta: float, max_length: int, batch_size: int = 32) -> None:
        self.policy = policy
        self.reference = reference
        self.beta = beta
        self.encoder = policy.encoder
        self.max_length = max_length
        self.batch_size = batch_size
        self.cut = CutReport()

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str], **_: Any) -> list[float]:
        """The reward of each response; higher is better."""
        encoded = encode_replies(self.policy, prompts, responses, self.max_length, self.cut)
        before, after = (sequence_nlls(model, encoded, self.batch_size) for model in (self.reference, self.policy))
        return [self.beta * (old - new) for old, new in zip(before, after, strict=True)]


def is_implicit(path: str) -> bool:
    """Whether `path` is a run of `rlhf reward --reward_kind implicit`, or a checkpoint of one."""
    folder = run_folder(path)
    if folder is None:
        return False
    run = read_run(folder)
    return run.stage == "reward" and run.config.get("reward_kind") == KIND


def load_implicit_reward(
    path: str, max_length: int | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> ImplicitReward:
    """The implicit reward of a run of `rlhf reward --reward_kind implicit`, or of `rlhf dpo`.

    beta and the start are the run's own; a start that moved with its run is found beside it.
    Raises UserError for other folders, and where beta or start are not to be had.
    """
    beta, start = _beta_and_start(path)
    with whole_on_each_rank():
        policy = load_policy(path, trust_remote_code=trust_remote_code)
        reference = load_to_ask(start, trust_remote_code=trust_remote_code)
    if policy.tokenizer.get_vocab() != load_tokenizer(start, trust_remote_code=trust_remote_code).get_vocab():
        raise UserError(f"{path}: has not the tokenizer of its start, {start}; give the start that it had")
    theirs = Policy(reference, policy.tokenizer, policy.encoder, start, policy.max_length)
    return ImplicitReward(policy, theirs, beta, min(max_length or policy.max_length, policy.max_length), batch_size)


def _beta_and_start(path: str) -> tuple[float, str]:
    lineage = trace(path)
    run = list(lineage.runs.values())[-1].run if run_folder(path) is not None else None
    if run is None or not (run.stage == "dpo" or is_implicit(path)):
        what = "no run folder" if run is None else f"a run of {run.stage}"
        if run is not None and run.stage == "reward":
            what = "a reward run whose score is a head's"
        raise UserError(
            f"{path}: is {what}; implicit rewards are those of rlhf dpo, and of rlhf reward --reward_kind {KIND}"
        )
    beta, start = run.config.get("beta"), run.config.get("model_name_or_path")
    if not isinstance(beta, int | float) or not isinstance(start, str):
        raise UserError(f"{path}/run.json: holds no beta or no model_name_or_path; give a run that has both")
    return float(beta), _start(lineage, run.parents, start)


def _start(lineage: Lineage, parents: Sequence[str], given: str) -> str:
    """Where the model that a run began from lies: as its config says, else the parent of that name beside it."""
    if Path(given).is_dir():
        return given
    near = [lineage.runs[one].folder for one in parents if one in lineage.runs]
    return next((str(folder) for folder in near if folder.name == Path(given).name), given)
