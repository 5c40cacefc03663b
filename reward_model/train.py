"""reward: learn a score from preferences. TRL's RewardTrainer, judged beside honest baselines."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from datasets import Dataset
from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config

from rlhf.agreement import human_ceiling
from rlhf.config import as_dict
from rlhf.data.encode import CutReport, Encoder
from rlhf.data.split import check_splits
from rlhf.intervals import mean_interval
from rlhf.models import check_context, load_classifier, load_tokenizer
from rlhf.records import Preference, Run, Tie, read_jsonl
from rlhf.runs import is_main_process, open_run
from rlhf.scoring import load_reward_model
from rlhf.training import encode_rows, model_path, set_up, train


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
    use_margin: bool = field(
        default=False, metadata={"help": "Ask for a score difference of at least the margin of each pair."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


class Config(NamedTuple):
    """What `configs/reward.yaml` may hold."""

    data: RewardData
    model: ModelConfig
    training: RewardConfig


def run(config: Config) -> Run:
    """Train a reward model; the run folder is a plain Hugging Face sequence classifier.

    Raises UserError for missing or broken data and models, before anything is written.
    """
    data, model_config, training = config
    set_up(training)
    path = model_path(model_config)
    model_config.lora_task_type = "SEQ_CLS"  # with a head, whatever the flags say
    preferences = read_jsonl(data.preferences, Preference)
    held_out = read_jsonl(data.eval_preferences, Preference) if data.eval_preferences else []
    ties = read_jsonl(data.eval_ties, Tie) if data.eval_ties else []
    if data.eval_preferences:
        check_splits([data.preferences, data.eval_preferences])

    tokenizer = load_tokenizer(path, training.chat_template_path, training.trust_remote_code)
    model = load_classifier(path, tokenizer, model_config.dtype, training.trust_remote_code)
    check_context(training.max_length, model, "max_length", path)
    train_set, cut = tokenize(preferences, Encoder(tokenizer), training.max_length, data)

    inputs = {"model": path, "preferences": data.preferences, "eval_preferences": data.eval_preferences}
    with open_run("reward", str(training.output_dir), as_dict(config), inputs, data.resume) as folder:
        training.chat_template_path = None  # set in the tokenizer already
        trainer = RewardTrainer(
            model=model,
            args=training,
            train_dataset=train_set,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
        metrics: dict[str, Any] = dict(train(trainer, folder, data.resume))
        if held_out and is_main_process():
            metrics |= evaluate(str(folder.path), held_out, ties, training)
        return folder.finish(**metrics, num_preferences=len(train_set), cut=cut.metrics())


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
