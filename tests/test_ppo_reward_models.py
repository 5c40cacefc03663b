"""Classifiers as reward functions: a folder, a loaded model, an adapter; and what cannot score."""

import functools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf import packing
from rlhf.errors import UserError
from rlhf.layers import trunk
from rlhf.models import load_causal, load_classifier, load_tokenizer
from rlhf.ppo.endpoint import RewardError
from rlhf.ppo.rewards import load_rewards, unwrapped
from rlhf.ppo.scores import score
from rlhf.scoring import RewardModel, load_reward_model, load_score_model
from tests.reward_cases import COMPLETIONS, PROMPTS, TEXTS, ask


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model with random weights, saved as a reward run saves it."""
    folder = tmp_path_factory.mktemp("rewards") / "tiny"
    tokenizer = load_tokenizer(str(policy_folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = load_classifier(str(policy_folder), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_scores_as_the_reward_model_alone(reward_folder: Path) -> None:
    """By hand: the whole conversation in ChatML, the head's output at the end of the reply's turn."""
    tokenizer = load_tokenizer(str(reward_folder))
    model = load_classifier(str(reward_folder), tokenizer).eval()
    expected = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        whole = f"<|im_start|>user\n{prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected.append(model.score(model.model(ids).last_hidden_state[0, -1]).item())
    assert len({round(value, 4) for value in expected}) == 3
    # Columns are of no interest to a classifier, also one that is called as its own argument is.
    assert ask(str(reward_folder), columns={"responses": [1, 2, 3]})[0] == pytest.approx(expected, abs=1e-5)
    (reward,) = load_rewards(reward_folder, batch_size=2)
    assert reward.name == "tiny"
    plain = score([reward], [prompt[0]["content"] for prompt in PROMPTS], TEXTS, {}, 60)
    assert plain[0] == pytest.approx(expected, abs=1e-5)


def test_a_loaded_model_scores_as_its_folder_and_leaves_the_tokenizer_as_it_was(reward_folder: Path) -> None:
    tokenizer = load_tokenizer(str(reward_folder))
    model = load_classifier(str(reward_folder), tokenizer)
    # As a policy has them, whose tokenizer it may be: with pad for eos the end of turn would not be scored.
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    model.config.pad_token_id = tokenizer.eos_token_id
    (reward,) = load_rewards((model, tokenizer))
    assert reward.name == "tiny"
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", tokenizer.eos_token)
    scores = score([reward], PROMPTS, COMPLETIONS, {}, 60)[0]
    assert scores == pytest.approx(load_reward_model(str(reward_folder))(PROMPTS, TEXTS), abs=1e-5)


def test_a_model_scores_in_the_calling_thread_however_long_it_takes(reward_folder: Path) -> None:
    """A second thread's operations on a CPU would share the cores with the first one's (docs/decisions.md)."""
    (reward,) = load_rewards([str(reward_folder)])
    layers, seen = trunk(unwrapped(reward.function).model), []
    layers.register_forward_pre_hook(lambda *_: seen.append((threading.current_thread(), torch.is_grad_enabled())))
    expected = score([reward], PROMPTS, COMPLETIONS, {}, 60.0)
    assert score([reward], PROMPTS, COMPLETIONS, {}, 1e-9) == expected
    assert set(seen) == {(threading.current_thread(), False)}


def test_a_users_function_around_a_model_keeps_its_time_limit(reward_folder: Path) -> None:
    """What it does beside the model may hang."""
    never = threading.Event()

    @functools.wraps(load_reward_model(str(reward_folder)), updated=())
    def patient(**_: object) -> list[float]:
        never.wait()
        return [0.0] * len(TEXTS)

    with pytest.raises(RewardError, match=r"no answer within 0\.05 seconds"):
        ask(patient, timeout=0.05)
    never.set()


def test_a_model_that_fails_is_named_with_the_line_and_ctrl_c_is_no_failure(reward_folder: Path) -> None:
    (reward,) = load_rewards([str(reward_folder)])
    layers = trunk(unwrapped(reward.function).model)

    def fail_with(error: BaseException) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise error

        return fail

    hook = layers.register_forward_pre_hook(fail_with(RuntimeError("no room")))
    place = rf"^reward `{reward.name}`: RuntimeError: no room \(.*:\d+\); mend it there$"
    with pytest.raises(RewardError, match=place):
        score([reward], PROMPTS, COMPLETIONS, {}, 60.0)
    hook.remove()
    layers.register_forward_pre_hook(fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        score([reward], PROMPTS, COMPLETIONS, {}, 60.0)


def test_an_adapter_of_a_classifier_is_a_reward_model(policy_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(str(policy_folder))
    model = get_peft_model(load_classifier(str(policy_folder), tokenizer), LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(str(tmp_path / "adapter"))
    tokenizer.save_pretrained(tmp_path / "adapter")
    expected = load_rewards((model, tokenizer))
    loaded = load_rewards(str(tmp_path / "adapter"))
    there, here = (score(each, PROMPTS, COMPLETIONS, {}, 60)[0] for each in (expected, loaded))
    assert here == pytest.approx(there, abs=1e-5)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    headless = {**settings, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(headless))
    with pytest.raises(UserError, match=r"adapter: is a language model without a score"):
        load_rewards(str(tmp_path / "adapter"))


def test_what_cannot_score_is_refused(policy_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(policy_folder))
    causal = load_causal(str(policy_folder))
    model = load_classifier(str(reward_folder), load_tokenizer(str(reward_folder)))
    bare = load_tokenizer(str(policy_folder))
    bare.chat_template = None
    shutil.copytree(reward_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template*"))
    settings = json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(settings))
    cases = [
        ([], "reward_funcs: is empty; give at least one"),
        ([7], "reward_funcs: a int cannot score; give a callable, a URL, the folder"),
        ([(model, tokenizer, 1)], "reward_funcs: a tuple cannot score"),
        ([(tokenizer, model)], "LlamaForSequenceClassification) cannot score; give `(model, tokenizer)`"),
        ([model], "reward_funcs: tiny has no tokenizer; give `(model, tokenizer)`"),
        ([(causal, tokenizer)], "reward_funcs: LlamaForCausalLM has 2 labels; give a sequence classifier with one"),
        ([(model, bare)], "tokenizer of LlamaForSequenceClassification has no chat template; give it one: set"),
        ([tmp_path / "bare"], "bare: the reward model's tokenizer has no chat template; give it one: set"),
        ([str(policy_folder)], "is a language model without a score; give the folder of a `rlhf reward` run"),
        ([str(tmp_path / "none")], "none: no such model folder; check the path, or give a Hub id"),
        (["http://"], "http://: is a URL without a host; give http://host:port/path"),
        (["http://host:port"], "http://host:port: is not a URL (Invalid port: 'port'); give http://host:port/path"),
    ]
    for item, message in cases:
        with pytest.raises(UserError) as error:
            load_rewards(item)
        assert message in str(error.value)


def rows_of_ids(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 40, (9,), generator=generator).tolist()
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("limit", [10, 64, 1024])
def test_on_a_cpu_rows_are_scored_end_to_end(reward_folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(packing, "CPU_TOKENS", limit)
    reward, rows, seen = load_score_model(str(reward_folder)), rows_of_ids(), list[list[int]]()
    wanted = [reward.model(torch.tensor([row])).logits.item() for row in rows]
    reward.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([kwargs["input_ids"].numel(), kwargs["attention_mask"].numel()]),
        with_kwargs=True,
    )
    assert reward.score_ids(rows) == pytest.approx(wanted, abs=1e-5)
    assert sum(tokens for tokens, _ in seen) == sum(map(len, rows))  # no padding
    assert all(tokens <= limit or num_rows == 1 for tokens, num_rows in seen)
    if limit == 1024:
        assert len(seen) == 1
        reward.batch_size = 2
        reward.score_ids(rows)
        assert [num_rows for _, num_rows in seen[1:]] == [2, 2, 2, 2, 1]


def test_in_bf16_a_score_is_no_coarser_than_its_layers(reward_folder: Path) -> None:
    (reward,) = load_rewards(str(reward_folder), bf16=True)
    model, rows = unwrapped(reward.function), rows_of_ids()
    assert isinstance(model, RewardModel)
    found, exact = model.score_ids(rows), load_score_model(str(reward_folder)).score_ids(rows)
    assert found != exact and found == pytest.approx(exact, abs=0.05)
    assert found != torch.tensor(found).bfloat16().tolist()
    model.packs = False  # as on a GPU
    assert model.score_ids(rows) == pytest.approx(exact, abs=0.05)
    model.bf16 = False
    assert model.score_ids(rows) == pytest.approx(exact, abs=1e-5)
