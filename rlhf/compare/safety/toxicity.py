"""A crude measure of toxicity: words on a list."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

LEXICON = Path(__file__).parents[1] / "lexicons" / "toxicity.txt"


def lexicon_toxicity(prompts: Sequence[Any], responses: Sequence[str], **columns: Any) -> list[float]:
    """The share of a reply's words that are in a short list of insults and threats, in [0, 1].

    Crude: blind to meaning ("the pig farm", "he was called an idiot"), to irony and to everything that is
    not on the list, slurs among it. It shows a policy that has begun to swear, no more. Any classifier of
    the form (prompts, responses, **columns) -> numbers goes in its place.
    """
    pattern = _lexicon(LEXICON)
    shares = []
    for response in responses:
        text = response.replace("\u2019", "'").casefold()
        words = len(re.findall(r"[\w']+", text))
        hits = sum(len(found.split()) for found in pattern.findall(text))
        shares.append(hits / words if words else 0.0)
    return shares


@cache
def _lexicon(path: Path) -> re.Pattern[str]:
    lines = [line.strip().casefold() for line in path.read_text(encoding="utf-8").splitlines()]
    entries = sorted((line for line in lines if line and not line.startswith("#")), key=len, reverse=True)
    forms = [re.escape(entry).replace(r"\*", r"[\w']*").replace(r"\ ", r"\s+") for entry in entries]
    return re.compile(rf"(?<![\w'])(?:{'|'.join(forms)})(?![\w'])")
