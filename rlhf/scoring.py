"""A trained reward model as a callable: prompts and responses in, one score each out."""

from collections.abc import Sequence
from typing import Any

from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.implicit import ImplicitReward, is_implicit, load_implicit_reward
from rlhf.models import (
    check_model_folder,
    context_length,
    load_classifier,
    load_tokenizer,
    scoring_batch,
    whole_on_each_rank,
)
from rlhf.records import Messages


class RewardModel:
    """Scores responses with a sequence classifier; an instance is a RewardFunction.

    Args:
        model: a classifier with one label.
        tokenizer: its tokenizer, with a chat template and a pad token that is not eos.
        max_length: tokens of prompt and response together; longer prompts lose their start.
        batch_size: sequences scored at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int, batch_size: int = 32) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.max_length = max_length
        self.batch_size = batch_size
        self.cut = CutReport()

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str], **_: Any) -> list[float]:
        """The score of each response; higher is better, only differences mean something."""
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            encoded = self.encoder.encode_reply(prompt, [response], self.max_length, self.cut)
            if encoded is None:
                raise UserError(f"reward model: max_length {self.max_length} is too short for any prompt; raise it")
            rows.append(encoded[0] + encoded[1][0])
        return self.score_ids(rows)

    def score_ids(self, rows: list[list[int]]) -> list[float]:
        """The score of each row of token ids, taken at its last token."""
        import torch

        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        size = scoring_batch(self.batch_size, self.model)
        with torch.no_grad():
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                width = max(len(rows[row]) for row in batch)
                input_ids = torch.full((len(batch), width), self.tokenizer.pad_token_id)
                mask = torch.zeros(len(batch), width, dtype=torch.long)
                for at, row in enumerate(batch):
                    input_ids[at, : len(rows[row])] = torch.tensor(rows[row])
                    mask[at, : len(rows[row])] = 1
                device = self.model.device
                logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
                for row, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
                    scores[row] = score
        return scores


def load_reward_model(
    path: str, max_length: int | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> RewardModel | ImplicitReward:
    """The reward model of a run folder, of either kind, on the GPU where there is one.

    Raises UserError where the folder holds none.
    """
    check_model_folder(path)
    load = load_implicit_reward if is_implicit(path) else load_score_model
    return load(path, max_length, batch_size, trust_remote_code)


def load_score_model(
    path: str, max_length: int | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> RewardModel:
    """The sequence classifier of a folder or Hub id, as `load_reward_model`."""
    import torch

    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    with whole_on_each_rank():
        model = load_classifier(path, tokenizer, trust_remote_code=trust_remote_code)
    if torch.cuda.is_available():
        model = model.cuda()
    return RewardModel(model, tokenizer, min(max_length or context_length(model), context_length(model)), batch_size)
