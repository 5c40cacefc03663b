"""reward: learns, scores the end of the reply, and is judged beside honest baselines."""

from pathlib import Path

import pytest
import torch

from reward_model.train import evaluate
from rlhf.errors import UserError
from rlhf.records import Preference, write_jsonl
from rlhf.scoring import load_reward_model
from tests import stages


def test_it_learns_and_reports_beside_the_baseline(tmp_path: Path, policy_folder: Path) -> None:
    run = stages.reward(tmp_path, policy_folder, num_train_epochs=4, learning_rate=3e-3)
    assert run.metrics["accuracy"]["mean"] == 1.0
    assert run.metrics["accuracy"]["n"] == 8
    # By hand: the good reply has 7 words and more tokens than "What", "What what" or "What what what".
    assert run.metrics["longer_wins"]["mean"] == 1.0
    assert run.metrics["human_ceiling"] is None  # one vote a pair says nothing of agreement


def test_the_record_names_the_template_it_was_given(tmp_path: Path, policy_folder: Path) -> None:
    """Or a recipe that runs again would take the finished stage for one of another template."""
    template = "configs/templates/user_bot.jinja"
    run = stages.reward(tmp_path, policy_folder, max_steps=1, chat_template_path=template)
    assert run.config["chat_template_path"] == template


def test_scores_do_not_depend_on_the_batch(tmp_path: Path, policy_folder: Path) -> None:
    stages.reward(tmp_path, policy_folder, eval_preferences=None)
    model = load_reward_model(str(tmp_path / "reward"), batch_size=3)
    prompt = [{"role": "user", "content": "Hello"}]
    responses = ["Thank you", "What what what what", "a", "Thank you, that is very kind. " * 5]
    together = model([prompt] * 4, responses)
    alone = [model([prompt], [response])[0] for response in responses]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_score_is_read_at_the_end_of_turn_even_where_pad_was_eos(tmp_path: Path, policy_folder: Path) -> None:
    """A checkpoint whose pad is its eos: the reward model must still see whether a reply ended."""
    from transformers import AutoTokenizer

    from rlhf.models import load_causal, load_classifier, load_tokenizer

    awkward = tmp_path / "awkward"
    load_causal(str(policy_folder)).save_pretrained(awkward)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(awkward)

    tokenizer = load_tokenizer(str(awkward))
    torch.manual_seed(0)
    model = load_classifier(str(awkward), tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.config.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("Thank you<|im_end|>", add_special_tokens=False)["input_ids"]
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    from rlhf.scoring import RewardModel

    score = RewardModel(model, tokenizer, 64).score_ids([ids, ids * 3])[0]
    assert score == pytest.approx(model.score(hidden).item(), abs=1e-5)


def test_ceiling_and_ties_count(tmp_path: Path, policy_folder: Path) -> None:
    """Two of three for the winner: left out one by one, the two agree half (others split), the third never."""
    stages.reward(tmp_path, policy_folder, eval_preferences=None)
    prompt = [{"role": "user", "content": "Hello"}]
    same = [{"role": "assistant", "content": "Yes"}]
    rows = [Preference(f"f{n}", f"g{n}", prompt, same, same, votes={"for": 2, "tie": 0, "against": 1}) for n in (1, 2)]
    training = stages.config("reward", **stages.TRAINING, preferences="x", output_dir="y")[2]
    metrics = evaluate(str(tmp_path / "reward"), rows, [], training)
    assert metrics["accuracy"]["mean"] == 0.5  # the same text scores the same, which counts half
    assert metrics["longer_wins"]["mean"] == 0.5
    assert metrics["human_ceiling"]["mean"] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_a_margin_is_used_only_where_asked(tmp_path: Path, policy_folder: Path) -> None:
    from reward_model.train import tokenize
    from rlhf.data.encode import Encoder
    from rlhf.models import load_tokenizer
    from rlhf.records import read_jsonl

    rows = read_jsonl(stages.preferences(tmp_path / "p.jsonl", 2), Preference)
    encoder = Encoder(load_tokenizer(str(policy_folder)))
    for use_margin in (False, True):
        data = stages.config("reward", preferences="x", output_dir="y", use_margin=use_margin)[0]
        assert ("margin" in tokenize(rows, encoder, 64, data)[0].column_names) is use_margin


def test_bad_input_writes_nothing(tmp_path: Path, policy_folder: Path) -> None:
    same = stages.preferences(tmp_path / "same.jsonl", 4)
    with pytest.raises(UserError, match="a prompt in two splits"):
        stages.reward(tmp_path, policy_folder, preferences=same, eval_preferences=same)
    (tmp_path / "broken.jsonl").write_text('{"id": 1')
    with pytest.raises(UserError, match=r"broken\.jsonl, line 1: broken JSON"):
        stages.reward(tmp_path, policy_folder, preferences=tmp_path / "broken.jsonl")
    write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"empty\.jsonl: is empty"):
        stages.reward(tmp_path, policy_folder, preferences=tmp_path / "empty.jsonl")
    assert not (tmp_path / "reward").exists()


def test_an_adapter_needs_no_other_flag(tmp_path: Path, policy_folder: Path) -> None:
    """peft's default task type, generation, would find no head; what is saved scores by itself."""
    run = stages.reward(tmp_path, policy_folder, use_peft=True, lora_r=4, max_steps=2)
    assert run.config["lora_task_type"] == "SEQ_CLS"
    assert 0 <= run.metrics["accuracy"]["mean"] <= 1
