"""reward: learn a score from preferences. TRL's RewardTrainer or DPOTrainer, judged beside honest baselines."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from datasets import Dataset
from trl import DPOConfig, ModelConfig, RewardConfig, RewardTrainer, get_peft_config

from rlhf import dpo
from rlhf.agreement import human_ceiling
from rlhf.config import as_dict
from rlhf.data.encode import CutReport, Encoder
from rlhf.data.split import check_splits
from rlhf.errors import UserError
from rlhf.implicit import KIND as IMPLICIT
from rlhf.intervals import mean_interval
from rlhf.models import check_context, load_classifier, load_tokenizer, stop_ids
from rlhf.records import Preference, Run, Tie, read_jsonl
from rlhf.runs import is_main_process, open_run
from rlhf.scoring import load_reward_model
from rlhf.training import encode_rows, load_for_training, model_path, set_up, train


@dataclass
class RewardData:
    """Where the preferences lie."""

    preferences: str = field(metadata={"help": "JSONL file of preferences to train on."})
    eval_preferences: str | None = field(
        default=None,
        metadata={"help": "JSONL file of preferences on held-out prompts, to measure accuracy on."},
    )
    eval_ties: str | None = field(
        default=None, metadata={"help": "JSONL file of ties on held-out prompts; they count in the human ceiling."}
    )
    reward_kind: str = field(
        default="score",
        metadata={
            "help": "score: a head at the reply's last token. implicit: DPO's, beta (log pi - log ref) of the reply, "
            "0 for all before training, so that nothing needs centering; twice the memory."
        },
    )
    beta: float = field(default=0.5, metadata={"help": "implicit: reward a nat."})
    use_margin: bool = field(
        default=False, metadata={"help": "Ask for a score difference of at least the margin of each pair."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


@dataclass(frozen=True)
class Prepared:
    """A trainer that is made once the run folder is open, how many pairs it has, and what was cut off them."""

    trainer: Callable[[], Any]
    num_pairs: int
    cut: CutReport


class Config(NamedTuple):
    """What `configs/reward.yaml` may hold."""

    data: RewardData
    model: ModelConfig
    training: RewardConfig


def run(config: Config) -> Run:
    """Train a reward model; the run folder is a plain Hugging Face sequence classifier, or language model (implicit).

    Raises UserError for missing or broken data and models, before anything is written.
    """
    data, model_config, training = config
    set_up(training)
    path = model_path(model_config)
    make = _maker(data)
    preferences = read_jsonl(data.preferences, Preference)
    held_out = read_jsonl(data.eval_preferences, Preference) if data.eval_preferences else []
    ties = read_jsonl(data.eval_ties, Tie) if data.eval_ties else []
    if data.eval_preferences:
        check_splits([data.preferences, data.eval_preferences])

    tokenizer = load_tokenizer(path, training.chat_template_path, training.trust_remote_code)
    prepared = make(config, path, tokenizer, preferences)

    inputs = {"model": path, "preferences": data.preferences, "eval_preferences": data.eval_preferences}
    with open_run("reward", str(training.output_dir), as_dict(config), inputs, data.resume) as folder:
        training.chat_template_path = None  # set in the tokenizer already
        metrics: dict[str, Any] = dict(train(prepared.trainer(), folder, data.resume))
        if held_out and is_main_process():
            metrics |= evaluate(str(folder.path), held_out, ties, training)
        return folder.finish(**metrics, num_preferences=prepared.num_pairs, cut=prepared.cut.metrics())


def _maker(data: RewardData) -> Callable[[Config, str, Any, list[Preference]], Prepared]:
    if data.reward_kind not in ("score", IMPLICIT):
        raise UserError(f"reward_kind: `{data.reward_kind}` is neither score nor {IMPLICIT}")
    if data.reward_kind == "score":
        return _score
    if data.use_margin:
        raise UserError(f"use_margin: is for scores of a head; leave it out, or the --reward_kind {IMPLICIT}")
    if data.beta <= 0:
        raise UserError(f"beta: {data.beta} is not above 0")
    return _implicit


def _score(config: Config, path: str, tokenizer: Any, preferences: list[Preference]) -> Prepared:
    """TRL's RewardTrainer: one number at the reply's last token."""
    data, model_config, training = config
    model_config.lora_task_type = "SEQ_CLS"  # with a head, whatever the flags say
    model = load_classifier(path, tokenizer, model_config.dtype, training.trust_remote_code)
    check_context(training.max_length, model, "max_length", path)
    pairs, cut = tokenize(preferences, Encoder(tokenizer), training.max_length, data)

    def trainer() -> RewardTrainer:
        return RewardTrainer(
            model=model,
            args=training,
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )

    return Prepared(trainer, len(pairs), cut)


def _implicit(config: Config, path: str, tokenizer: Any, preferences: list[Preference]) -> Prepared:
    """TRL's DPOTrainer: a policy whose likelihoods, beside its start's, are the reward."""
    data, model_config, training = config
    model_config.lora_task_type = "CAUSAL_LM"
    model = load_for_training(model_config, training)
    check_context(training.max_length, model, "max_length", path)
    pairs, cut = dpo.tokenize(preferences, Encoder(tokenizer, stop_ids(model)), training.max_length, data.preferences)
    reference = None if model_config.use_peft else load_for_training(model_config, training)
    shared = {one.name for one in fields(DPOConfig)} & {one.name for one in fields(RewardConfig) if one.init}

    def trainer() -> dpo.TokenDPOTrainer:
        return dpo.TokenDPOTrainer(
            model=model,
            ref_model=reference,
            args=DPOConfig(beta=data.beta, **{name: getattr(training, name) for name in shared}),
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )

    return Prepared(trainer, len(pairs), cut)


def tokenize(
    rows: list[Preference], encoder: Encoder, max_length: int | None, data: RewardData
) -> tuple[Dataset, CutReport]:
    """Preferences as a dataset of `chosen_ids` and `rejected_ids`, and `margin` where it is used."""

    def encode(row: Preference, cut: CutReport) -> dict[str, Any] | None:
        sides = [row.chosen[-1]["content"], row.rejected[-1]["content"]]
        encoded = encoder.encode_reply(row.prompt, sides, max_length, cut)
        if encoded is None:
            return None
        prompt, (chosen, rejected) = encoded
        ids = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        return ids | {"margin": row.margin} if data.use_margin else ids

    encoded, cut = encode_rows(rows, encode, "preferences", max_length or 0, data.preferences)
    return Dataset.from_list(encoded), cut


def evaluate(path: str, held_out: list[Preference], ties: list[Tie], training: RewardConfig) -> dict[str, Any]:
    """Accuracy of the saved model on held-out pairs, with interval, beside baseline and ceiling.

    A pair counts 1 where the chosen response scores higher, 0.5 where both score the same. Intervals
    are bootstrapped over prompts, since the pairs of a prompt are no independent evidence. `longer_wins`
    is the same for "the longer response in tokens is better"; `human_ceiling` the expected agreement
    of one person with the majority of the others, where several ranked the same pair.
    """
    scorer = load_reward_model(path, training.max_length, training.per_device_eval_batch_size)
    groups = [row.group_id for row in held_out]
    prompts = [row.prompt for row in held_out]
    chosen = [row.chosen[-1]["content"] for row in held_out]
    rejected = [row.rejected[-1]["content"] for row in held_out]
    better, worse = scorer(prompts, chosen), scorer(prompts, rejected)
    lengths = [
        (float(len(scorer.encoder.reply_ids(p, c))), float(len(scorer.encoder.reply_ids(p, r))))
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]
    accuracy = mean_interval([_wins(a, b) for a, b in zip(better, worse, strict=True)], groups, bounds=(0, 1))
    longer = mean_interval([_wins(a, b) for a, b in lengths], groups, bounds=(0, 1))
    ceiling = human_ceiling([*held_out, *ties])
    return {
        "accuracy": asdict(accuracy),
        "longer_wins": asdict(longer),
        "human_ceiling": asdict(mean_interval(ceiling.values, ceiling.groups, bounds=(0, 1))) if ceiling else None,
        "margin": sum(a - b for a, b in zip(better, worse, strict=True)) / len(better),
        "eval_pairs": len(held_out),
        "eval_cut": scorer.cut.metrics(),
    }


def _wins(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0
