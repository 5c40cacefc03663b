"""PPOTrainer: starts where it should, learns, does not depend on how the work is cut."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.models import load_causal, load_policy
from rlhf.ppo import PPOConfig, PPOTrainer, build
from rlhf.ppo.rollout import Episode
from rlhf.ppo.state import PPOState
from tests import ppo_cases as cases

KINDS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"value_model_kind": "shared"},
    "separate, lora": {"lora": True},
    "shared, lora": {"lora": True, "value_model_kind": "shared"},
    "adapter": {"lora": True, "value_model_kind": "adapter"},
    "offload": {"reference": "offload"},
}


def _values(kind: str) -> dict[str, Any]:
    values = dict(KINDS[kind])
    return {"peft_config": cases.lora(), **values} if values.pop("lora", False) else values


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_ratio_one_and_kl_zero(policy_folder: Path, tmp_path: Path, kind: str) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=2, **_values(kind))
    before = cases.weights(trainer)
    trainer.train()
    rows = cases.log(trainer)
    assert rows[0]["kl"] == 0.0  # to the bit: policy and reference go through the same operations
    assert all(row["ratio/first_deviation"] < 1e-4 for row in rows)
    assert rows[1]["kl"] != 0.0
    after = cases.weights(trainer)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"policy", "value_model" if "separate" in kind or kind == "offload" else "value_head"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_rollout_has_noted_trains_as_a_forward_pass_does(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same but for rounding, the policy's and a shared head's pass over the replies being left out."""
    ends, passes = [], []
    for old_logps in ("forward", "rollout"):
        trainer = cases.trainer(policy_folder, tmp_path / old_logps, old_logps=old_logps, **_values(kind))
        seen: list[str] = []
        weigh, forward = trainer._weigh, trainer.model.forward

        def watched(networks: Any, episodes: Any, seen: Any = seen, weigh: Any = weigh, forward: Any = forward) -> None:
            def noticed(*args: Any, part: str = "both", **values: Any) -> Any:
                seen.append(part)
                return forward(*args, part=part, **values)

            networks.forward = noticed
            weigh(networks, episodes)
            networks.forward = forward

        monkeypatch.setattr(trainer, "_weigh", watched)
        trainer.train()
        ends.append((cases.log(trainer), cases.weights(trainer)))
        passes.append(set(seen))
    assert passes == [{"both"}, set() if "shared" in kind else {"value"}]
    (rows, weights), (noted, others) = ends
    assert noted[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert all(row["ratio/first_deviation"] < 1e-4 for row in noted)
    for row, other in zip(rows, noted, strict=True):
        for key in ("loss", "score", "kl", "entropy", "explained_variance", "length"):
            assert row[key] == pytest.approx(other[key], abs=1e-3), key
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["separate", "shared", "adapter"])
def test_it_learns_a_simple_reward(policy_folder: Path, tmp_path: Path, kind: str) -> None:
    """From about one `e` in two replies to several a reply."""
    model = load_causal(str(policy_folder))
    with torch.no_grad():  # random embeddings are short: behind a frozen one LoRA could prefer no token to another
        model.get_input_embeddings().weight.mul_(10)
    values = {"max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 32, "kl_coef": 0.0}
    trainer = cases.trainer(policy_folder, tmp_path, model=model, **values, **_values(kind))
    trainer.train()
    rows = cases.log(trainer)
    assert rows[-1]["score"] > rows[0]["score"] + 1.0
    assert rows[-1]["kl"] > 0.1


def test_the_size_of_micro_batches_changes_nothing(policy_folder: Path, tmp_path: Path) -> None:
    """The loss is a mean over the minibatch's tokens, however they are cut."""
    ends = []
    for tokens in (40, 4096):
        trainer = cases.trainer(policy_folder, tmp_path / str(tokens), micro_batch_tokens=tokens, max_steps=2)
        trainer.train()
        ends.append(cases.weights(trainer))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["separate", "shared", "adapter"])
