"""Batches of like length: what the sampler promises, and that each trainer uses it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl import DPOConfig, RewardConfig, SFTConfig

from reward_model.train import PairTrainer, RewardData
from reward_model.train import tokenize as tokenize_scored
from rlhf.batches import POOL, LikeLengths
from rlhf.data.encode import Encoder
from rlhf.dpo import TokenDPOTrainer
from rlhf.dpo import tokenize as tokenize_pairs
from rlhf.models import load_causal, load_classifier, load_tokenizer
from rlhf.records import Demonstration, Preference
from rlhf.sft import ConversationTrainer
from rlhf.sft import tokenize as tokenize_conversations

BATCH = 2
# Which side is the longer one changes from pair to pair.
WORDS = [(1, 9), (30, 2), (3, 1), (2, 28), (8, 9), (31, 30), (2, 2), (4, 40)] * 40
PROMPT = [{"role": "user", "content": "help me"}]


def reply(number: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": "again " * number}]


PAIRS = [Preference(f"p{i}", f"g{i}", PROMPT, reply(a), reply(b)) for i, (a, b) in enumerate(WORDS)]


def settings(folder: Path) -> dict[str, Any]:
    """What every trainer gets."""
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "group_by_length",
        "max_length": 512,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
    }


def sft(policy: str, folder: Path) -> Any:
    args = SFTConfig(**settings(folder))
    tokenizer = load_tokenizer(policy)
    demonstrations = [Demonstration(f"d{i}", [*PROMPT, *reply(max(pair))]) for i, pair in enumerate(WORDS)]
    rows, _ = tokenize_conversations(demonstrations, Encoder(tokenizer), args, "rows.jsonl")
    model = load_causal(policy, "float32")
    return ConversationTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def dpo(policy: str, folder: Path) -> Any:
    tokenizer = load_tokenizer(policy)
    rows, _ = tokenize_pairs(PAIRS, Encoder(tokenizer), 512, "pairs.jsonl")
    args, model = DPOConfig(**settings(folder)), load_causal(policy, "float32")
    return TokenDPOTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def reward(policy: str, folder: Path) -> Any:
    tokenizer = load_tokenizer(policy)
    rows, _ = tokenize_scored(PAIRS, Encoder(tokenizer), 512, RewardData("pairs.jsonl"))
    args, model = RewardConfig(**settings(folder)), load_classifier(policy, tokenizer, "float32")
    return PairTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("make", [sft, dpo, reward])
def test_rows_of_like_length_share_a_batch(make: Any, policy_folder: Path, tmp_path: Path) -> None:
    trainer = make(str(policy_folder), tmp_path)
    widths = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
    rows = trainer.train_dataset
    total = sum(rows["length"] if "length" in rows.column_names else map(len, rows["input_ids"]))
    assert total <= BATCH * sum(widths) < 1.05 * total  # in random order: 1.35 times
    rises = sum(after > before for before, after in itertools.pairwise(widths))
    assert len(widths) / 4 < rises < 3 * len(widths) / 4, "the batches are in order of length"


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_every_row_comes_once_and_batches_are_of_like_length(lengths: list[int], batch_size: int, seed: int) -> None:
    sampler = LikeLengths(lengths, batch_size, seed)
    rows = list(sampler)
    assert sorted(rows) == list(range(len(lengths))) and len(sampler) == len(lengths)
    whole = len(rows) // batch_size
    if whole <= POOL:  # one pool: in order of length, no batch reaches into another
        spans = [[lengths[row] for row in rows[at * batch_size : (at + 1) * batch_size]] for at in range(whole)]
        ordered = sorted(spans, key=lambda span: (min(span), max(span)))
        assert all(max(low) <= min(high) for low, high in itertools.pairwise(ordered))


def test_each_pass_has_its_own_order_and_a_resumed_one_the_same_again() -> None:
    first, second = LikeLengths(range(100), 4, 0), LikeLengths(range(100), 4, 0)
    assert list(first) == list(second) == list(first)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(first) != list(LikeLengths(range(100), 4, 1))
    first.set_epoch(1)
    assert list(first) == list(second)


def test_without_the_setting_the_order_is_transformers_own(policy_folder: Path, tmp_path: Path) -> None:
    trainer = reward(str(policy_folder), tmp_path)
    trainer.args.train_sampling_strategy = "random"
    assert not isinstance(trainer._get_train_sampler(), LikeLengths)
