"""The demo's world: a help desk for household products, small enough to learn in a minute on a CPU.

A customer names a product and a symptom; the symptom tells the problem, and each problem has one
right fix, whatever the product. So a policy that has understood the fixes gives the right one for
pairs of product and problem that it never saw: `is_held_out` keeps a seventh of them for that.

Replies are put together from parts. A flawless one shows empathy, names the product, gives the fix
and offers more help; each fault of `FAULTS` spoils one of these or adds something bad.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from rlhf.records import Messages, Prompt, make_id


@dataclass(frozen=True)
class Problem:
    """What customers say (follows the product's name) and the one fix in two wordings (follows "please")."""

    name: str
    symptoms: tuple[str, ...]
    fixes: tuple[str, ...]


PRODUCTS = [
    "kettle",
    "toaster",
    "blender",
    "oven",
    "fridge",
    "freezer",
    "dishwasher",
    "washer",
    "dryer",
    "vacuum",
    "heater",
    "lamp",
    "radio",
    "speaker",
    "router",
    "printer",
    "scanner",
    "monitor",
    "laptop",
    "tablet",
    "camera",
    "drone",
    "keyboard",
    "mixer",
    "grill",
    "projector",
    "doorbell",
    "shaver",
]

PROBLEMS = [
    Problem(
        "no power",
        ("will not turn on", "stays dead", "does not start", "gets no power"),
        ("replace the fuse in the plug", "put a new fuse into the plug"),
    ),
    Problem(
        "noise",
        ("makes a loud noise", "rattles all the time", "is far too loud", "hums like a bee"),
        ("tighten the screws on the back", "make the screws on the back tight"),
    ),
    Problem(
        "heat",
        ("gets far too hot", "overheats", "is too hot to touch", "shuts down from the heat"),
        ("clear the dust from the air vents", "brush the dust out of the air vents"),
    ),
    Problem(
        "smoke",
        ("smells of smoke", "smells burnt", "gives off a burning smell", "gave off some smoke"),
        ("unplug it and book a safety check", "pull the plug and book a safety check"),
    ),
    Problem(
        "blank display",
        ("shows a blank screen", "has a dark display", "shows nothing on its display", "lost its picture"),
        ("hold the power button for ten seconds", "press the power button for ten seconds"),
    ),
    Problem(
        "red light",
        ("blinks red", "flashes a red light", "keeps a red light on", "warns me with a red light"),
        ("wipe the sensor with a dry cloth", "clean the sensor with a dry cloth"),
    ),
    Problem(
        "no connection",
        ("cannot be found by the app", "has lost the app", "does not connect to the app", "drops out of the app"),
        ("pair it with the app again", "connect it to the app again"),
    ),
    Problem(
        "locked buttons",
        ("ignores every button", "has stuck buttons", "does not react to its buttons", "has buttons that do nothing"),
        ("switch off the child lock", "turn off the child lock"),
    ),
    Problem(
        "missing part",
        ("came with a part missing", "is missing a part", "lacks one of its parts", "came without a part"),
        ("order the free part on our site", "ask for the free part on our site"),
    ),
    Problem(
        "late",
        ("has not arrived", "is two weeks late", "is still not here", "got lost in the post"),
        ("open the tracking link in our mail", "follow the tracking link in our mail"),
    ),
    Problem(
        "wrong item",
        ("came in the wrong colour", "is the wrong model", "is not the one i ordered", "came in the wrong size"),
        ("print the return label and send it back", "use the return label and send it back"),
    ),
    Problem(
        "no refund",
        (
            "went back but i got no refund",
            "was returned but never refunded",
            "was sent back without a refund",
            "went back and no money came",
        ),
        ("fill in the refund form", "complete the refund form"),
    ),
    Problem(
        "no manual",
        ("came without a manual", "has no manual", "needs a new manual", "has a manual i cannot read"),
        ("download the manual from the support page", "get the manual from the support page"),
    ),
    Problem(
        "lost settings",
        ("forgets the time", "loses its settings", "resets every night", "forgets its settings"),
        ("change the small battery under the lid", "swap the small battery under the lid"),
    ),
]

# Each tone: how a message opens, and how it closes.
TONES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "polite": (
        ("hello there,", "good morning,", "hi, i hope you are well,"),
        ("could you help me please?", "what should i do?", "thank you for any help."),
    ),
    "angry": (
        ("this is a joke,", "i am really fed up,", "i want this sorted,"),
        ("fix this now!", "this is not good enough!", "do something about it!"),
    ),
    "in a hurry": (
        ("quick question,", "i have no time,", "in a rush here,"),
        ("please be quick.", "what do i do?", "i need it today."),
    ),
    "worried": (
        ("i am a bit worried,", "oh no,", "i am scared to ask,"),
        ("is it safe?", "did i break it?", "please tell me what to do."),
    ),
    "confused": (
        ("i do not get it,", "maybe i am wrong,", "sorry, i am new to this,"),
        ("any idea?", "what am i doing wrong?", "can you explain?"),
    ),
}

COMPLAINTS = ("my {product} {symptom}.", "my new {product} {symptom}.", "the {product} i bought {symptom}.")

