"""Episodes, and how they are cut: by tokens into micro-batches, evenly over ranks, padded on the right."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Episode:
    """One prompt and its sampled reply. The lists of floats have one figure a token of the reply."""

    prompt_ids: list[int]
    ids: list[int]
    finished: bool
    text: str = ""
    scores: list[float] = field(default_factory=list)  # one a reward function
    score: float = 0.0  # all of them in one, before penalty, bias and scale
    logps: list[float] = field(default_factory=list)
    ref_logps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)  # one a gold function, at the guard's looks
    entropy: float = 0.0  # mean over its tokens
    engine_logps: list[float] | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt_ids) + len(self.ids)


@dataclass
class Batch:
    """A round's episodes, all ranks', as tensors `(episodes, time)` padded on the right; `mask` is true on tokens."""

    episodes: list[Episode]
    mask: Tensor
    old_logps: Tensor
    old_values: Tensor
    kl: Tensor  # log pi - log ref of each token: k1, whatever the price is made of
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor | None = None

    def flat(self, rows: list[int]) -> "Batch":
        """The tokens of some episodes end to end: every tensor becomes `(tokens,)`."""
        mask = self.mask[rows]
        take = {name: value[rows][mask] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, episodes=[self.episodes[row] for row in rows], **(take | {"mask": mask}))


def padded(rows: list[list[float]], width: int) -> Tensor:
    """Ragged rows of floats as `(rows, width)` float32, zeros on the right."""
    out = torch.zeros(len(rows), width)
    for at, row in enumerate(rows):
        out[at, : len(row)] = torch.tensor(row)
    return out


def reply_mask(episodes: list[Episode]) -> Tensor:
    """`(episodes, time)`: true on the tokens of the replies."""
    lengths = torch.tensor([len(episode.ids) for episode in episodes])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]


def pack(episodes: list[Episode], device: Any) -> tuple[Tensor, Tensor]:
    """`input_ids` (batch, time), prompt and reply padded on the right, and `keep` (batch, time - 1).

    `keep` is true where the next token is one of the reply's. The pad is token 0, which nothing sees:
    attention is causal, and no padded position is kept.
    """
    width = max(episode.length for episode in episodes)
    input_ids = torch.zeros(len(episodes), width, dtype=torch.long)
    keep = torch.zeros(len(episodes), width - 1, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        input_ids[row, : episode.length] = torch.tensor(episode.prompt_ids + episode.ids)
        keep[row, len(episode.prompt_ids) - 1 : episode.length - 1] = True
    return input_ids.to(device), keep.to(device)


def micro_batches(lengths: list[int], rows: list[int], max_tokens: int, padded: bool = True) -> list[list[int]]:
    """Cut rows into groups with at most `max_tokens` tokens each. A row longer than that makes a group of its own.

    Where rows are padded, padding counts and rows of like length share a group, longest first, so that what does not
    fit in memory shows at once; else the groups are as few as they can be, and about as large as each other.
    """
    if not padded:
        num = -(-sum(lengths[row] for row in rows) // max_tokens)
        while True:
            groups = [group for group in shares(lengths, rows, num) if group]
            if all(len(group) == 1 or sum(lengths[row] for row in group) <= max_tokens for group in groups):
                return groups
            num += 1
    groups: list[list[int]] = []
    width = 0
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if groups and (len(groups[-1]) + 1) * width <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
            width = lengths[row]
    return groups


def shares(lengths: list[int], rows: list[int], num_ranks: int) -> list[list[int]]:
    """Deal rows to ranks so that each has about the same number of tokens; each rank gets at least one if it can.

    The longest row goes to the rank with the fewest tokens so far. Every rank computes the same.
    """
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        rank = min(range(num_ranks), key=lambda rank: (tokens[rank], rank))
        dealt[rank].append(row)
        tokens[rank] += lengths[row]
    return dealt


def seeded(seed: int, *parts: object) -> torch.Generator:
    """A generator whose numbers depend on the seed and the parts alone: nothing to save, nothing to restore."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
