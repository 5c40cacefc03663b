"""Between rows of prompts and token ids: a prompt as ids, as reward functions see it, and what did not fit."""

from typing import Any

from rlhf.data.encode import CutReport, Encoder
from rlhf.errors import UserError
from rlhf.models import context_length
from rlhf.ppo.config import PPOConfig

Row = dict[str, Any]  # of a dataset: `prompt` (messages, or plain text) or `prompt_ids`, and columns for the rewards


class Prompts:
    """Rows of prompts as token ids, and replies as text.

    Args:
        tokenizer: the policy's; with a chat template where prompts are conversations.
        stop_ids: the ids that end a turn.
        room: tokens of the longest prompt; longer ones lose their start.
    """

    def __init__(self, tokenizer: Any, stop_ids: set[int], room: int) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, sorted(stop_ids)) if tokenizer.chat_template else None
        self.room = room

    def ids(self, row: Row) -> list[int]:
        """The prompt's token ids. Raises UserError for an empty one, and for a conversation without template."""
        if "prompt_ids" in row or isinstance(row["prompt"], str):
            ids = row["prompt_ids"] if "prompt_ids" in row else self.tokenizer(row["prompt"])["input_ids"]
            if not len(ids):
                raise UserError("train_dataset: a prompt is empty; remove it, or give it a first token")
            return list(ids)[-self.room :]
        if self.encoder is None:
            raise UserError("train_dataset: prompts are conversations, and the tokenizer has no chat template; set one")
        return self.encoder.fit_prompt(row["prompt"], self.room, CutReport())

    def shown(self, row: Row) -> Any:
        """The prompt as reward functions get it: messages, or text."""
        return row["prompt"] if "prompt" in row else self.tokenizer.decode(row["prompt_ids"])

    def text(self, ids: list[int]) -> str:
        """A reply's text."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def cut(self, rows: Any) -> CutReport:
        """How many of the conversations lose their start, and how many tokens of it."""
        report = CutReport()
        if self.encoder is None:
            return report
        for row in rows:
            if "prompt_ids" not in row and isinstance(row["prompt"], list):
                report.num_examples += 1
                self.encoder.fit_prompt(row["prompt"], self.room, report)
        return report


def prompt_room(args: PPOConfig, policy: Any) -> int:
    """The longest prompt in tokens. Raises UserError where the context has no room for one."""
    room = context_length(policy) - args.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens: {args.max_new_tokens} leaves no room for a prompt in a context of "
            f"{context_length(policy)}; set --max_new_tokens {context_length(policy) // 2} or less"
        )
    return min(room, args.max_prompt_length or room)