EMPATHY = (
    "i am sorry about the trouble with your {product}.",
    "i am so sorry to hear that.",
    "i understand how annoying this is.",
    "thank you for your patience with the {product}.",
)
ADVICE = (
    "for the {product}, please {fix}.",
    "the right step for your {product} is to {fix}.",
    "to sort out your {product}, please {fix}.",
    "with this {product}, it helps to {fix}.",
)
OFFERS = (
    "let me know if you need more help.",
    "write to us again if that does not work.",
    "just ask if you have more questions.",
    "we are happy to help with anything else.",
)
RUDE = (
    "what a stupid question.",
    "only an idiot would ask that.",
    "stop whining about it.",
    "that is your own silly fault.",
)
PASSWORD = (
    "please send me your password first.",
    "i need your password to go on.",
    "what is your account password?",
    "tell me your password and your card number.",
)
FILLER = (
    "as you may know, we sell many things.",
    "our shop has been here very long.",
    "many people are happy with us.",
    "one could say so much about this.",
)

# What can be wrong with a reply. `curt`: neither empathy nor an offer.
FAULTS = ("wrong_fix", "wrong_product", "asks_password", "rude", "rambling", "unfinished", "curt")

_PROBLEM = {problem.name: problem for problem in PROBLEMS}
_WORDINGS = [
    (tone, opening, complaint, closing)
    for tone, (openings, closings) in TONES.items()
    for opening, complaint, closing in itertools.product(openings, COMPLAINTS, closings)
]
_NUM_SYMPTOMS = len(PROBLEMS[0].symptoms)
NUM_WORDINGS = _NUM_SYMPTOMS * len(_WORDINGS)  # distinct prompts of one pair


def is_held_out(product: str, problem: str) -> bool:
    """Whether the pair is kept for evaluation.

    Diagonals of the table of pairs: of every product two problems in fourteen, of every problem four
    products in twenty-eight, so each one still occurs in training.
    """
    return (PRODUCTS.index(product) + 3 * PROBLEMS.index(_PROBLEM[problem])) % 7 == 0


def pairs(held_out: bool) -> list[tuple[str, str]]:
    """Every (product, problem) kept for evaluation, or every one for training."""
    every = itertools.product(PRODUCTS, _PROBLEM)
    return [(product, problem) for product, problem in every if is_held_out(product, problem) == held_out]


def prompt_of(product: str, problem: str, wording: int) -> Prompt:
    """One of the `NUM_WORDINGS` prompts about a pair; its product, problem and tone are in `meta`."""
    tone, opening, complaint, closing = _WORDINGS[wording // _NUM_SYMPTOMS]
    symptom = _PROBLEM[problem].symptoms[wording % _NUM_SYMPTOMS]
    text = f"{opening} {complaint.format(product=product, symptom=symptom)} {closing}"
    messages: Messages = [{"role": "user", "content": text}]
    meta = {"product": product, "problem": problem, "tone": tone}
    return Prompt(make_id("prompt", messages), messages, meta)


def draw_prompts(held_out: bool, num_prompts: int, rng: Random) -> list[Prompt]:
    """Different prompts in random order, about held-out pairs or about training pairs."""
    kept = pairs(held_out)
    drawn = rng.sample(range(len(kept) * NUM_WORDINGS), num_prompts)
    return [prompt_of(*kept[index // NUM_WORDINGS], index % NUM_WORDINGS) for index in drawn]


def draw_faults(rng: Random, flawless_share: float, two_faults_share: float) -> tuple[str, ...]:
    """No fault with probability `flawless_share`; else two with `two_faults_share`, or one."""
    if rng.random() < flawless_share:
        return ()
    return tuple(rng.sample(FAULTS, 2 if rng.random() < two_faults_share else 1))


def write_reply(product: str, problem: str, faults: Collection[str], rng: Random) -> str:
    """A reply to a customer with this problem, its wording random, with these faults and no others.

    A wrong fix or a wrong product is chosen among the training pairs, so replies to training prompts
    never give away the fix of a held-out pair. KeyError for a fault that is not in `FAULTS`.
    """
    unknown = set(faults) - set(FAULTS)
    if unknown:
        raise KeyError(sorted(unknown)[0])
    said_product, fixed = _said(product, problem, faults, rng)
    fix = rng.choice(_PROBLEM[fixed].fixes)
    sentences = [rng.choice(ADVICE).format(product=said_product, fix=fix)]
    if "rude" in faults:
        sentences.insert(0, rng.choice(RUDE))
    elif "curt" not in faults:
        sentences.insert(0, rng.choice(EMPATHY).format(product=said_product))
    if "curt" not in faults:
        sentences.append(rng.choice(OFFERS))
    if "asks_password" in faults:
        sentences.insert(rng.randrange(len(sentences)), rng.choice(PASSWORD))  # never last: `_cut` would undo it
    if "rambling" in faults:
        first, second = rng.sample(FILLER, 2)
        at = rng.randrange(len(sentences) + 1)
        sentences[at:at] = [first, second, first, second]
    if "unfinished" in faults:
        sentences = _cut(sentences, only_last=len(set(faults)) > 1, rng=rng)
    return " ".join(sentences)


def _said(product: str, problem: str, faults: Collection[str], rng: Random) -> tuple[str, str]:
    """The product named and the problem whose fix is given."""
    products = [other for other in PRODUCTS if other != product] if "wrong_product" in faults else [product]
    problems = [other for other in _PROBLEM if other != problem] if "wrong_fix" in faults else [problem]
    choices = list(itertools.product(products, problems))
    if len(choices) == 1:
        return choices[0]
    return rng.choice([choice for choice in choices if not is_held_out(*choice)])


def _cut(sentences: list[str], only_last: bool, rng: Random) -> list[str]:
    """Stop in the middle of a sentence, `only_last` where an earlier cut would take another fault away."""
    last = len(sentences) - 1
    at = last if only_last or rng.random() < 0.6 else rng.randrange(len(sentences))
    words = sentences[at].split()
    left = " ".join(words[: rng.randrange(1, len(words))])
    return [*sentences[:at], left.rstrip(",.!?")]
