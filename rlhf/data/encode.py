"""Conversations to token ids: one rule for every stage.

A prompt and its reply are tokenized apart, as a policy meets them when it generates, and then
joined. A reply always ends with the token that ends a turn. What does not fit the context is cut
from the oldest end of the prompt, never from the reply's end of turn, and every cut is counted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import UserError
from rlhf.records import Messages

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class CutReport:
    """What did not fit: counted, never silent."""

    num_examples: int = 0
    num_prompts_cut: int = 0
    num_replies_cut: int = 0
    num_tokens_cut: int = 0
    num_dropped: int = 0
    _seen: set[str] = field(default_factory=set, repr=False)

    def metrics(self) -> dict[str, int]:
        """The counts, for run.json."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def sentence(self, what: str, max_length: int) -> str | None:
        """One line for the screen, or None where everything fitted."""
        if not (self.num_prompts_cut or self.num_replies_cut or self.num_dropped):
            return None
        return (
            f"{what}: of {self.num_examples:,} examples {self.num_prompts_cut:,} lost the start of their prompt, "
            f"{self.num_replies_cut:,} the end of a reply and {self.num_dropped:,} were dropped whole "
            f"({self.num_tokens_cut:,} tokens in all did not fit max_length {max_length})"
        )


class Encoder:
    """Renders and tokenizes conversations for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop_ids: ids that end a turn; the tokenizer's eos where none are given.

    Raises:
        UserError: the tokenizer has no chat template or no eos token, or the template does not
            render a conversation as a continuation of its prompt.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] | None = None) -> None:
        name = getattr(tokenizer, "name_or_path", "the tokenizer")
        if not tokenizer.chat_template:
            raise UserError(
                f"{name}: the tokenizer has no chat template; set one with "
                "--chat_template_path configs/templates/chatml.jinja (or a file of yours)"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(f"{name}: the tokenizer has no eos token; set `eos_token` in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.stop_ids = set(stop_ids or ()) | {tokenizer.eos_token_id}

    def prompt_text(self, messages: Messages) -> str:
        """The conversation as text, open for a reply."""
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The conversation as ids, open for a reply; not cut."""
        return self._ids(self.prompt_text(messages))

    def reply_ids(self, messages: Messages, reply: str) -> list[int]:
        """The reply as ids, from where the open prompt ends to the end of the turn, that included."""
        return self._reply_ids(messages, self.prompt_text(messages), reply)

    def _reply_ids(self, messages: Messages, prompt: str, reply: str) -> list[int]:
        """`prompt` is the open conversation's text: rendered once for all replies to it."""
        whole = self._render([*messages, {"role": "assistant", "content": reply}])
        if not whole.startswith(prompt):
            raise UserError(
                "the chat template does not render a reply as a continuation of its prompt "
                f"(after {prompt[-40:]!r}); set another with --chat_template_path"
            )
        return self._close(self._ids(whole[len(prompt) :]))

    def text(self, reply_ids: Sequence[int]) -> str:
        """A generated reply as text, without special tokens and outer white space."""
        return self.tokenizer.decode(reply_ids, skip_special_tokens=True).strip()

    def encode_reply(
        self, messages: Messages, replies: Sequence[str], max_length: int | None, cut: CutReport
    ) -> tuple[list[int], list[list[int]]] | None:
        """One prompt with its replies, the prompt the same for all, cut to fit `max_length`.

        Returns `(prompt_ids, [reply_ids, ...])`. A reply longer than three quarters of the context
        loses its end, and keeps its end of turn. None where not even one turn of prompt would be left.
        """
        text = self.prompt_text(messages)
        prompt = self._ids(text)
        encoded = [self._reply_ids(messages, text, reply) for reply in replies]
        cut.num_examples += 1
        if max_length is None:
            return prompt, encoded
        room = max(1, max_length * 3 // 4)
        for index, ids in enumerate(encoded):
            if len(ids) > room and len(ids) + len(prompt) > max_length:
                keep = max(room, max_length - len(prompt))
                cut.num_replies_cut += 1
                cut.num_tokens_cut += len(ids) - keep
                encoded[index] = [*ids[: keep - 1], ids[-1]]
        space = max_length - max(len(ids) for ids in encoded)
        fitted = prompt if len(prompt) <= space else self.fit_prompt(messages, space, cut)
        if not fitted:
            cut.num_dropped += 1
            return None
        return fitted, encoded

    def fit_prompt(self, messages: Messages, space: int, cut: CutReport) -> list[int]:
        """The prompt in at most `space` tokens: oldest turns go first, then the oldest tokens.

        A leading system message stays as long as a turn beside it fits. Empty where space is under 1.
        """
        ids = self.prompt_ids(messages)
        if len(ids) <= space:
            return ids
        whole = len(ids)
        system = messages[:1] if messages and messages[0]["role"] == "system" else []
        turns = messages[len(system) :]
        fitted: list[int] = []
        for start in range(1, len(turns)):
            if turns[start]["role"] != "user":
                continue
            ids = self.prompt_ids([*system, *turns[start:]])
            if len(ids) <= space:
                fitted = ids
                break
        if not fitted and space > 0:
            fitted = self.prompt_ids(turns[-1:])[-space:]
        cut.num_prompts_cut += 1
        cut.num_tokens_cut += whole - len(fitted)
        return fitted

    def encode_conversation(
        self, messages: Messages, max_length: int | None, cut: CutReport
    ) -> tuple[list[int], list[int]] | None:
        """A whole conversation: `(input_ids, assistant_masks)`, the mask 1 on the assistant's tokens.

        Cut from the oldest turn on; the last reply keeps its end. None where nothing of it is left.
        """
        *before, last = messages
        encoded = self.encode_reply(before, [last["content"]], max_length, cut)
        if encoded is None:
            return None
        prompt, (reply,) = encoded
        mask = self._assistant_mask(before, prompt)
        return prompt + reply, mask + [1] * len(reply)

    def _assistant_mask(self, messages: Messages, prompt: list[int]) -> list[int]:
        # Earlier assistant turns, found from the end of the prompt, where nothing was cut.
        mask = [0] * len(prompt)
        whole = self.prompt_text(messages)
        total = len(prompt)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.prompt_text(messages[:index])
            upto = self._render(messages[: index + 1])
            if not (whole.startswith(upto) and upto.startswith(before)):
                continue  # a template that rewrites its past: train on the last reply alone
            reply = self._close(self._ids(upto[len(before) :]))
            end = total - len(self._ids(whole[len(before) :])) + len(reply)
            start = max(0, end - len(reply))
            if end > 0 and prompt[start:end] == reply[-(end - start) :]:
                mask[start:end] = [1] * (end - start)
        return mask

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # jinja's own errors, and what templates raise themselves
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses a conversation of roles {roles}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        # A lone surrogate is no character, and tokenizers refuse the whole text for one.
        return self.tokenizer(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)["input_ids"]

    def _close(self, ids: list[int]) -> list[int]:
        # Templates differ in what they write after a reply: nothing, the eos, or the eos and a line break.
        for at in range(len(ids) - 1, -1, -1):
            if ids[at] in self.stop_ids:
                return ids[: at + 1]
        while ids and self.tokenizer.decode(ids[-1:]).isspace():
            ids = ids[:-1]
        return [*ids, self.tokenizer.eos_token_id]
