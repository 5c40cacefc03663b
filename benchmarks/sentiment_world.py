"""The world of benchmarks/sentiment.py: whose turns are prompts, and two scorers of sentiment that never met.

A scorer is a logistic regression on tf-idf of words and pairs of words; its score is the logit, which does not
flatten out, as a probability does, just where a policy begins to exploit it. Length must not pay: a sum of word
weights would grow with every word, and features divided by their norm would make "Great!" alone the best reply
of all. So the norm divides only what is longer than the median sentence (in the manner of Singhal et al. 1996,
"Pivoted document length normalization"): no text, however long, scores above the norm of the weights.
"""

import itertools
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.records import Messages

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_FILES = ("amazon_cells_labelled.txt", "imdb_labelled.txt", "yelp_labelled.txt")
Sentences = list[tuple[str, int]]


@dataclass(frozen=True)
class Scorer:
    """Text to the log-odds that it is positive."""

    columns: dict[str, int]
    idf: NDArray[np.float64]  # (features,)
    pivot: float  # the norm of the median sentence's features
    weights: NDArray[np.float64]  # (features,)
    bias: float

    def features(self, texts: list[str]) -> NDArray[np.float64]:
        """(texts, features): (1 + log count) idf, each row divided by its norm or the pivot, whichever is more."""
        table = _tf_idf(texts, self.columns, self.idf)
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), self.pivot)

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """The logits, (texts,)."""
        parts = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
        return np.concatenate([self.features(part) @ self.weights + self.bias for part in parts])

    def reward(self, completions: list[Messages], **_: Any) -> list[float]:
        """The scores of replies, as GRPOTrainer's and our PPOTrainer's reward functions give them."""
        return self([completion[-1]["content"] for completion in completions]).tolist()

    def accuracy(self, sentences: Sentences) -> list[float]:
        """Of each sentence, 1.0 where the sign of the score is its label's."""
        scores = self([text for text, _ in sentences])
        return [float((score > 0) == bool(label)) for score, (_, label) in zip(scores, sentences, strict=True)]


def terms(text: str) -> list[str]:
    """Words and pairs of neighbours, in small letters."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def fit(sentences: Sentences, penalty: float = 1.0) -> Scorer:
    """The logistic regression with the least sum of log losses + penalty / 2 |weights|^2 (scikit-learn's C is 1)."""
    documents = Counter(name for text, _ in sentences for name in set(terms(text)))
    columns = {name: at for at, name in enumerate(sorted(name for name, count in documents.items() if count >= 2))}
    idf = np.array([math.log((1 + len(sentences)) / (1 + documents[name])) + 1 for name in columns])
    table = _tf_idf([text for text, _ in sentences], columns, idf)
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    pivot = float(np.median(norms))
    features = torch.from_numpy(table / np.maximum(norms, pivot))
    labels = torch.tensor([label for _, label in sentences], dtype=torch.float64)
    weights = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fault = torch.nn.functional.binary_cross_entropy_with_logits(features @ weights + bias, labels, reduction="sum")
        total = fault + penalty / 2 * weights.square().sum()
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    return Scorer(columns, idf, pivot, weights.detach().numpy(), bias.item())


def _tf_idf(texts: list[str], columns: dict[str, int], idf: NDArray[np.float64]) -> NDArray[np.float64]:
    table = np.zeros((len(texts), len(columns)))
    for row, text in enumerate(texts):
        for name, count in Counter(terms(text)).items():
            if (column := columns.get(name)) is not None:
                table[row, column] = (1 + math.log(count)) * idf[column]
    return table


def sentences(folder: Path) -> Sentences:
    """The labelled sentences, the same one once."""
    lines = [line for name in _FILES for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]
    rows = [line.rsplit("\t", 1) for line in lines]
    return list({text.strip().lower(): (text.strip(), int(label)) for text, label in rows}.values())


def halves(rows: Sentences, seed: int) -> tuple[Sentences, Sentences]:
    """Two halves by chance: the proxy's and the gold's."""
    rows = random.Random(seed).sample(rows, len(rows))
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def prompts(chats: Path, num_held_out: int, seed: int) -> tuple[list[Messages], list[Messages]]:
    """Users' turns, each alone: all of most dialogues to train on, the first of each of the others held out.

    No text is a prompt twice, and none in both.
    """
    blocks = chats.read_text(encoding="utf-8").split("\n\n")
    dialogues = [block.split("\n") for block in blocks if block.startswith("User: ")]
    random.Random(seed).shuffle(dialogues)
    held_out = list(dict.fromkeys(lines[0] for lines in dialogues))[:num_held_out]
    rest = [lines for lines in dialogues if lines[0] not in set(held_out)]
    turns = dict.fromkeys(line for lines in rest for line in lines if line.startswith("User: "))
    train = [line for line in turns if line not in set(held_out)]
    return _as_messages(train), _as_messages(held_out)


def _as_messages(lines: list[str]) -> list[Messages]:
    return [[{"role": "user", "content": line.removeprefix("User: ")}] for line in lines]
