"""Judges by likelihood: hand-summed log-likelihoods of the model's own logits."""

from pathlib import Path

import pytest

from rlhf.compare.likelihood_judges import is_likelihood_judge, likelihood_judge
from rlhf.errors import UserError
from rlhf.implicit import load_implicit_reward
from tests.implicit_cases import PROMPTS, REPLIES, dpo_run, logps_by_hand
from tests.tiny import tiny_policy


def test_the_mean_log_likelihood_of_a_token(tmp_path: Path) -> None:
    model = tiny_policy(tmp_path / "model")
    each = [logps_by_hand(model, reply) for reply in REPLIES]
    assert [len(row) for row in each][-1] == 1  # an empty reply is its end
    found = likelihood_judge(f"likelihood:{model}", batch_size=2)(PROMPTS, REPLIES)
    assert found == pytest.approx([sum(row) / len(row) for row in each], abs=1e-4)


def test_the_reward_that_a_dpo_run_has_learned(tmp_path: Path) -> None:
    """As rlhf.implicit has it, which tests/test_implicit.py holds."""
    tiny_policy(tmp_path / "sft")
    run = str(dpo_run(tmp_path))
    assert likelihood_judge(f"implicit:{run}")(PROMPTS, REPLIES) == load_implicit_reward(run)(PROMPTS, REPLIES)


def test_a_prompt_that_does_not_fit(tmp_path: Path) -> None:
    judge = likelihood_judge(f"likelihood:{tiny_policy(tmp_path / 'model', max_length=1)}")
    with pytest.raises(UserError, match="max_length 1 is too short for any prompt; raise it"):
        judge(PROMPTS[:1], ["Thank you, that is very kind."])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("likelihood:m", True),
        ("implicit:runs/dpo", True),
        ("likelihood:", False),
        ("module:function", False),
        ("run", False),
    ],
)
def test_which_names_are_these_judges(place: str, expected: bool) -> None:
    assert is_likelihood_judge(place) == expected
