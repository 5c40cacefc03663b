"""Two responses to one prompt before the judge, in both orders; resumable, and nothing asked twice."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, NamedTuple

from rlhf.compare.llm_judge.budget import Budget
from rlhf.compare.llm_judge.cache import Reply, ReplyCache, request_key
from rlhf.compare.llm_judge.endpoint import JudgeEndpoint, Refused, Stopped
from rlhf.compare.llm_judge.questions import (
    Template,
    Verdict,
    combine,
    load_template,
    parse_verdict,
    with_reminder,
)
from rlhf.compare.llm_judge.verdicts import PairItem, PairVerdict, total
from rlhf.errors import UserError
from rlhf.records import Messages

if TYPE_CHECKING:
    from rlhf.compare.llm_judge.client import ChatClient


class _Outcome(NamedTuple):
    """What came of one question: a verdict, or why there is none."""

    verdict: Verdict | None
    replies: list[Reply]
    reason: str = ""


def judge_pairs(
    endpoint: JudgeEndpoint, items: Sequence[PairItem], progress: Callable[[int, int], None] | None = None
) -> list[PairVerdict]:
    """The judge's verdict on every pair, in the order of `items`; each pair is asked in both orders.

    Args:
        endpoint: the judge.
        items: the pairs.
        progress: called in this thread, with how many questions of how many have an outcome.

    A pair of equal responses is a tie without a question. Raises UserError for a bad template, a missing
    reference, a cache that cannot be used, an endpoint that fails for good, a cost that would pass the
    cap, and a judge that leaves more than `max_unparsed` of the questions without a verdict. Requests in
    flight end first then, and their answers are kept.
    """
    template = load_template(endpoint.template)
    _check_references(template, items)
    pairs, questions = _ask_what(endpoint, template, items)
    with ReplyCache(endpoint.cache) as cache:
        outcomes = _Judge(endpoint, cache, len(questions)).ask_all(questions, progress)
    counted: set[str] = set()
    return [_pair_verdict(endpoint, keys, outcomes, counted) for keys in pairs]


def _check_references(template: Template, items: Sequence[PairItem]) -> None:
    for number, item in enumerate(items, 1):
        if template.needs_reference and item.reference is None:
            raise UserError(
                f"template: `{template.name}` shows a reference answer, and pair {number} has none; give each a "
                "reference, or take the template `general`"
            )


def _ask_what(
    endpoint: JudgeEndpoint, template: Template, items: Sequence[PairItem]
) -> tuple[list[tuple[str, str] | None], dict[str, Messages]]:
    """For each pair the keys of its two questions, None where none is needed; and every question by key."""
    pairs: list[tuple[str, str] | None] = []
    questions: dict[str, Messages] = {}
    for item in items:
        if item.a == item.b:
            pairs.append(None)
            continue
        orders = [
            template.messages(item.prompt, *order, item.reference) for order in ((item.a, item.b), (item.b, item.a))
        ]
        first, second = (request_key(endpoint.model, messages, endpoint.sampling) for messages in orders)
        questions |= {first: orders[0], second: orders[1]}
        pairs.append((first, second))
    return pairs, questions


class _Judge:
    """Questions in, outcomes out: from the cache, else from the endpoint, many at a time."""

    def __init__(self, endpoint: JudgeEndpoint, cache: ReplyCache, num_questions: int) -> None:
        self.endpoint, self.cache = endpoint, cache
        self.num_questions = num_questions
        self.num_unparsed = 0
        self.stop = threading.Event()
        self.budget = Budget(endpoint, self.stop)

    def ask_all(
        self, questions: dict[str, Messages], progress: Callable[[int, int], None] | None
    ) -> dict[str, _Outcome]:
        """The outcome of every question, by its key."""
        outcomes: dict[str, _Outcome] = {}

        def take(key: str, outcome: _Outcome) -> None:
            outcomes[key] = outcome
            self._count_unparsed(outcome)
            if progress is not None:
                progress(len(outcomes), self.num_questions)

        # All that is paid for already counts against the cap before anything is asked.
        for key, messages in questions.items():
            if (outcome := self._dialogue(messages, self._recall)) is not None:
                take(key, outcome)
        left = {key: messages for key, messages in questions.items() if key not in outcomes}
        if left:
            self._ask_endpoint(left, take)
        return outcomes

    def _ask_endpoint(self, questions: dict[str, Messages], take: Callable[[str, _Outcome], None]) -> None:
        from rlhf.compare.llm_judge.client import ChatClient  # httpx, which a run from the cache does without

        with ChatClient(self.endpoint, self.budget, self.stop) as client:
            pool = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="judge")
            try:
                jobs = {pool.submit(self._ask, client, messages): key for key, messages in questions.items()}
                for job in as_completed(jobs):
                    with contextlib.suppress(Stopped):  # the job that failed tells why
                        take(jobs[job], job.result())
            except BaseException:
                self.stop.set()
                raise
            finally:
                # What is in flight is paid for: its answers are waited for, and kept.
                pool.shutdown(cancel_futures=True)

    def _ask(self, client: "ChatClient", messages: Messages) -> _Outcome:
        def reply_to(messages: Messages) -> Reply:
            key = self._key(messages)
            reply = self.cache.get(key)
            if reply is None:
                reply = client.ask(messages)
                self.cache.put(key, reply)
            return reply

        try:
            outcome = self._dialogue(messages, reply_to)
        except BaseException:
            self.stop.set()  # here, so that no thread asks one more before `ask_all` hears of it
            raise
        assert outcome is not None
        return outcome

    def _recall(self, messages: Messages) -> Reply | None:
        reply = self.cache.get(self._key(messages))
        if reply is not None:
            self.budget.charge(self.endpoint.cost(reply.tokens_in, reply.tokens_out))
        return reply

    def _key(self, messages: Messages) -> str:
        return request_key(self.endpoint.model, messages, self.endpoint.sampling)

    def _dialogue(self, messages: Messages, reply_to: Callable[[Messages], Reply | None]) -> _Outcome | None:
        """Ask, and remind where no verdict comes; None where `reply_to` has no reply."""
        replies: list[Reply] = []
        for _ in range(self.endpoint.num_reminders + 1):
            if replies:
                messages = with_reminder(messages, replies[-1].text)
            try:
                reply = reply_to(messages)
            except Refused as error:
                return _Outcome(None, replies, str(error))
            if reply is None:
                return None
            replies.append(reply)
            # A text that was cut ends anywhere: what stands on its last line need not be meant as a verdict.
            verdict = None if reply.finish == "length" else parse_verdict(reply.text)
            if verdict is not None:
                return _Outcome(verdict, replies)
        return _Outcome(None, replies, f"an answer that ends with {replies[-1].text.strip()[-200:]!r}")

    def _count_unparsed(self, outcome: _Outcome) -> None:
        self.num_unparsed += outcome.verdict is None
        if self.num_unparsed > self.endpoint.max_unparsed * self.num_questions:
            raise UserError(
                f"{self.endpoint.model}: {self.num_unparsed} of {self.num_questions} questions got no verdict, more "
                f"than max_unparsed {self.endpoint.max_unparsed:g} allows, the last one {outcome.reason}; "
                "take a judge that keeps to the format, mend its settings (a larger max_tokens where answers are "
                "cut), or allow more"
            )


def _pair_verdict(
    endpoint: JudgeEndpoint,
    keys: tuple[str, str] | None,
    outcomes: dict[str, _Outcome],
    counted: set[str],
) -> PairVerdict:
    if keys is None:
        return PairVerdict(("C", "C"), 0.5, ("", ""), 0, 0, 0, endpoint.cost(0, 0))
    first, second = (outcomes[key] for key in keys)
    replies = [reply for key in keys if key not in counted for reply in outcomes[key].replies]
    counted |= set(keys)
    return PairVerdict(
        (first.verdict, second.verdict),
        combine(first.verdict, second.verdict),
        (_last_text(first), _last_text(second)),
        len(replies),
        total(reply.tokens_in for reply in replies),
        total(reply.tokens_out for reply in replies),
        # Nothing is not free where no price is known.
        total([endpoint.cost(0, 0), *(endpoint.cost(reply.tokens_in, reply.tokens_out) for reply in replies)]),
    )


def _last_text(outcome: _Outcome) -> str:
    return outcome.replies[-1].text if outcome.replies else outcome.reason
