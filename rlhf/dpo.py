"""dpo: train a policy on preferences. TRL's DPOTrainer, with the KL to its start logged beside."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config
from trl.models.utils import unwrap_model_for_generation

from rlhf.config import as_dict
from rlhf.data.encode import CutReport, Encoder
from rlhf.data.split import check_splits
from rlhf.generate import Sampling, generate
from rlhf.likelihood import reply_kl
from rlhf.models import as_policy, check_context, load_tokenizer, stop_ids
from rlhf.records import Messages, Preference, Run, read_jsonl
from rlhf.runs import open_run
from rlhf.training import encode_rows, final_evaluation, load_for_training, model_path, set_up, train


@dataclass
class DPOData:
    """Where the preferences lie, and how the KL to the reference is measured."""

    preferences: str = field(metadata={"help": "JSONL file of preferences to train on."})
    eval_preferences: str | None = field(
        default=None, metadata={"help": "JSONL file of held-out preferences: loss, accuracy, margins, and KL prompts."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file that replaces the template."})
    num_kl_prompts: int = field(
        default=64, metadata={"help": "Prompts that one reply each is sampled to at every measure of the KL; 0: none."}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest reply sampled for the KL, in tokens."})
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


class Config(NamedTuple):
    """What `configs/dpo.yaml` may hold."""

    data: DPOData
    model: ModelConfig
    training: DPOConfig


class TokenDPOTrainer(DPOTrainer):
    """DPOTrainer on tokens that are ready: TRL's reward and SFT trainers take such data, this one would not."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class KLToReference(TrainerCallback):
    """Measures KL(policy || reference) on fresh replies: at the start, at every evaluation, at the end."""

    trainer: DPOTrainer

    def __init__(self, prompts: list[Messages], sampling: Sampling, batch_size: int) -> None:
        self.prompts = prompts
        self.sampling = sampling
        self.batch_size = batch_size
        self.last: float | None = None
        self.last_step: int | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.measure()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.measure()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.measure()

    def measure(self) -> float:
        """The mean KL a reply in nats; logged as `kl` and returned.

        Every rank does the same prompts: with ZeRO-3 all must take part, and none may be left waiting.
        """
        trainer: Any = self.trainer
        if self.last is not None and self.last_step == trainer.state.global_step:
            return self.last
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as unwrapped:
            model: Any = unwrapped
            policy = as_policy(model, trainer.processing_class)
            was_training = model.training
            model.eval()
            batches = generate(policy, self.prompts, 1, self.sampling, self.batch_size)
            replies = [reply for _, batch in batches for reply in batch]
            reference = trainer.ref_model if trainer.ref_model is not None else _AdapterOff(model)
            values = reply_kl(policy, replace(policy, model=reference), replies, batch_size=self.batch_size)
            self.last, self.last_step = sum(values) / len(values), trainer.state.global_step
            trainer.log({"kl": self.last})  # in eval mode, else the trainer empties its training figures into it
            model.train(was_training)
        return self.last


class _AdapterOff:
    """A PEFT model with its adapter switched off: the reference at no memory."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.training = False

    def __call__(self, **inputs: Any) -> Any:
        with self.model.disable_adapter():
            return self.model(**inputs)

    def eval(self) -> None:
        """Dropout is the model's, which is off where this is called."""

    def train(self, mode: bool) -> None:
        """As `eval`."""


def run(config: Config) -> Run:
    """Train a policy on preferences; the run folder is a plain Hugging Face checkpoint.

    Logs loss, rewards, margins and accuracy of chosen over rejected, and the KL to the reference.
    Raises UserError for missing or broken data and models, before anything is written.
    """
    data, model_config, training = config
    set_up(training)
    path = model_path(model_config)
    preferences = read_jsonl(data.preferences, Preference)
    held_out = read_jsonl(data.eval_preferences, Preference) if data.eval_preferences else []
    if data.eval_preferences:
        check_splits([data.preferences, data.eval_preferences])

    tokenizer = load_tokenizer(path, data.chat_template_path, training.trust_remote_code)
    model = load_for_training(model_config, training)
    check_context(training.max_length, model, "max_length", path)
    encoder = Encoder(tokenizer, stop_ids(model))
    train_set, cut = tokenize(preferences, encoder, training.max_length, data.preferences)
    eval_set = tokenize(held_out, encoder, training.max_length, str(data.eval_preferences))[0] if held_out else None
    reference = None if model_config.use_peft else load_for_training(model_config, training)

    inputs = {"model": path, "preferences": data.preferences, "eval_preferences": data.eval_preferences}
    with open_run("dpo", str(training.output_dir), as_dict(config), inputs, data.resume) as folder:
        trainer = TokenDPOTrainer(
            model=model,
            ref_model=reference,
            args=training,
            train_dataset=train_set,
            eval_dataset=eval_set,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
        kl = _watch_kl(trainer, held_out or preferences, data, training)
        metrics = train(trainer, folder, data.resume)
        if eval_set is not None:
            metrics |= {key: value for key, value in final_evaluation(trainer).items() if _worth_keeping(key)}
        if kl is not None:
            metrics["kl"] = kl.measure()
        return folder.finish(**metrics, num_preferences=len(train_set), cut=cut.metrics())


def tokenize(
    rows: list[Preference], encoder: Encoder, max_length: int | None, source: str
) -> tuple[Dataset, CutReport]:
    """Preferences as a dataset of `prompt_ids`, `chosen_ids` and `rejected_ids`, one prompt for both sides."""

    def encode(row: Preference, cut: CutReport) -> dict[str, list[int]] | None:
        sides = [row.chosen[-1]["content"], row.rejected[-1]["content"]]
        encoded = encoder.encode_reply(row.prompt, sides, max_length, cut)
        if encoded is None:
            return None
        prompt_ids, (chosen_ids, rejected_ids) = encoded
        return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}

    encoded, cut = encode_rows(rows, encode, "preferences", max_length or 0, source)
    return Dataset.from_list(encoded), cut


def _watch_kl(trainer: DPOTrainer, rows: list[Preference], data: DPOData, training: DPOConfig) -> KLToReference | None:
    prompts = list({row.group_id: row.prompt for row in rows}.values())[: data.num_kl_prompts]
    if not prompts:
        return None
    sampling = Sampling(max_new_tokens=data.max_new_tokens, seed=training.seed)
    watch = KLToReference(prompts, sampling, training.per_device_eval_batch_size)
    watch.trainer = trainer
    trainer.add_callback(watch)
    return watch


def _worth_keeping(key: str) -> bool:
    return key == "eval_loss" or key.startswith("eval_rewards/")
