"""Tokenizers, policies and classifiers: loaded safely from plain Hugging Face folders, or made anew."""

import contextlib
import gc
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import packaged
from rlhf.data.encode import Encoder
from rlhf.errors import UserError

PAD_TOKEN = "<|pad|>"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer; `max_length` is its context in tokens."""

    model: Any
    tokenizer: Any
    encoder: Encoder
    path: str
    max_length: int


def load_tokenizer(path: str, chat_template_path: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or Hub id, with a pad token, padding on the left.

    Where the checkpoint has no pad token the eos is used: nothing here finds an end by the pad id.
    `chat_template_path` is a .jinja file that replaces the checkpoint's own template.
    Raises UserError for a missing folder, a folder without tokenizer, and a missing template file.
    """
    from transformers import AutoTokenizer

    check_model_folder(path)
    with _loading(path, "tokenizer", "copy the tokenizer files into it (tokenizer.json, tokenizer_config.json)"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if len(tokenizer) == 0:
        raise UserError(f"{path}: has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    if chat_template_path is not None:
        template = packaged(chat_template_path)
        if not template.is_file():
            raise UserError(f"{chat_template_path}: no such chat template; give the path of a .jinja file")
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_causal(path: str, dtype: str | None = None, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """A causal language model, in `dtype` (float32 by default), an adapter merged into its base.

    Raises UserError for a folder without a model, with a broken one, or with an adapter of another kind.
    """
    from transformers import AutoModelForCausalLM

    check_model_folder(path)
    with _loading(path, "model", "give the folder of a causal language model"):
        base = _adapter_base(path, "CAUSAL_LM", "a causal language model")
        model = AutoModelForCausalLM.from_pretrained(
            base or path, dtype=_dtype(dtype), trust_remote_code=trust_remote_code, **kwargs
        )
        if base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path).merge_and_unload()
    return model


def load_policy(
    path: str, dtype: str | None = None, trust_remote_code: bool = False, chat_template_path: str | None = None
) -> Policy:
    """A policy ready to generate: in eval mode, on the GPU where there is one."""
    tokenizer = load_tokenizer(path, chat_template_path, trust_remote_code)
    return as_policy(load_to_ask(path, dtype, trust_remote_code), tokenizer, path)


def load_to_ask(path: str, dtype: str | None = None, trust_remote_code: bool = False) -> Any:
    """A causal language model that is not to be trained: in eval mode, on the GPU where there is one."""
    import torch

    from rlhf.packing import pack_rows

    model = load_causal(path, dtype, trust_remote_code).eval()
    if torch.cuda.is_available():
        return model.cuda()
    pack_rows(model)
    return model


def as_policy(model: Any, tokenizer: Any, path: str = "") -> Policy:
    """A Policy around a model that is loaded already."""
    return Policy(model, tokenizer, Encoder(tokenizer, stop_ids(model)), path, context_length(model))


def load_classifier(path: str, tokenizer: Any, dtype: str | None = None, trust_remote_code: bool = False) -> Any:
    """A model with one score a sequence, on any base, new head where the checkpoint has none.

    Transformers scores the last token that is not pad. Where pad is eos that is the token before the
    end of the reply, so such a tokenizer gets a pad token of its own and the model a row for it.
    Raises UserError for a folder without a model, with a broken one, or with an adapter of another kind.
    """
    from transformers import AutoModelForSequenceClassification

    check_model_folder(path)
    with _loading(path, "model", "give the folder of a language model or of a reward run"), _quiet_head(path):
        base = _adapter_base(path, "SEQ_CLS", "a reward run, or of a whole model (peft's merge_and_unload makes one)")
        model = AutoModelForSequenceClassification.from_pretrained(
            base or path, num_labels=1, dtype=_dtype(dtype), trust_remote_code=trust_remote_code
        )
        give_own_pad(model, tokenizer)
        if base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path).merge_and_unload()
    return model


def _quiet_head(path: str) -> contextlib.AbstractContextManager[Any]:
    """No warning that a language model has no score head yet; a folder with one needs none, nor a second of import."""
    config = Path(path) / "config.json"
    if config.is_file() and "ForSequenceClassification" in config.read_text(encoding="utf-8"):
        return contextlib.nullcontext()
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    return suppress_seqcls_warning()


def scoring_batch(batch_size: int, model: Any) -> int:
    """How many whole sequences go through a model at a time, of the `batch_size` that is allowed.

    On a CPU 32 at most: what more rows compute no longer fits its cache, and takes up to half as long again.
    """
    return min(batch_size, 32) if model.device.type == "cpu" else batch_size


def give_own_pad(model: Any, tokenizer: Any) -> None:
    """See to it that pad is neither eos nor another token in use, in tokenizer and model."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"


def train_tokenizer(texts: Iterable[str], vocab_size: int, chat_template_path: str) -> Any:
    """A byte-level BPE tokenizer learned from texts, with ChatML's turn tokens and its own pad."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token=PAD_TOKEN, padding_side="left"
    )
    tokenizer.chat_template = packaged(chat_template_path).read_text(encoding="utf-8")
    return tokenizer


