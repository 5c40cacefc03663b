"""sft: learns, saves a plain checkpoint, trains on replies only, resumes, and refuses bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf import training
from rlhf.errors import UserError
from tests import ppo_cases as cases
from tests import stages
from tests.tiny import tiny_policy


def _sft(tmp_path: Path, policy: Path, **values: Any) -> Any:
    data = stages.demonstrations(tmp_path / "demonstrations.jsonl", 16)
    settings = {**stages.TRAINING, "assistant_only_loss": True, "save_strategy": "no", **values}
    return stages.run("sft", demonstrations=data, model_name_or_path=policy, **settings)


def test_it_learns_and_saves_a_plain_checkpoint(tmp_path: Path, policy_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    run = _sft(tmp_path, policy_folder, output_dir=out, num_train_epochs=8, learning_rate=1e-2)
    losses = [row["loss"] for row in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert run.metrics["num_demonstrations"] == 16
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 320
    assert not list(out.glob("*.bin"))  # nothing that needs unpickling


def test_numbers_that_are_almost_zero_are_zero_in_training_alone(
    tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's averages of embeddings that were seen once are among them, and slow a CPU down by much."""
    seen: list[bool] = []

    class Looks(training.RunLog):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append(cases.denormals_are_zero())

    monkeypatch.setattr(training, "RunLog", Looks)
    _sft(tmp_path, policy_folder, output_dir=tmp_path / "run", max_steps=2)
    assert seen == [True, True]
    assert not cases.denormals_are_zero()


def test_only_the_reply_is_trained_on(tmp_path: Path, policy_folder: Path) -> None:
    """The labels that reach the model: the reply and its end of turn, nothing else, and never pad."""
    from trl import SFTTrainer

    from rlhf.data.encode import Encoder
    from rlhf.models import load_causal, load_tokenizer
    from rlhf.records import Demonstration, read_jsonl
    from rlhf.sft import tokenize

    config = stages.config("sft", **stages.TRAINING, assistant_only_loss=True, demonstrations="x", output_dir=tmp_path)
    rows = read_jsonl(stages.demonstrations(tmp_path / "d.jsonl"), Demonstration)
    tokenizer = load_tokenizer(str(policy_folder))
    tokenizer.pad_token = tokenizer.eos_token  # as awkward as real checkpoints are
    dataset, _ = tokenize(rows, Encoder(tokenizer), config[2], "d.jsonl")
    config[2].assistant_only_loss = False
    trainer = SFTTrainer(
        model=load_causal(str(policy_folder)), args=config[2], train_dataset=dataset, processing_class=tokenizer
    )
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            kept = ids[labels != -100]
            assert tokenizer.decode(kept) == "Thank you, that is very kind.<|im_end|>"
            assert (labels[mask == 0] == -100).all()


def test_a_cut_off_run_resumes_from_its_last_whole_checkpoint(tmp_path: Path, policy_folder: Path) -> None:
    """Undisturbed and resumed runs end with the same weights; a torn checkpoint is passed over."""
    from safetensors.torch import load_file

    steady = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "seed": 3}
    _sft(tmp_path, policy_folder, output_dir=tmp_path / "whole", **steady)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    run = json.loads((tmp_path / "cut" / "run.json").read_text())
    (tmp_path / "cut" / "run.json").write_text(json.dumps(run | {"finished": False}))
    (tmp_path / "cut" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-8")
    (tmp_path / "cut" / "checkpoint-6" / "trainer_state.json").unlink()  # torn: resume from step 4
    _sft(tmp_path, policy_folder, output_dir=tmp_path / "cut", resume=True, **steady)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all((whole[name] - cut[name]).abs().max() < 1e-6 for name in whole)


def test_lora_saves_an_adapter_that_loads_as_a_policy(tmp_path: Path, policy_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rlhf.models import load_policy

    out = tmp_path / "lora"
    _sft(tmp_path, policy_folder, output_dir=out, use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
    assert (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), out)
    merged = load_policy(str(out)).model
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (merged.state_dict()[name] - base.state_dict()[name]).abs().max() > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_name_or_path": None}, r"model_name_or_path: is not set"),
        ({"model_name_or_path": "/nowhere/model"}, r"/nowhere/model: no such model folder"),
        ({"max_length": 4096}, r"max_length: 4096 tokens do not fit the context of .* which is 256; set --max_length"),
        ({"demonstrations": "/nowhere.jsonl"}, r"/nowhere\.jsonl: no such file"),
        ({"packing": True}, r"packing: needs flash attention .* set --packing false"),
        ({"output_dir": None}, r"output_dir: is not set"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, policy_folder: Path, values: dict[str, Any], message: str) -> None:
    data = stages.demonstrations(tmp_path / "demonstrations.jsonl")
    out = tmp_path / "run"
    settings = {**stages.TRAINING, "demonstrations": data, "model_name_or_path": policy_folder, "output_dir": out}
    with pytest.raises(UserError, match=message):
        stages.run("sft", **{**settings, **values})
    assert not out.exists()


def test_a_model_without_tokenizer_or_template_says_how_to_set_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bare = tiny_policy(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    with pytest.raises(UserError, match=r"bare: .*tokenizer.*(copy|cannot be loaded)"):
        _sft(tmp_path, bare, output_dir=tmp_path / "run")
    plain = tiny_policy(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(plain).chat_template is None
    with pytest.raises(UserError, match="no chat template; set one with --chat_template_path"):
        _sft(tmp_path, plain, output_dir=tmp_path / "run")
    _sft(tmp_path, plain, output_dir=tmp_path / "run", chat_template_path="configs/templates/chatml.jinja")
    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, policy_folder: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf); lower --learning_rate"):
        _sft(tmp_path, policy_folder, output_dir=tmp_path / "run", learning_rate=1e25, num_train_epochs=4)


def test_a_disk_that_fills_is_one_line(tmp_path: Path, policy_folder: Path, full_disk: Path) -> None:
    (full_disk / "ballast").write_bytes(b"x" * 950_000)
    with pytest.raises(UserError, match="no space left on the disk; free some"):
        _sft(tmp_path, policy_folder, output_dir=full_disk / "run")
    assert not (full_disk / "run").exists()