def test_neither_padding_nor_a_pass_each_changes_what_is_learned(
    policy_folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows end to end, policy and value model one after the other; and padded, both in one backward pass."""
    ends = []
    for name in ("packed", "padded"):
        if name == "padded":
            monkeypatch.setattr(build, "pack_rows", lambda model: False)
            monkeypatch.setattr(PPOTrainer, "_lanes", lambda self, model: [["both"]])
        model = load_causal(str(policy_folder))
        trainer = cases.trainer(
            policy_folder, tmp_path / name, model=model, max_steps=2, micro_batch_tokens=60, **_values(kind)
        )
        assert trainer.model.packs_rows == (name == "packed")
        trainer.train()
        passes = 2 if name == "packed" and kind != "shared" else 1
        assert sum(len(parts) for parts in trainer._lanes(trainer.model_wrapped)) == passes
        assert all(p.grad is None for p in trainer.model.parameters())  # or Trainer's own step would move them
        ends.append((cases.weights(trainer), cases.log(trainer)))
    _same_learning(*ends)


def _same_learning(one: tuple[dict[str, Any], list[Any]], other: tuple[dict[str, Any], list[Any]]) -> None:
    """Two runs' weights and logs, but for rounding."""
    for name, weight in other[0].items():
        torch.testing.assert_close(one[0][name], weight, rtol=1e-4, atol=1e-5)
    for row, same in zip(one[1], other[1], strict=True):
        for figure in ("loss", "loss/policy", "loss/value", "clip_fraction", "clip_fraction_value", "approx_kl", "kl"):
            assert row[figure] == pytest.approx(same[figure], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("old_logps", ["forward", "rollout"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_value_model_at_once_learn_the_same(
    policy_folder: Path, tmp_path: Path, two_threads: None, old_logps: str, checkpointing: bool
) -> None:
    """Twice at once, the same to the bit; and one after the other, the same but for rounding."""
    runs = []
    for name in ("at once", "again", "in turn"):
        trainer = cases.trainer(
            policy_folder,
            tmp_path / name,
            max_steps=2,
            micro_batch_tokens=60,
            old_logps=old_logps,
            gradient_checkpointing=checkpointing,
        )
        assert trainer.abreast
        trainer.abreast = name != "in turn"
        assert trainer._lanes(trainer.model) == ([["policy"], ["value"]] if trainer.abreast else [["policy", "value"]])
        trainer.train()
        assert torch.get_num_threads() == 2
        runs.append((cases.weights(trainer), cases.log(trainer)))
    at_once, again, in_turn = runs
    assert all(torch.equal(again[0][name], weight) for name, weight in at_once[0].items())
    assert [row["loss"] for row in at_once[1]] == [row["loss"] for row in again[1]]
    _same_learning(at_once, in_turn)
    if old_logps == "forward":
        assert at_once[1][0]["kl"] == 0.0
    assert at_once[1][0]["ratio/first_deviation"] < 1e-5


def test_a_weight_without_gradient_stays_at_once_too(policy_folder: Path, tmp_path: Path, two_threads: None) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=2, weight_decay=0.5)
    trainer.model.value_model.spare = torch.nn.Parameter(torch.ones(3))
    trainer.train()
    assert trainer.abreast
    assert torch.equal(trainer.model.value_model.spare, torch.ones(3))


@pytest.mark.parametrize("kind", ["shared", "adapter"])
def test_a_value_on_the_policys_trunk_trains_after_it(
    policy_folder: Path, tmp_path: Path, two_threads: None, kind: str
) -> None:
    model = load_causal(str(policy_folder))
    trainer = cases.trainer(policy_folder, tmp_path, model=model, max_steps=1, **_values(kind))
    assert not trainer.abreast
    trainer.train()


def test_a_nan_of_the_value_model_at_once_is_skipped(policy_folder: Path, tmp_path: Path, two_threads: None) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=1)
    with torch.no_grad():
        next(trainer.model.value_model.parameters()).fill_(math.nan)
    before = cases.weights(trainer)
    with pytest.raises(UserError, match="3 updates in a row held a NaN"):
        trainer.train()
    after = cases.weights(trainer)
    assert all(torch.equal(after[name], weight) for name, weight in before.items() if name.startswith("policy"))


def test_the_same_seed_gives_the_same_run_and_another_does_not(policy_folder: Path, tmp_path: Path) -> None:
    scores = []
    for number, seed in enumerate((0, 0, 1)):
        trainer = cases.trainer(policy_folder, tmp_path / str(number), seed=seed, max_steps=2)
        trainer.train()
        scores.append([(row["score"], row["loss"], row["kl"]) for row in cases.log(trainer)])
    assert scores[0] == scores[1] != scores[2]


def test_reward_functions_get_prompts_completions_and_columns(policy_folder: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], n: list[int], **columns: Any) -> list[float]:
        seen.append((prompts, completions, n, columns))
        return [0.0] * len(prompts)

    cases.trainer(policy_folder, tmp_path, reward, max_steps=1).train()
    prompts, completions, numbers, columns = seen[0]
    assert len(prompts) == len(completions) == 8
    assert [prompt[0]["content"].split()[1] for prompt in prompts] == [str(n) for n in numbers]
    assert all(completion[0]["role"] == "assistant" for completion in completions)
    assert columns == {}


def test_plain_prompts_and_ready_ids_work_too(policy_folder: Path, tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        assert all(isinstance(text, str) for text in prompts + completions)
        return [float(len(text)) for text in completions]

    for rows in ([{"prompt": f"Hello {n}"} for n in range(8)], [{"prompt_ids": [5, 6, 7 + n]} for n in range(8)]):
        trainer = cases.trainer(policy_folder, tmp_path, reward, rows=rows, max_steps=1)
        trainer.train()
        assert len(cases.log(trainer)) == 1


def test_a_long_prompt_loses_its_start_and_is_counted(policy_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "word " * 100}]} for _ in range(8)]
    trainer = cases.trainer(policy_folder, tmp_path, rows=rows, max_steps=1, max_prompt_length=20)
    trainer.train()
    assert trainer.cut().num_prompts_cut == trainer.cut().num_examples == 8


