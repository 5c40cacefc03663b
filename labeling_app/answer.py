"""One answer to a task: checked as it comes from a browser, kept by response id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from labeling_app.form import MAX_RATING, MAX_STRENGTH, Form

MAX_TEXT = 50_000  # characters of a reason or of a better answer


class Refused(Exception):
    """What a browser sent cannot be taken; the message says why, in a sentence that an annotator can read."""


@dataclass(frozen=True)
class Answer:
    """What somebody said about a task. Keys are response ids; ranks are dense, 1 is best, equal is a tie.

    `strength` is asked where there are two responses: 0 for a tie, 1 slightly better, 2 better, 3
    much better. `both_bad` goes with a tie of all. `better_answer` is a reply written by the annotator.
    """

    ranks: dict[str, int]
    strength: int | None = None
    both_bad: bool = False
    flags: dict[str, list[str]] = field(default_factory=dict)
    ratings: dict[str, dict[str, int]] = field(default_factory=dict)
    reason: str | None = None
    better_answer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the store keeps it."""
        return dict(vars(self))


def read_answer(sent: Any, shown: Sequence[str], form: Form) -> Answer:
    """An answer from what a browser sent, whose lists are in the order on screen.

    Args:
        sent: `{"ranks": [2, 1], "strength": 3, "both_bad": false, "flags": [["harmful"], []],
            "ratings": [{}, {"helpful": 4}], "reason": "...", "better_answer": "..."}`; all but `ranks` optional.
        shown: response ids in the order on screen.

    Raises Refused for anything else.
    """
    if not isinstance(sent, Mapping):
        raise Refused("The answer did not arrive whole. Please send it again.")
    if unknown := set(sent) - {"ranks", "strength", "both_bad", "flags", "ratings", "reason", "better_answer"}:
        raise Refused(f"The answer has a part that is not asked for: {min(map(str, unknown))!r:.40}.")
    ranks = _ranks(sent.get("ranks"), len(shown))
    strength = _strength(sent.get("strength"), ranks, form)
    both_bad = sent.get("both_bad") or False
    if not isinstance(both_bad, bool) or (both_bad and (not form.both_bad or set(ranks) != {1})):
        raise Refused("“All are bad” goes with a tie.")
    reason, better_answer = _text(sent.get("reason"), "reason"), _text(sent.get("better_answer"), "better answer")
    if form.reason == "required" and not reason:
        raise Refused("Please say why, in a few words.")
    if (form.reason == "off" and reason) or (not form.better_answer and better_answer):
        raise Refused("The answer has a text that is not asked for.")
    flags, ratings = _flags(sent.get("flags"), shown, form), _ratings(sent.get("ratings"), shown, form)
    return Answer(dict(zip(shown, ranks, strict=True)), strength, both_bad, flags, ratings, reason, better_answer)


def sent_form(answer: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """A stored answer as a browser would send it: what an edit starts from."""
    return {
        "ranks": [answer["ranks"][id] for id in shown],
        "strength": answer["strength"],
        "both_bad": answer["both_bad"],
        "flags": [answer["flags"].get(id, []) for id in shown],
        "ratings": [answer["ratings"].get(id, {}) for id in shown],
        "reason": answer["reason"] or "",
        "better_answer": answer["better_answer"] or "",
    }


def disagree(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two rankings of the same two responses differ, or of more than two put any pair in opposite order.

    With more than two only a reversal counts: two people seldom agree on every tie.
    """
    signs = [(_sign(one[b] - one[a]), _sign(other[b] - other[a])) for a, b in combinations(sorted(one), 2)]
    return any(a * b < 0 for a, b in signs) or (len(signs) == 1 and signs[0][0] != signs[0][1])


def is_right(known: Mapping[str, int], ranks: Mapping[str, int]) -> bool:
    """Whether an answer puts every pair in the known order; of more than two, those that are tied there may be in any.

    Stricter than `disagree`: who ties everything contradicts nobody, and has not found the best.
    """
    signs = [(_sign(known[b] - known[a]), _sign(ranks[b] - ranks[a])) for a, b in combinations(sorted(known), 2)]
    return all(right == said or (right == 0 and len(signs) > 1) for right, said in signs)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _ranks(sent: Any, num: int) -> list[int]:
    if (
        not isinstance(sent, list)
        or len(sent) != num
        or not all(type(rank) is int and 1 <= rank <= num for rank in sent)
    ):
        raise Refused(f"Please give each of the {num} responses a place.")
    dense = {rank: place for place, rank in enumerate(sorted(set(sent)), 1)}
    return [dense[rank] for rank in sent]


def _strength(sent: Any, ranks: list[int], form: Form) -> int | None:
    if not form.strength or len(ranks) != 2:
        if sent is not None:
            raise Refused("How much better is not asked for here.")
        return None
    tie = len(set(ranks)) == 1
    if type(sent) is not int or not 0 <= sent <= MAX_STRENGTH or tie != (sent == 0):
        raise Refused("Please say how much better the better one is.")
    return sent


def _text(sent: Any, what: str) -> str | None:
    if sent is None:
        return None
    if not isinstance(sent, str):
        raise Refused(f"The {what} did not arrive whole. Please send it again.")
    if not sent.strip():
        return None
    if len(sent) > MAX_TEXT:
        raise Refused(f"The {what} has {len(sent):,} characters; at most {MAX_TEXT:,} can be kept.")
    return sent


def _flags(sent: Any, shown: Sequence[str], form: Form) -> dict[str, list[str]]:
    known = [choice.id for choice in form.flags]
    rows = [[] for _ in shown] if sent is None else sent
    if not isinstance(rows, list) or len(rows) != len(shown):
        raise Refused("The flags did not arrive whole. Please send them again.")
    flags = {}
    for id, row in zip(shown, rows, strict=True):
        if not isinstance(row, list) or any(flag not in known for flag in row):
            raise Refused("A flag is not one of those on the form. Please reload the page.")
        if row:
            flags[id] = [flag for flag in known if flag in row]
    return flags


def _ratings(sent: Any, shown: Sequence[str], form: Form) -> dict[str, dict[str, int]]:
    known = [choice.id for choice in form.attributes]
    rows = [{} for _ in shown] if sent is None else sent
    if not isinstance(rows, list) or len(rows) != len(shown):
        raise Refused("The ratings did not arrive whole. Please send them again.")
    ratings = {}
    for id, row in zip(shown, rows, strict=True):
        if not isinstance(row, Mapping) or any(name not in known for name in row):
            raise Refused("A rating is not one of those on the form. Please reload the page.")
        if any(type(value) is not int or not 0 <= value <= MAX_RATING for value in row.values()):
            raise Refused(f"Ratings go from 0 to {MAX_RATING}.")
        if row:
            ratings[id] = dict(row)
    return ratings
