"""A reward function behind a URL."""

import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from rlhf.errors import UserError


class RewardError(UserError):
    """A reward function that gave no score to train on: one line that names it, says what and how to mend."""


class HTTPReward:
    """A reward function behind a URL.

    Each batch is a POST of `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`; the
    answer is `{"scores": [...]}` or the list alone. Connections that fail or time out, and the answers
    429 and 5xx, are tried again; any other answer than 2xx is final.

    Args:
        url: where to post, with http:// or https://.
        batch_size: completions a request.
        timeout: seconds without a sign of life after which a request has failed.
        num_retries: tries of a request after the first one.
        backoff: seconds before the first retry; twice as many before each next one.
    """

    def __init__(
        self, url: str, batch_size: int = 32, timeout: float = 60.0, num_retries: int = 5, backoff: float = 1.0
    ) -> None:
        self.url, self.batch_size, self.timeout = url, batch_size, timeout
        self.num_retries, self.backoff = num_retries, backoff
        try:
            self.__name__ = httpx.URL(url).host
        except httpx.InvalidURL as error:
            raise UserError(f"{url}: is not a URL ({error}); give http://host:port/path") from None
        if not self.__name__:
            raise UserError(f"{url}: is a URL without a host; give http://host:port/path")
        self.shown = str(httpx.URL(url).copy_with(userinfo=b""))  # no password in a log

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        """The scores in the order of the completions, as the server gave them: `score` checks their values."""
        scores: list[Any] = []
        with httpx.Client(timeout=self.timeout) as client:
            for start in range(0, len(completions), self.batch_size):
                part = slice(start, start + self.batch_size)
                sent = {key: values[part] for key, values in columns.items()}
                body = self._json({"prompts": prompts[part], "completions": completions[part], "columns": sent})
                scores += self._scores(self._post(client, body), len(completions[part]))
        return scores

    def _json(self, body: dict[str, Any]) -> str:
        try:
            return json.dumps(body, allow_nan=False)
        except (TypeError, ValueError):
            for column, values in body["columns"].items():
                try:
                    json.dumps(values, allow_nan=False)
                except (TypeError, ValueError) as error:
                    raise RewardError(
                        f"{self.shown}: column `{column}` cannot be sent ({error}); store it as text, or drop it"
                    ) from None
            raise

    # huggingface_hub's http_backoff refuses to work offline (HF_HUB_OFFLINE), where an endpoint may be on
    # this very machine; httpx's own retries know nothing of 429 and 5xx.
    def _post(self, client: httpx.Client, body: str) -> httpx.Response:
        reason = ""
        for attempt in range(self.num_retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                response = client.post(self.url, content=body, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return response
            reason = f"HTTP {response.status_code} {response.text[:200]!r}"
            if response.status_code != 429 and response.status_code < 500:
                raise RewardError(f"{self.shown}: answered {reason}; mend the URL, or the server")
        raise RewardError(
            f"{self.shown}: failed {self.num_retries + 1} times, at last with {reason}; "
            "check that the server runs and can be reached from here"
        )

    def _scores(self, response: httpx.Response, count: int) -> list[Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = response.text
        scores = answer.get("scores") if isinstance(answer, dict) else answer
        if not isinstance(scores, list):
            raise RewardError(
                f'{self.shown}: answered {response.text[:200]!r}; it should answer {{"scores": [...]}} or a list'
            )
        if len(scores) != count:
            raise RewardError(f"{self.shown}: gave {len(scores)} scores for {count} completions; give one for each")
        return scores
