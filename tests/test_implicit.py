"""Implicit rewards: by hand from the models' own logits; learned, judged and used as any reward; what is none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.implicit import ImplicitReward, is_implicit, load_implicit_reward
from rlhf.models import load_causal, load_tokenizer
from rlhf.ppo.build import build_models
from rlhf.ppo.config import PPOConfig
from rlhf.scoring import load_reward_model
from tests import stages
from tests.implicit_cases import PROMPTS, REPLIES, dpo_run, logps_by_hand
from tests.reward_cases import ask
from tests.tiny import tiny_policy


def test_the_reward_that_a_dpo_run_has_learned(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    after = dpo_run(tmp_path)
    expected = [0.25 * (sum(logps_by_hand(after, reply)) - sum(logps_by_hand(before, reply))) for reply in REPLIES]
    assert load_implicit_reward(str(after), batch_size=2)(PROMPTS, REPLIES) == pytest.approx(expected, abs=1e-4)


def test_a_start_that_moved_with_its_run(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    record = {"id": "sft-1", "stage": "sft", "parents": [], "config": {}, "data_sha256": {}, "git_sha": None}
    (before / "run.json").write_text(json.dumps(record | {"versions": {}}))
    config = {"beta": 0.25, "model_name_or_path": "/elsewhere/sft"}
    after = dpo_run(tmp_path, parents=["sft-1"], config=config)
    assert load_implicit_reward(str(after))(PROMPTS[:1], ["Yes"])[0] != 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stage": "sft"},
            "is a run of sft; implicit rewards are those of rlhf dpo, and of rlhf reward --reward_kind",
        ),
        ({"stage": "reward"}, "is a reward run whose score is a head's; implicit rewards are those of rlhf dpo"),
        ({"config": {"beta": 0.1}}, "holds no beta or no model_name_or_path; give a run that has both"),
    ],
)
def test_what_is_nodpo_run(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_implicit_reward(str(dpo_run(tmp_path, **changes)))


def test_a_model_from_elsewhere_has_no_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder; implicit rewards are those of rlhf dpo"):
        load_implicit_reward(str(tiny_policy(tmp_path / "model")))


def test_a_start_with_another_tokenizer(tmp_path: Path) -> None:
    before = tiny_policy(tmp_path / "sft")
    tokens = json.loads((before / "tokenizer.json").read_text())
    tokens["added_tokens"].append(tokens["added_tokens"][-1] | {"id": 999, "content": "<|more|>"})
    (before / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=r"has not the tokenizer of its start, .*sft; give the start that it had"):
        load_implicit_reward(str(dpo_run(tmp_path)))


# ---- A reward run of this kind


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("start") / "sft")


def _reward(place: Path, policy: Path, **values: Any) -> Any:
    return stages.reward(place, policy, **({"reward_kind": "implicit"} | values))


def test_it_learns_and_reports_as_the_other_kind(tmp_path: Path, policy: Path) -> None:
    run = _reward(tmp_path, policy, num_train_epochs=4, learning_rate=3e-3, beta=0.25)
    assert run.metrics["accuracy"]["mean"] == 1.0
    assert run.metrics["longer_wins"]["mean"] == 1.0
    assert run.metrics["margin"] > 0
    reward = str(tmp_path / "reward")
    expected = [
        0.25 * (sum(logps_by_hand(tmp_path / "reward", reply)) - sum(logps_by_hand(policy, reply))) for reply in REPLIES
    ]
    found = load_reward_model(reward)
    assert isinstance(found, ImplicitReward)
    assert found(PROMPTS, REPLIES) == pytest.approx(expected, abs=1e-4)


def test_the_loss_is_that_of_a_comparison_of_rewards(tmp_path: Path, policy: Path) -> None:
    """Before anything is learned all rewards are 0, so that each pair is a coin toss: log 2."""
    _reward(tmp_path, policy, max_steps=1, learning_rate=0.0)
    rows = [json.loads(line) for line in (tmp_path / "reward/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert load_reward_model(str(tmp_path / "reward"))(PROMPTS, REPLIES) == pytest.approx([0, 0, 0], abs=1e-5)


def test_an_adapter_is_beside_its_base(tmp_path: Path, policy: Path) -> None:
    run = _reward(tmp_path, policy, use_peft=True, lora_r=4, max_steps=3, learning_rate=1e-2)
    assert run.config["lora_task_type"] == "CAUSAL_LM"
    assert (tmp_path / "reward/adapter_config.json").is_file()
    scores = load_reward_model(str(tmp_path / "reward"))(PROMPTS, REPLIES)
    assert max(map(abs, scores)) > 1e-3


def test_ppo_is_paid_by_it_and_does_not_take_it_for_a_value_model(tmp_path: Path, policy: Path) -> None:
    _reward(tmp_path, policy, max_steps=3, learning_rate=1e-2)
    path = str(tmp_path / "reward")
    assert is_implicit(path)
    scores = ask(path)[0]
    assert len(scores) == 3
    assert max(map(abs, scores)) > 1e-3
    args = PPOConfig(output_dir=str(tmp_path / "ppo"), use_cpu=True, report_to="none")
    networks, _ = build_models(load_causal(str(policy)), load_tokenizer(str(policy)), args, [path])
    head = dict(networks.value_model.named_parameters())["score.weight"]
    assert head.abs().max() == 0  # a new head on the policy's trunk, not a random one on the reward's


def test_it_resumes_from_its_checkpoint(tmp_path: Path, policy: Path) -> None:
    whole = _reward(tmp_path, policy, max_steps=4)
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "output_dir": tmp_path / "cut"}
    _reward(tmp_path, policy, max_steps=4, **settings)
    record = json.loads((tmp_path / "cut/run.json").read_text())
    (tmp_path / "cut/run.json").write_text(json.dumps(record | {"finished": False}))
    shutil.rmtree(tmp_path / "cut/checkpoint-4")
    again = _reward(tmp_path, policy, max_steps=4, resume=True, **settings)
    assert again.metrics["accuracy"] == whole.metrics["accuracy"]
    assert again.metrics["margin"] == pytest.approx(whole.metrics["margin"], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reward_kind": "head"}, "reward_kind: `head` is neither score nor implicit"),
        ({"use_margin": True}, "use_margin: is for scores of a head; leave it out, or the --reward_kind implicit"),
        ({"beta": 0.0}, "beta: 0.0 is not above 0"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path, policy: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        _reward(tmp_path, policy, **values)
    assert not (tmp_path / "reward").exists()
