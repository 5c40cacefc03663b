"""A classifier of texts, such as one of toxicity or sentiment, as a scorer: how probable a label is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.models import check_model_folder, context_length, give_own_pad, load_tokenizer, scoring_batch
from rlhf.records import RewardFunction


@dataclass(frozen=True)
class Classifier:
    """A folder with a transformers sequence classifier, and the label that is asked for."""

    path: str
    label: str

    @property
    def name(self) -> str:
        """What scores, in words."""
        return f"{Path(self.path).resolve().name} (label {self.label})"


def check_classifier(classifier: Classifier, key: str, trust_remote_code: bool = False) -> None:
    """Look at the folder's config and tokenizer; the weights are not read.

    `key` is the setting that named it: `<key>_classifier` and `<key>_label`.
    Raises UserError where there is no such folder, no sequence classifier in it, or none with this label.
    """
    from transformers import AutoConfig

    path = classifier.path
    if not Path(path).is_dir():
        raise UserError(f"{key}_classifier: `{path}` is no folder; give that of a sequence classifier on this machine")
    check_model_folder(path)
    with _loading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    architectures = config.architectures or ["a model of no known kind"]
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UserError(
            f"{key}_classifier: {path} holds {', '.join(architectures)}; it must be a model for sequence classification"
        )
    _place(config, classifier.label, key)
    load_tokenizer(path, trust_remote_code=trust_remote_code)


def label_scorer(classifier: Classifier, batch_size: int = 32, trust_remote_code: bool = False) -> RewardFunction:
    """Loads the classifier; the scorer gives the label's probability for each reply alone, without its prompt.

    As transformers' pipeline has it: softmax over the labels, sigmoid where they do not exclude one another or
    there is one only. A reply that does not fit the classifier's context loses its end.
    Raises UserError where the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, TextClassificationPipeline

    path = classifier.path
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    with _loading(path):
        model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=trust_remote_code).eval()
    give_own_pad(model, tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = TextClassificationPipeline(model=model, tokenizer=tokenizer, device=device, top_k=None)
    label = model.config.id2label[_place(model.config, classifier.label, "")]
    how = {"truncation": True, "max_length": _longest(model, tokenizer), "batch_size": scoring_batch(batch_size, model)}

    def probabilities(prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[float]:
        # A causal classifier has no token to read in an empty text.
        found: Any = scores([text or " " for text in responses], **how)
        return [next(one["score"] for one in row if one["label"] == label) for row in found]

    return probabilities


def _place(config: Any, label: str, key: str) -> int:
    names = {int(place): name for place, name in config.id2label.items()}
    for place, name in names.items():
        if name.casefold() == label.casefold():
            return place
    raise UserError(f"{key}_label: `{label}` is no label of {config.name_or_path}; it has {', '.join(names.values())}")


def _longest(model: Any, tokenizer: Any) -> int:
    """The classifier's context in tokens."""
    # RoBERTa and its kin count positions from the one after the pad's.
    offset = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return min(int(tokenizer.model_max_length), context_length(model) - (0 if offset is None else offset + 1))


@contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path}: its classifier cannot be loaded ({reason}); give another folder") from error
