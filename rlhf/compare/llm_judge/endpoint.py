"""Where the judge is, how it samples, how hard it may be asked and what it may cost."""

import json
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rlhf.errors import UserError

# What a request holds besides sampling settings: ours to fill in.
_OURS = {"model", "messages", "stream", "n"}


class Refused(Exception):
    """The endpoint will not answer this question, though it may answer others."""


class Stopped(Exception):
    """Another thread failed: nothing more is to be asked."""


@dataclass(frozen=True)
class JudgeEndpoint:
    """A chat endpoint that judges. Every mistake in it is a UserError that names the key.

    The API key is no field: it is read from the environment variable that `api_key_env` names, goes
    into one header, and is in no file, error or repr.
    """

    base_url: str = field(metadata={"help": "Of the API, as https://host/v1; requests go to /chat/completions there."})
    model: str = field(metadata={"help": "The judge's name at the endpoint."})
    template: str = field(default="general", metadata={"help": "general, reference, or a text file of your own."})
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable with the API key; no key where it is unset."}
    )
    cache: str | None = field(
        default=None, metadata={"help": "JSONL file of all answers: what is in it is never asked again."}
    )
    temperature: float | None = field(default=0.0, metadata={"help": "Sampling temperature; null sends none."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer in tokens, thoughts included."})
    max_tokens_name: str = field(
        default="max_tokens", metadata={"help": "How the endpoint calls that; OpenAI's own: max_completion_tokens."}
    )
    extra_body: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "More settings for each request, as {top_p: 0.9, seed: 1}."}
    )
    timeout: float = field(default=120.0, metadata={"help": "Seconds after which a request has failed."})
    num_retries: int = field(default=5, metadata={"help": "Tries of a request after the first one."})
    backoff: float = field(default=1.0, metadata={"help": "Seconds before the first retry; doubled before each next."})
    max_wait: float = field(
        default=300.0, metadata={"help": "Longest wait before a retry in seconds; a server that asks for more ends it."}
    )
    requests_per_minute: float | None = field(default=None, metadata={"help": "Most requests a minute, retries too."})
    concurrency: int = field(default=8, metadata={"help": "Requests at a time."})
    price_in: float | None = field(default=None, metadata={"help": "Price of a million tokens of question."})
    price_out: float | None = field(default=None, metadata={"help": "Price of a million tokens of answer."})
    max_cost: float | None = field(
        default=None, metadata={"help": "Stop before the verdicts cost more; counts cached answers that are used."}
    )
    num_reminders: int = field(default=1, metadata={"help": "Times that a judge without a verdict is asked for it."})
    max_unparsed: float = field(
        default=0.05, metadata={"help": "Share of questions that may stay without a verdict; more is an error."}
    )

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if not self.model:
            raise UserError("model: is empty; give the judge's name at the endpoint")
        for key, least in (("max_tokens", 1), ("concurrency", 1), ("num_retries", 0), ("num_reminders", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key}: is {getattr(self, key)}, must be at least {least}")
        for key in ("timeout", "backoff", "max_wait", "requests_per_minute"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{key}: is {value:g}, must be above 0")
        for key in ("temperature", "price_in", "price_out", "max_cost"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{key}: is {value:g}, must be 0 or more")
        if not 0 <= self.max_unparsed <= 1:
            raise UserError(f"max_unparsed: is {self.max_unparsed:g}, must be from 0 to 1")
        if self.max_cost is not None and None in (self.price_in, self.price_out):
            raise UserError("max_cost: needs prices; give price_in and price_out per million tokens")
        if taken := sorted({*_OURS, "temperature", self.max_tokens_name} & set(self.extra_body)):
            raise UserError(f"extra_body: `{taken[0]}` has its own place; set it there or leave it out")
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"extra_body: cannot be sent as JSON ({error}); give numbers, text, lists and maps"
            ) from None

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return self.base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings as they are sent."""
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        return {**temperature, self.max_tokens_name: self.max_tokens, **self.extra_body}

    @property
    def kept(self) -> str:
        """What an error says about the answers that are there already."""
        if self.cache is None:
            return "nothing was kept: set `cache` to a file, so that a next run can go on"
        return f"what was answered is kept in {self.cache}: run again to go on"

    def cost(self, tokens_in: int | None, tokens_out: int | None) -> float | None:
        """The cost at the given prices, None where a price or a count is unknown.

        Discounts for cached or batched tokens are not known here: with them it is an upper bound.
        """
        if tokens_in is None or tokens_out is None or self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def read_key(self) -> str | None:
        """The API key from the environment, None where there is none. Raises UserError, without it, if unusable."""
        key = os.environ.get(self.api_key_env, "").strip()
        # httpx would quote a bad header, with the key, in its error.
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"{self.api_key_env}: holds characters that no API key has; set it again")
        return key or None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        usable = False
    if not usable:
        raise UserError(f"base_url: `{url.rpartition('@')[2]}` is not a URL; give it as https://host/v1")
    # It is written to run.json, and what is in it with it.
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"base_url: of `{parts.hostname}` holds more than scheme, host and path; give the key in the "
            "environment variable that api_key_env names"
        )