def test_several_rewards_are_weighted_and_logged_by_name(policy_folder: Path, tmp_path: Path) -> None:
    def one(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    def two(completions: list[Any], **_: Any) -> list[float]:
        return [2.0] * len(completions)

    trainer = cases.trainer(policy_folder, tmp_path, [one, two], max_steps=1, reward_weights=[1.0, 10.0])
    trainer.train()
    row = cases.log(trainer)[0]
    assert (row["score"], row["score/one"], row["score/two"]) == (21.0, 1.0, 2.0)


def test_what_a_score_is_worth() -> None:
    """Scores 1, 2, 6, the last one's reply unfinished: bias 3; the std (Bessel's) of 1, 2, 6 is sqrt(7)."""
    episodes = [
        Episode([1], [2], finished, score=score) for score, finished in ((1.0, True), (2.0, True), (6.0, False))
    ]
    plain = PPOConfig(output_dir="x", **{**cases.SETTINGS, "missing_eos_penalty": 0.5})
    assert PPOState.start(plain).pay(episodes, plain) == [-2.0, -1.0, 2.5]
    scaled = PPOConfig(output_dir="x", **{**cases.SETTINGS, "scale_scores": True, "score_clip": 1.0})
    assert PPOState.start(scaled).pay(episodes, scaled) == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 1.0 - 1.0])
    fixed = PPOConfig(output_dir="x", **{**cases.SETTINGS, "score_bias": 0.0})
    assert PPOState.start(fixed).pay(episodes, fixed) == [1.0, 2.0, 5.0]


