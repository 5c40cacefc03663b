"""pretrain: tokenizer and model from scratch, a plain checkpoint that later stages load."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.models import load_policy
from rlhf.records import Text, write_jsonl
from tests import stages


def _pretrain(tmp_path: Path, **values: Any) -> Any:
    write_jsonl(tmp_path / "text.jsonl", [Text(f"the cat number {n} sat on the mat and slept") for n in range(64)])
    shape = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "context": 64}
    settings = {**stages.TRAINING, **shape, "max_length": 64, "save_strategy": "no", "learning_rate": 1e-2}
    return stages.run(
        "pretrain", **{**settings, "text": tmp_path / "text.jsonl", "output_dir": tmp_path / "r", **values}
    )


@pytest.mark.parametrize("packing", [{}, {"packing": True, "packing_strategy": "wrapped"}])
def test_it_learns_from_scratch(tmp_path: Path, packing: dict[str, Any]) -> None:
    run = _pretrain(tmp_path, num_train_epochs=4, **packing)
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "r" / "metrics.jsonl").open()) if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    policy = load_policy(str(tmp_path / "r"))
    assert policy.max_length == 64
    assert run.metrics["num_parameters"] == sum(p.numel() for p in policy.model.parameters())


def test_every_document_ends_with_the_end_of_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learned it stops by itself."""
    import rlhf.pretrain

    seen: list[Any] = []

    class Spy(rlhf.pretrain.SFTTrainer):
        def __init__(self, **kwargs: Any) -> None:
            seen.extend(kwargs["train_dataset"]["input_ids"])
            super().__init__(**kwargs)

    monkeypatch.setattr(rlhf.pretrain, "SFTTrainer", Spy)
    _pretrain(tmp_path, max_steps=1)
    eos = load_policy(str(tmp_path / "r")).tokenizer.eos_token_id
    assert len(seen) == 64
    assert all(ids[-1] == eos and eos not in ids[:-1] for ids in seen)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide hidden_size 32"),
        ({"max_length": 128}, "max_length: 128 is over --context 64"),
        ({"text": "/nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _pretrain(tmp_path, **values)
    assert not (tmp_path / "r").exists()
