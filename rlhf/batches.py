"""Batches of like length in random order: less padding, for every trainer here that shuffles its rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

# So many batches' worth of random rows are put in order of length at a time: of two batches' worth no batch
# would be of one length, and of the whole data the same rows would meet again in every pass.
POOL = 16


class LikeLengths(Sampler[int]):
    """Rows in an order whose batches hold rows of like length, the batches themselves at random.

    transformers' own `group_by_length` goes from long to short again and again, which a short training with a
    decaying learning rate does not forgive. An incomplete batch comes last, as a DataLoader cuts it.

    Args:
        lengths: of each row, in tokens.
        batch_size: rows that one rank sees at a time.
        seed: of the order; each pass has another one, and a resumed pass the same again.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Which pass it is; transformers calls this before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(len(self), generator=generator)
        num_whole = len(rows) // self.batch_size * self.batch_size
        batches: list[Tensor] = []
        for pool in rows[:num_whole].split(POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(stable=True)].split(self.batch_size)
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[at].tolist()
        yield from rows[num_whole:].tolist()


class BatchesOfLikeLength:
    """For trainers: what `train_sampling_strategy: group_by_length` does here. Mix it in before the trainer.

    The lengths are the dataset's column `length`, else those of its `input_ids`.
    """

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            trainer: Any = super()
            return trainer._get_train_sampler(train_dataset)
        rows = self.train_dataset
        lengths = rows["length"] if "length" in rows.column_names else [len(ids) for ids in rows["input_ids"]]
        return LikeLengths(lengths, self.args.train_batch_size, self.args.seed)
