"""What the judge is given and what it gives back: pairs of responses, and a verdict on each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf.compare.llm_judge.questions import Verdict
from rlhf.records import Messages

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class PairItem:
    """Two responses to one prompt; `reference` is an answer known to be right, for templates that show one."""

    prompt: Messages
    a: str
    b: str
    reference: str | None = None


@dataclass(frozen=True)
class PairVerdict:
    """What the judge says of a pair.

    Args:
        verdicts: by place, where a was shown first and where b was: "A" for the response shown first,
            "B" for the second, "C" for a tie, None where the judge gave none.
        value: 1.0 where a is better, 0.0 where b is, 0.5 for a tie (see `combine`).
        texts: what the judge wrote in each order; its last word where it had to be reminded.
        num_requests: requests behind it, cached ones too. Equal responses need none, and a pair that
            is given again has those of the first.
        tokens_in: of those requests, None where the endpoint does not count.
        tokens_out: of their answers.
        cost: of both, None where tokens or prices are unknown.
    """

    verdicts: tuple[Verdict | None, Verdict | None]
    value: float
    texts: tuple[str, str]
    num_requests: int
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None

    @property
    def flipped(self) -> bool:
        """Whether the judge preferred the same place in both orders: the order decided."""
        return self.verdicts in (("A", "A"), ("B", "B"))

    @property
    def unparsed(self) -> bool:
        """Whether a verdict is missing, so that `value` is a tie for want of a better."""
        return None in self.verdicts


@dataclass(frozen=True)
class JudgeSummary:
    """Verdicts counted: how many pairs, flips to the place shown first and second, and what all of it cost."""

    num_pairs: int
    num_flipped_first: int
    num_flipped_second: int
    num_unparsed: int
    num_requests: int
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None

    @property
    def num_flipped(self) -> int:
        """Pairs in which the order decided."""
        return self.num_flipped_first + self.num_flipped_second


def summarise(verdicts: Sequence[PairVerdict]) -> JudgeSummary:
    """Count what the judge did. Tokens and cost are None where those of a pair are."""
    return JudgeSummary(
        len(verdicts),
        sum(verdict.verdicts == ("A", "A") for verdict in verdicts),
        sum(verdict.verdicts == ("B", "B") for verdict in verdicts),
        sum(verdict.unparsed for verdict in verdicts),
        sum(verdict.num_requests for verdict in verdicts),
        total(verdict.tokens_in for verdict in verdicts),
        total(verdict.tokens_out for verdict in verdicts),
        total(verdict.cost for verdict in verdicts),
    )


def total(values: Iterable[Number | None]) -> Number | None:
    """The sum, None where a part of it is unknown."""
    known = list(values)
    # `sum` begins with an int, which types do not let pass for a float.
    return None if None in known else sum(known)  # type: ignore[return-value, arg-type]
