"""pretrain: a small Llama from scratch on plain text, with a tokenizer of its own."""

from dataclasses import dataclass, field
from typing import NamedTuple

from trl import SFTConfig, SFTTrainer

from rlhf.config import as_dict
from rlhf.errors import UserError
from rlhf.models import new_llama, train_tokenizer
from rlhf.records import Run, Text, read_jsonl
from rlhf.runs import open_run
from rlhf.training import set_up, train


@dataclass
class PretrainData:
    """The text and the shape of the new model."""

    text: str = field(metadata={"help": "JSONL file with a `text` column."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens in the new byte-level BPE vocabulary."})
    hidden_size: int = field(default=256, metadata={"help": "Width of the model."})
    num_layers: int = field(default=6, metadata={"help": "Number of layers."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads; must divide hidden_size."})
    context: int = field(default=512, metadata={"help": "Context of the new model in tokens."})
    new_chat_template: str = field(
        default="configs/templates/chatml.jinja", metadata={"help": "Chat template of the new tokenizer."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an unfinished run from its last checkpoint."})


class Config(NamedTuple):
    """What `configs/pretrain.yaml` may hold."""

    data: PretrainData
    training: SFTConfig


def run(config: Config) -> Run:
    """Train tokenizer and model from scratch on packed text; the run folder is a plain checkpoint.

    Raises UserError for missing text and for a shape that does not fit together.
    """
    import torch
    from datasets import Dataset

    data, training = config
    set_up(training)
    if data.hidden_size % data.num_heads:
        raise UserError(f"num_heads: {data.num_heads} does not divide hidden_size {data.hidden_size}; choose another")
    if (training.max_length or 0) > data.context:
        raise UserError(f"max_length: {training.max_length} is over --context {data.context}; lower it or raise that")
    texts = [row.text for row in read_jsonl(data.text, Text)]

    tokenizer = train_tokenizer(texts, data.vocab_size, data.new_chat_template)
    torch.manual_seed(training.seed)
    model = new_llama(tokenizer, data.hidden_size, data.num_layers, data.num_heads, data.context)
    # Each document ends with the token that will end turns: the model learns early that texts end.
    rows = [
        {"input_ids": [*ids, tokenizer.eos_token_id]} for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    with open_run("pretrain", str(training.output_dir), as_dict(config), {"text": data.text}, data.resume) as folder:
        trainer = SFTTrainer(
            model=model, args=training, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        metrics = train(trainer, folder, data.resume)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return folder.finish(**metrics, num_parameters=num_parameters, vocabulary=len(tokenizer))
