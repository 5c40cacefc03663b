"""sft: imitate demonstrations. TRL's SFTTrainer on tokens encoded by one rule for all stages."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from rlhf.config import as_dict
from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.models import check_context, load_tokenizer, stop_ids
from rlhf.records import Demonstration, Run, read_jsonl
from rlhf.runs import open_run
from rlhf.training import encode_rows, final_evaluation, load_for_training, model_path, set_up, train


@dataclass
class SFTData:
    """Where the demonstrations lie."""

    demonstrations: str = field(metadata={"help": "JSONL file of demonstrations to imitate."})
    eval_demonstrations: str | None = field(
        default=None, metadata={"help": "JSONL file of held-out demonstrations; their loss is measured at the end."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


class Config(NamedTuple):
    """What `configs/sft.yaml` may hold."""

    data: SFTData
    model: ModelConfig
    training: SFTConfig


def run(config: Config) -> Run:
    """Fine-tune a model on demonstrations; the run folder is a plain Hugging Face checkpoint.

    Raises UserError for missing or broken data and models, before anything is written.
    """
    data, model_config, training = config
    set_up(training)
    path = model_path(model_config)
    demonstrations = read_jsonl(data.demonstrations, Demonstration)
    held_out = read_jsonl(data.eval_demonstrations, Demonstration) if data.eval_demonstrations else []

    tokenizer = load_tokenizer(path, training.chat_template_path, training.trust_remote_code)
    model = load_for_training(model_config, training)
    check_context(training.max_length, model, "max_length", path)
    check_packing(training, model)
    encoder = Encoder(tokenizer, stop_ids(model))
    train_set, cut = tokenize(demonstrations, encoder, training, data.demonstrations)
    eval_set = tokenize(held_out, encoder, training, str(data.eval_demonstrations))[0] if held_out else None

    inputs = {"model": path, "demonstrations": data.demonstrations, "eval_demonstrations": data.eval_demonstrations}
    with open_run("sft", str(training.output_dir), as_dict(config), inputs, data.resume) as folder:
        training.chat_template_path = None  # set in the tokenizer already
        # The masks are in the data. TRL's own switch looks for {% generation %} marks in the template instead.
        training.assistant_only_loss = False
        trainer = SFTTrainer(
            model=model,
            args=training,
            train_dataset=train_set,
            eval_dataset=eval_set,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
        metrics = train(trainer, folder, data.resume)
        if eval_set is not None:
            metrics["eval_loss"] = final_evaluation(trainer)["eval_loss"]
        return folder.finish(**metrics, num_demonstrations=len(train_set), cut=cut.metrics())


def tokenize(rows: list[Demonstration], encoder: Encoder, training: SFTConfig, source: str) -> tuple[Any, CutReport]:
    """Demonstrations as a dataset of `input_ids` and, for assistant-only loss, `assistant_masks`."""
    from datasets import Dataset

    def encode(row: Demonstration, cut: CutReport) -> dict[str, list[int]] | None:
        encoded = encoder.encode_conversation(row.messages, training.max_length, cut)
        if encoded is None:
            return None
        ids, mask = encoded
        return {"input_ids": ids, "assistant_masks": mask} if training.assistant_only_loss else {"input_ids": ids}

    encoded, cut = encode_rows(rows, encode, "demonstrations", training.max_length or 0, source)
    return Dataset.from_list(encoded), cut


def check_packing(training: SFTConfig, model: Any) -> None:
    """Raise UserError where packed conversations would see each other, or overrun the context.

    TRL lays them end to end and leaves it to flash attention to keep them apart.
    """
    attention = str(model.config._attn_implementation)
    if training.packing and training.packing_strategy != "wrapped" and "flash" not in attention:
        raise UserError(
            f"packing: needs flash attention to keep conversations apart, and this model uses {attention}; "
            "set --packing false, or --attn_implementation flash_attention_2 on a GPU"
        )
