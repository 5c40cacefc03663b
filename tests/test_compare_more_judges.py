"""Further judges of a comparison: functions, reward models and the mean of several, by a name of their own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.loop import judges
from rlhf.models import load_classifier, load_tokenizer
from tests.tiny import tiny_policy

PROMPTS = [[{"role": "user", "content": "How many?"}]] * 2


def _reward_model(folder: Path, seed: int) -> str:
    """A policy's trunk with a random head."""
    policy = str(tiny_policy(folder / f"policy-{seed}", seed=seed))
    tokenizer = load_tokenizer(policy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        load_classifier(policy, tokenizer).save_pretrained(folder / f"reward-{seed}")
    tokenizer.save_pretrained(folder / f"reward-{seed}")
    return str(folder / f"reward-{seed}")


def _settings(*given: str) -> Any:
    return SimpleNamespace(reward_model=None, gold=None, batch_size=4, judges=list(given))


def test_a_check_by_name() -> None:
    found = judges(_settings("right=rlhf.compare.checks:number_matches"))
    assert found["right"](PROMPTS, ["It is 3.", "It is 4."], answer=["3", "3"]) == [1.0, 0.0]


def test_the_mean_of_two_reward_models(tmp_path: Path) -> None:
    paths = [_reward_model(tmp_path, seed) for seed in (0, 1)]
    found = judges(_settings(f"one={paths[0]}", f"other={paths[1]}", f"both={','.join(paths)}"))
    one, other, both = (found[name](PROMPTS, ["Yes", "No, not that"]) for name in ("one", "other", "both"))
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert one != other


def test_a_likelihood(tmp_path: Path) -> None:
    found = judges(_settings(f"plain=likelihood:{tiny_policy(tmp_path / 'policy')}"))
    nats = found["plain"](PROMPTS, ["Yes", "No, not that"])
    assert all(value < 0 for value in nats) and nats[0] != nats[1]


@pytest.mark.parametrize("entry", ["rlhf.compare.checks:number_matches", "=x", "x=", "people=x"])
def test_a_judge_without_a_name(entry: str) -> None:
    with pytest.raises(UserError, match=r"is no name=module:function or name=RUN with a name of its own"):
        judges(_settings(entry))
