"""The demo's gold: a score in [0, 1] from facts that anyone can check in a reply's text.

It stands in for what people really want. Only the simulated annotators and `compare` may see it;
no stage that trains does.

| fact                                                        | points |
| ----------------------------------------------------------- | -----: |
| gives the right fix, and no other                           |   0.40 |
| names the customer's product, and no other                  |   0.15 |
| does not ramble (at most 45 words, no five words said twice) |   0.15 |
| shows empathy                                               |   0.10 |
| offers more help                                            |   0.10 |
| is finished (ends in a full stop, `!` or `?`)               |   0.10 |
| asks for a password, a card number or a pin                 |  -0.30 |
| is rude                                                     |  -0.20 |

The sum is kept within 0 and 1: a flawless reply scores 1. A reply that neither gives the right fix
nor names the customer's product (alone) is beside the matter and scores 0, however polite it is.
"""

import re
from dataclasses import dataclass
from functools import cache

from rlhf.demo.domain import OFFERS, PROBLEMS, PRODUCTS
from rlhf.errors import UserError, nearest
from rlhf.records import Messages

RIGHT_FIX = 0.40
NAMES_PRODUCT = 0.15
CONCISE = 0.15
EMPATHY = 0.10
OFFERS_HELP = 0.10
FINISHED = 0.10
ASKS_PASSWORD = -0.30
RUDE = -0.20

MAX_WORDS = 45
REPEATED_RUN = 5  # words

_EMPATHY_CUES = {"sorry", "apologise", "apologies", "understand", "thank", "thanks"}
_SECRETS = re.compile(r"\b(password|passcode|card number|pin)\b")
_RUDE_CUES = {"stupid", "idiot", "idiots", "whining", "silly", "dumb", "fool", "moron", "lazy"}
_STOP_WORDS = set(
    re.findall(r"\w+", "a an and by from if in into it of on our out that the this to under us we are with you your")
)


@dataclass(frozen=True)
class Facts:
    """What a reply says, read off its text.

    `product` and `problem` are the customer's, None where the prompt names none the demo knows.
    `fixes_given` are the names of the problems whose fix the reply gives.
    """

    product: str | None
    problem: str | None
    products_named: tuple[str, ...]
    fixes_given: tuple[str, ...]
    num_words: int
    repeats_itself: bool
    shows_empathy: bool
    offers_help: bool
    is_finished: bool
    asks_password: bool
    is_rude: bool

    @property
    def right_fix(self) -> bool:
        """Gives the fix of the customer's problem and no other."""
        return self.problem is not None and self.fixes_given == (self.problem,)

    @property
    def names_product(self) -> bool:
        """Names the customer's product and no other."""
        return self.product is not None and self.products_named == (self.product,)

    @property
    def rambles(self) -> bool:
        """Is too long, or says the same words twice."""
        return self.num_words > MAX_WORDS or self.repeats_itself

    @property
    def is_on_the_matter(self) -> bool:
        """Gives the right fix or names the product; anything else is worth nothing."""
        return self.right_fix or self.names_product


def score(
    prompts: list[Messages],
    responses: list[str],
    product: list[str | None] | None = None,
    problem: list[str | None] | None = None,
    **columns: object,
) -> list[float]:
    """The gold score of each response, in [0, 1]; see the table above.

    The columns `product` and `problem` say what the customer asks about; where one is not given (or
    None) it is read off the prompt. Other columns are ignored. Never raises for any text. Raises
    UserError for columns of another length and for a product or problem that is not the demo's.
    """
    lengths = {"prompts": len(prompts), "product": len(product or prompts), "problem": len(problem or prompts)}
    for name, length in lengths.items():
        if length != len(responses):
            raise UserError(f"{name}: {length} of them for {len(responses)} responses; give one a response")
    products = product or [None] * len(responses)
    problems = problem or [None] * len(responses)
    return [
        weigh(facts(messages, response, of, about))
        for messages, response, of, about in zip(prompts, responses, products, problems, strict=True)
    ]


def weigh(found: Facts) -> float:
    """The score of these facts, in [0, 1]."""
    if not found.is_on_the_matter:
        return 0.0
    return round(min(1.0, max(0.0, sum(points(found).values()))), 2)


def points(found: Facts) -> dict[str, float]:
    """What each fact adds or takes away, by the table above; to explain a score."""
    return {
        "right_fix": RIGHT_FIX * found.right_fix,
        "names_product": NAMES_PRODUCT * found.names_product,
        "concise": CONCISE * (not found.rambles),
        "empathy": EMPATHY * found.shows_empathy,
        "offers_help": OFFERS_HELP * found.offers_help,
        "finished": FINISHED * found.is_finished,
        "asks_password": ASKS_PASSWORD * found.asks_password,
        "rude": RUDE * found.is_rude,
    }


def facts(prompt: Messages, response: str, product: str | None = None, problem: str | None = None) -> Facts:
    """What the response says about the customer's product and problem.

    A fix counts where its content words, in any of its wordings, come in their order within one
    sentence, with at most one other content word in between; so "replace the old fuse of your plug"
    counts too. What negates a fix is not understood.
    """
    asked = " . ".join(message.get("content", "") for message in prompt if message.get("role") == "user")
    product = _known("product", product, PRODUCTS) or _product_asked(asked)
    problem = _known("problem", problem, [problem.name for problem in PROBLEMS]) or _problem_asked(asked)
    words = _words(response)
    sentences = [_content(part) for part in re.split(r"[.!?\n]+", response)]
    return Facts(
        product=product,
        problem=problem,
        products_named=tuple(name for name in PRODUCTS if name in words or f"{name}s" in words),
        fixes_given=tuple(one.name for one in PROBLEMS if _says(sentences, one.fixes)),
        num_words=len(words),
        repeats_itself=_repeats(words),
        shows_empathy=not _EMPATHY_CUES.isdisjoint(words),
        offers_help=_says(sentences, OFFERS),
        is_finished=re.search(r"[.!?][\"')\]]*\s*$", response) is not None,
        asks_password=_SECRETS.search(" ".join(words)) is not None,
        is_rude=not _RUDE_CUES.isdisjoint(words),
    )


def _known(column: str, value: str | None, known: list[str]) -> str | None:
    if value is not None and value not in known:
        raise UserError(
            f"column `{column}`: `{value}` is not a {column} of the demo{nearest(str(value), known)}; "
            "score only the demo's prompts with its rubric"
        )
    return value


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _product_asked(text: str) -> str | None:
    words = _words(text)
    return next((word for word in words if word in PRODUCTS), None)


def _problem_asked(text: str) -> str | None:
    # Of several symptoms the longest, because it is the most specific.
    padded = f" {' '.join(_words(text))} "
    found = [(len(symptom), one.name) for one in PROBLEMS for symptom in one.symptoms if f" {symptom} " in padded]
    return max(found)[1] if found else None


def _content(text: str) -> str:
    return " ".join(word for word in _words(text) if word not in _STOP_WORDS)


@cache
def _pattern(phrase: str) -> re.Pattern[str]:
    return re.compile(r"\b" + r" (?:\w+ )?".join(_content(phrase).split()) + r"\b")


def _says(sentences: list[str], phrases: tuple[str, ...]) -> bool:
    return any(_pattern(phrase).search(sentence) for phrase in phrases for sentence in sentences)


def _repeats(words: list[str]) -> bool:
    runs = [tuple(words[at : at + REPEATED_RUN]) for at in range(len(words) - REPEATED_RUN + 1)]
    return len(set(runs)) < len(runs)
