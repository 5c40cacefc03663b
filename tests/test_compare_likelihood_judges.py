"""Judges by likelihood: hand-summed log-likelihoods of the model's own logits, and what is no DPO run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.compare.likelihood_judges import implicit_reward, is_likelihood_judge, likelihood_judge
from rlhf.errors import UserError
from rlhf.models import load_policy
from tests.tiny import tiny_policy

PROMPTS = [[{"role": "user", "content": "How many shoes?"}]] * 3
REPLIES = ["Thank you.", "You can return them within thirty days.", ""]


def _by_hand(folder: Path, reply: str) -> list[float]:
    """The log-likelihood of each token of the reply and its end, one softmax after another."""
    policy = load_policy(str(folder))
    chat: Any = policy.tokenizer.apply_chat_template(PROMPTS[0], tokenize=False, add_generation_prompt=True)
    ids = policy.tokenizer(chat, add_special_tokens=False)["input_ids"]
    found = []
    for token in [*policy.tokenizer(reply, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]:
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[0, -1].double()
        found.append(float(torch.log_softmax(logits, -1)[token]))
        ids = [*ids, token]
    return found


def _dpo_run(place: Path, **changes: Any) -> Path:
    """A folder as `rlhf dpo` leaves it."""
    folder = tiny_policy(place / "dpo", seed=1)
    config = {"beta": 0.25, "model_name_or_path": str(place / "sft")}
    record = {"id": "dpo-1", "stage": "dpo", "parents": [], "config": config, "data_sha256": {}, "git_sha": None}
    (folder / "run.json").write_text(json.dumps(record | {"versions": {}} | changes))
    return folder


def test_the_mean_log_likelihood_of_a_token(tmp_path: Path) -> None:
    model = tiny_policy(tmp_path / "model")
    each = [_by_hand(model, reply) for reply in REPLIES]
    assert [len(row) for row in each][-1] == 1  # an empty reply is its end
    found = likelihood_judge(f"likelihood:{model}", batch_size=2)(PROMPTS, REPLIES)
    assert found == pytest.approx([sum(row) / len(row) for row in each], abs=1e-4)


def test_the_reward_that_a_dpo_run_has_learned(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    after = _dpo_run(tmp_path)
    expected = [0.25 * (sum(_by_hand(after, reply)) - sum(_by_hand(before, reply))) for reply in REPLIES]
    assert likelihood_judge(f"implicit:{after}")(PROMPTS, REPLIES) == pytest.approx(expected, abs=1e-4)


def test_a_start_that_moved_with_its_run(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    record = {"id": "sft-1", "stage": "sft", "parents": [], "config": {}, "data_sha256": {}, "git_sha": None}
    (before / "run.json").write_text(json.dumps(record | {"versions": {}}))
    config = {"beta": 0.25, "model_name_or_path": "/elsewhere/sft"}
    after = _dpo_run(tmp_path, parents=["sft-1"], config=config)
    assert implicit_reward(str(after))(PROMPTS[:1], ["Yes"])[0] != 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "sft"}, "is a run of sft; implicit: takes the folder of a run of rlhf dpo"),
        ({"config": {"beta": 0.1}}, "holds no beta or no model_name_or_path; give a run that has both"),
    ],
)
def test_what_is_no_dpo_run(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        implicit_reward(str(_dpo_run(tmp_path, **changes)))


def test_a_model_from_elsewhere_has_no_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder; implicit: takes the folder of a run of rlhf dpo"):
        implicit_reward(str(tiny_policy(tmp_path / "model")))


def test_a_start_with_another_tokenizer(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    tokens = json.loads((before / "tokenizer.json").read_text())
    tokens["added_tokens"].append(tokens["added_tokens"][-1] | {"id": 999, "content": "<|more|>"})
    (before / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match="have different tokenizers; give the start that it had"):
        implicit_reward(str(_dpo_run(tmp_path)))


def test_a_prompt_that_does_not_fit(tmp_path: Path) -> None:
    judge = likelihood_judge(f"likelihood:{tiny_policy(tmp_path / 'model', max_length=1)}")
    with pytest.raises(UserError, match="max_length 1 is too short for any prompt; leave it out"):
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
