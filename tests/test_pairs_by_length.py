"""`train_sampling_strategy: group_by_length` for pairs, which have no `input_ids` that transformers could measure."""

from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, RewardConfig

from reward_model.train import PairTrainer, RewardData
from reward_model.train import tokenize as tokenize_scored
from rlhf.data.encode import Encoder
from rlhf.dpo import TokenDPOTrainer
from rlhf.dpo import tokenize as tokenize_pairs
from rlhf.models import load_causal, load_classifier, load_tokenizer
from rlhf.records import Preference

# Which side is the longer one changes from pair to pair.
WORDS = [(1, 9), (30, 2), (3, 1), (2, 28), (8, 9), (31, 30), (2, 2), (4, 40)] * 40
BATCH = 2


def pairs() -> list[Preference]:
    """A pair of replies of so many words, for each of WORDS."""
    prompt = [{"role": "user", "content": "help me"}]

    def reply(number: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": "again " * number}]

    return [Preference(f"p{i}", f"g{i}", prompt, reply(a), reply(b)) for i, (a, b) in enumerate(WORDS)]


def settings(folder: Path) -> dict[str, Any]:
    """What both trainers get."""
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "group_by_length",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
    }


def dpo_trainer(policy: str, folder: Path) -> Any:
    tokenizer = load_tokenizer(policy)
    rows, _ = tokenize_pairs(pairs(), Encoder(tokenizer), 512, "pairs.jsonl")
    args = DPOConfig(**settings(folder))
    return TokenDPOTrainer(
        model=load_causal(policy, "float32"), args=args, train_dataset=rows, processing_class=tokenizer
    )


def reward_trainer(policy: str, folder: Path) -> Any:
    tokenizer = load_tokenizer(policy)
    rows, _ = tokenize_scored(pairs(), Encoder(tokenizer), 512, RewardData("pairs.jsonl"))
    args = RewardConfig(**settings(folder))
    model = load_classifier(policy, tokenizer, "float32")
    return PairTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("make", [dpo_trainer, reward_trainer])
def test_pairs_of_like_length_share_a_batch(make: Any, policy_folder: Path, tmp_path: Path) -> None:
    trainer = make(str(policy_folder), tmp_path)
    widths = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
    lengths = trainer.train_dataset["length"]
    assert max(lengths) == widths[0], "the longest first, so that memory runs out at once or never"
    assert sum(lengths) <= BATCH * sum(widths) < 1.05 * sum(lengths)  # in random order: 1.35 times