def test_the_checkpoint_is_a_plain_folder(policy_folder: Path, tmp_path: Path) -> None:
    """transformers loads it without this project, and the value model with its own class."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    trainer = cases.trainer(policy_folder, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, trainer.model.policy.get_parameter(name))
    for name, weight in value.named_parameters():
        assert torch.equal(weight, trainer.model.value_model.get_parameter(name))
    assert not (tmp_path / "saved" / "training_args.bin").exists()


def test_a_lora_checkpoint_holds_the_policy_s_adapter_alone(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, **_values("adapter"))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    files = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*.safetensors")}
    assert files == {
        "adapter_model.safetensors",
        "value/value_head.safetensors",
        "value/value/adapter_model.safetensors",
    }
    assert load_policy(str(tmp_path / "saved")).max_length == 256


def test_in_warm_up_only_the_value_learns(policy_folder: Path, tmp_path: Path) -> None:
    for kind in ("separate", "shared"):
        trainer = cases.trainer(
            policy_folder, tmp_path / kind, value_model_kind=kind, value_warmup_steps=2, max_steps=2, weight_decay=0.0
        )
        before = cases.weights(trainer)
        trainer.train()
        moved = {
            name.split(".")[0]
            for name, weight in cases.weights(trainer).items()
            if not torch.equal(weight, before[name])
        }
        assert moved == {"value_model" if kind == "separate" else "value_head"}


def test_policy_and_value_have_learning_rates_of_their_own(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, learning_rate=1e-3, value_learning_rate=5e-3, max_steps=1)
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-3, 5e-3}
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}


def test_target_kl_ends_the_updates_of_a_round(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, target_kl=1e-6, max_steps=1, num_ppo_epochs=4)
    steps: list[int] = []
    inner = trainer._minibatch
    trainer._minibatch = lambda *args: steps.append(1) or inner(*args)  # type: ignore[method-assign]
    trainer.train()
    assert cases.log(trainer)[0]["updates_stopped"] == 1.0
    assert len(steps) == 2  # the first step meets the policy that sampled: its KL is 0


def test_evaluation_scores_held_out_prompts_the_same_each_time(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, eval_dataset=cases.prompts(5))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_kl"] == 0.0
    assert {key: first[key] for key in ("eval_score", "eval_length", "eval_eos_rate")} == {
        key: second[key] for key in ("eval_score", "eval_length", "eval_eos_rate")
    }


def test_ptx_mixes_in_the_sft_loss(policy_folder: Path, tmp_path: Path) -> None:
    """With nothing to gain from PPO, the policy learns the demonstration."""
    text = [40, 41, 42, 43, 44, 45]
    sft = [{"input_ids": text, "assistant_masks": [0, 0, 1, 1, 1, 1]}]

    def nothing(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    values = {"max_steps": 30, "learning_rate": 1e-2, "kl_coef": 0.0, "num_ppo_epochs": 1, "num_mini_batches": 1}
    trainer = cases.trainer(policy_folder, tmp_path, nothing, ptx_coef=1.0, sft_dataset=sft, **values)
    trainer.train()
    losses = [row["loss/ptx"] for row in cases.log(trainer)]
    start = load_causal(str(policy_folder))
    with torch.no_grad():
        logps = start(torch.tensor([text])).logits.log_softmax(-1)
    by_hand = -sum(logps[0, t - 1, text[t]].item() for t in range(2, 6)) / 4
    assert losses[0] == pytest.approx(by_hand, rel=1e-5)
    assert losses[-1] < 0.2 * losses[0]


def test_the_average_of_the_weights_is_what_is_saved(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, ema_decay=0.5, max_steps=1, num_ppo_epochs=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    seen = [trainer.model.policy.get_parameter(name).detach().clone()]
    inner = trainer._step

    def step(*args: Any, **kwargs: Any) -> Any:
        norm = inner(*args, **kwargs)
        seen.append(trainer.model.policy.get_parameter(name).detach().clone())
        return norm

    trainer._step = step  # type: ignore[method-assign]
    trainer.train()
    by_hand = 0.25 * seen[0] + 0.25 * seen[1] + 0.5 * seen[2]
    torch.testing.assert_close(trainer.model.policy.get_parameter(name).detach(), by_hand)


def test_the_reference_can_follow_the_policy(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, ref_ema_decay=0.9, max_steps=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    start = trainer.model.policy.get_parameter(name).detach().clone()
    trainer.train()
    now = trainer.model.policy.get_parameter(name).detach()
    torch.testing.assert_close(trainer.reference.model.get_parameter(name).detach(), 0.9 * start + 0.1 * now)


def test_bf16_keeps_float32_weights_and_a_ratio_near_one(policy_folder: Path, tmp_path: Path) -> None:
    trainer = cases.trainer(policy_folder, tmp_path, bf16=True)
    trainer.train()
    assert {weight.dtype for weight in cases.weights(trainer).values()} == {torch.float32}
    assert all(row["ratio/first_deviation"] < 0.05 for row in cases.log(trainer))


def test_gradient_checkpointing_gives_the_same_weights(policy_folder: Path, tmp_path: Path) -> None:
    ends = []
    for on in (False, True):
        trainer = cases.trainer(policy_folder, tmp_path / str(on), gradient_checkpointing=on, max_steps=1)
        trainer.train()
        ends.append(cases.weights(trainer))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name])


def test_numbers_that_are_almost_zero_are_zero_in_training_alone(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards have a thread of their own, which may be older than the training and outlives it."""
    seen: list[bool] = []

    def reward(completions: list[Any], **_: Any) -> list[float]:
        seen.append(cases.denormals_are_zero())
        return [0.0] * len(completions)

    trainer = cases.trainer(policy_folder, tmp_path, reward, max_steps=1)
    inner = trainer.advantages

    def advantages(episodes: Any) -> Any:
        seen.append(cases.denormals_are_zero())
        return inner(episodes)

    monkeypatch.setattr(trainer, "advantages", advantages)
    trainer.look(cases.prompts(2))
    trainer.train()
    trainer.look(cases.prompts(2))
    assert seen == [False, True, True, False]
    assert not cases.denormals_are_zero()
