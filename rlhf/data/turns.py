"""Conversations as people store them to messages: role and content, from and value, pairs, HH texts."""

import re
from typing import Any

from rlhf.records import Messages

_ROLES = {
    **dict.fromkeys(["user", "human", "prompter"], "user"),
    **dict.fromkeys(["assistant", "gpt", "bot", "chatgpt", "model", "ai"], "assistant"),
    **dict.fromkeys(["system", "developer"], "system"),
}
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class Unusable(Exception):
    """Why one row cannot be used; counted, and shown in the report."""


def is_transcript(text: str) -> bool:
    """Whether a text opens as an Anthropic HH transcript does."""
    return text.startswith("\n\nHuman:")


def parse_transcript(text: str) -> Messages:
    """The turns of an Anthropic HH text: a blank line and `Human:` or `Assistant:` open each."""
    before, *parts = _HH_TURN.split(text)
    if not parts:
        raise Unusable("the text has no Human: and Assistant: turns; name the prompt's column")
    if before.strip():
        raise Unusable("the text has something before its first turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()} for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def as_messages(value: Any, user_role: str | None = None, assistant_role: str | None = None) -> Messages:
    """Messages from role/content or from/value objects, or from `[role, text]` pairs."""
    if not isinstance(value, list):
        raise Unusable(f"a conversation is a {type(value).__name__}, should be a list of messages")
    messages = []
    for item in value:
        if isinstance(item, dict):
            role = item.get("role", item.get("from"))
            content = item.get("content", item.get("value"))
        elif isinstance(item, list) and len(item) == 2:
            role, content = item
        else:
            raise Unusable("a message is neither an object nor a [role, text] pair")
        known = {user_role: "user", assistant_role: "assistant"}.get(str(role)) or _ROLES.get(str(role).lower())
        if known is None:
            raise Unusable(f"a message has the role {str(role)[:30]!r}")
        messages.append({"role": known, "content": _content(content)})
    return messages


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("a message has no text")
    texts = []
    for part in content:  # OpenAI's content parts
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Unusable(f"a message has a part of type {str(kind)[:30]!r}")
        texts.append(part["text"])
    return "\n".join(texts)
