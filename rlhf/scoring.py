"""A trained reward model as a callable: prompts and responses in, one score each out."""

from collections.abc import Iterator, Sequence
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
        batch_size: sequences scored at a time, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int, batch_size: int = 32) -> None:
        from rlhf.packing import pack_rows

        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.max_length = max_length
        self.batch_size = batch_size
        self.cut = CutReport()
        self.bf16 = False  # whether all but the last layer compute in it
        self.own = _is_own(model)
        self.packs = self.own and model.device.type == "cpu" and pack_rows(model)

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
        with torch.no_grad():
            for batch in self._batches([len(row) for row in rows]):
                for row, score in zip(batch, self._score([rows[row] for row in batch]).tolist(), strict=True):
                    scores[row] = score
        return scores

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows that go through the model together, of like length."""
        from rlhf.packing import first_pass

        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = scoring_batch(self.batch_size, self.model)
        while order:
            batch = order[:size]
            if self.packs:
                batch = batch[: first_pass(lengths[row] for row in batch)]
            yield batch
            order = order[len(batch) :]

    def _score(self, rows: list[list[int]]) -> Any:
        """The scores of rows, `(batch,)` float32, in one forward pass."""
        import torch

        from rlhf.layers import causal, trunk
        from rlhf.packing import packed_hidden

        device, width = self.model.device, max(len(row) for row in rows)
        input_ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]).to(device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        places = torch.arange(width, device=device)
        mask = (places <= last[:, None]).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            if not self.own:
                return self.model(input_ids=input_ids, attention_mask=mask).logits[:, 0].float()
            if self.packs:
                hidden = packed_hidden(self.model, input_ids, places == last[:, None])
            else:
                hidden = trunk(self.model)(input_ids=input_ids, attention_mask=mask).last_hidden_state
                hidden = hidden[torch.arange(len(rows), device=device), last]
        # Outside: in bf16 scores of 2 and more are whole hundredths apart.
        score = causal(self.model).score
        return score(hidden.to(score.weight.dtype))[:, 0].float()


def _is_own(model: Any) -> bool:
    """Whether it is a classifier of transformers' own whose score is its last layer's, at a row's last token."""
    from rlhf.layers import causal

    return type(causal(model)).__module__.startswith("transformers.") and hasattr(causal(model), "score")


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
