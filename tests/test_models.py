"""Loading models: safely, from plain folders, with errors that say what the folder lacks."""

import pickle
from pathlib import Path

import pytest
import torch

from rlhf.errors import UserError
from rlhf.models import context_length, load_causal, load_classifier, load_policy, load_tokenizer, stop_ids
from tests.tiny import tiny_policy


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemError('code ran while weights were loaded')",))


def test_weights_that_carry_code_are_refused(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as out:
        pickle.dump({"lm_head.weight": _Bomb()}, out)
    with pytest.raises(UserError, match="its model cannot be loaded"):
        load_causal(str(folder))


def test_a_checkpoint_s_own_code_does_not_run_unasked(tmp_path: Path) -> None:
    import json

    folder = tiny_policy(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "code.Mine", "AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemError('code of a checkpoint ran')")
    with pytest.raises(UserError, match=r"(trust_remote_code|cannot be loaded)"):
        load_causal(str(folder))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", r"/nowhere/at/all: no such model folder"),
        ("./here", r"\./here: no such model folder"),
        ("name", r"name: no such model folder"),
    ],
)
def test_a_missing_folder_is_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_policy(path)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in this folder"):
        load_policy(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; give the folder"):
        load_policy(str(tmp_path / "file"))


def test_broken_weights_are_named(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    with pytest.raises(UserError, match=r"m: its model cannot be loaded"):
        load_causal(str(folder))


def test_dtype_context_and_stop_ids(policy_folder: Path) -> None:
    model = load_causal(str(policy_folder), "bfloat16")
    assert model.dtype == torch.bfloat16
    assert context_length(model) == 256
    tokenizer = load_tokenizer(str(policy_folder))
    assert stop_ids(model) == [tokenizer.eos_token_id] == tokenizer.encode("<|im_end|>")
    model.generation_config.eos_token_id = [1, 2]
    assert stop_ids(model) == [1, 2]


def test_an_adapter_of_another_kind_is_named(policy_folder: Path, tmp_path: Path) -> None:
    """Peft would fail in an AttributeError, or give a policy the adapter of a reward model and say nothing."""
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(str(policy_folder))
    layers = {"r": 2, "target_modules": ["q_proj"]}
    policy = load_causal(str(policy_folder))
    get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **layers)).save_pretrained(tmp_path / "policy")
    classifier = load_classifier(str(policy_folder), tokenizer)
    get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **layers)).save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError, match=r"reward: is an adapter for SEQ_CLS, and CAUSAL_LM is needed here; give"):
        load_causal(str(tmp_path / "reward"))
    with pytest.raises(UserError, match=r"policy: is an adapter for CAUSAL_LM, and SEQ_CLS is needed here; give"):
        load_classifier(str(tmp_path / "policy"), tokenizer)
    assert load_causal(str(tmp_path / "policy")).config.architectures == ["LlamaForCausalLM"]
    assert load_classifier(str(tmp_path / "reward"), tokenizer).config.num_labels == 1