def new_llama(tokenizer: Any, hidden_size: int, num_layers: int, num_heads: int, max_length: int) -> Any:
    """A Llama with random weights for this tokenizer: tied embeddings, 8/3 feed-forward."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=(hidden_size * 8 // 3 + 31) // 32 * 32,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@contextlib.contextmanager
def whole_on_each_rank() -> Iterator[None]:
    """Models loaded meanwhile are whole, also under ZeRO-3: what no engine of DeepSpeed runs, nobody would gather."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref  # what `set_hf_deepspeed_config` sets
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def free_memory() -> None:
    """Give back what models that nobody holds any more have left."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stop_ids(model: Any) -> list[int]:
    """The ids that end a turn, by the model's generation config (one id, several or none)."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def context_length(model: Any) -> int:
    """The longest sequence the model was made for, in tokens."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1_000_000)


def check_context(max_length: int | None, model: Any, key: str, path: str | None = None) -> None:
    """Raise UserError where `max_length` is over the model's context."""
    context = context_length(model)
    if max_length is None or max_length > context:
        raise UserError(
            f"{key}: {max_length} tokens do not fit the context of {path or 'the model'}, which is {context}; "
            f"set --{key} {context} or less"
        )


def check_model_folder(path: str) -> None:
    """Raise UserError where `path` can be neither a model folder nor a Hub id."""
    folder = Path(path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{path}: no model in this folder (no config.json); give the folder of a checkpoint or run")
    elif folder.exists():
        raise UserError(f"{path}: is a file; give the folder that holds the model")
    elif folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise UserError(f"{path}: no such model folder; check the path, or give a Hub id (owner/name)")


def _adapter_base(path: str, kind: str, mend: str) -> str | None:
    """The base model of an adapter folder, None for whole models. Raises UserError for an adapter of another kind."""
    config = Path(path) / "adapter_config.json"
    if not config.is_file():
        return None
    adapter = json.loads(config.read_text(encoding="utf-8"))
    theirs = adapter.get("task_type")
    # On another head peft fails, or leaves out what does not fit and says nothing.
    if theirs not in (None, kind):
        raise UserError(f"{path}: is an adapter for {theirs}, and {kind} is needed here; give the folder of {mend}")
    return adapter["base_model_name_or_path"]


def _dtype(name: str | None) -> Any:
    import torch

    from rlhf.hardware import spare_broken_amx

    if name is not None and name not in _DTYPES:
        raise UserError(f"dtype: `{name}` is not one of {', '.join(_DTYPES)}")
    if name in ("auto", "bfloat16") and not torch.accelerator.is_available():
        spare_broken_amx()
    return "auto" if name == "auto" else getattr(torch, name or "float32")


@contextlib.contextmanager
def _loading(path: str, what: str, mend: str) -> Iterator[None]:
    # Which exception a broken folder raises differs by file and by library, and all mean the same here.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path}: its {what} cannot be loaded ({reason}); {mend}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("safetensors", "safetensors_rust", "pickle", "_pickle"):
            raise
        raise UserError(f"{path}: its {what} cannot be loaded ({error}); {mend}") from error
    finally:
        logger.setLevel(level)
