"""`torch_compile` in PPO: the same numbers from compiled layers, made once, and one line where it cannot be."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from rlhf.errors import UserError
from rlhf.packing import pack_rows
from rlhf.ppo import build
from rlhf.ppo.compiled import CompiledLayers
from rlhf.ppo.networks import kept_hidden
from tests import ppo_cases as cases
from tests.architectures import close, tiny

TRACED = "eager"  # traces layers and cuts them into programs as inductor does, and runs these as they are
DIFFERENTIATED = "aot_eager"  # makes their backward programs too; neither writes C++


@pytest.fixture(autouse=True)
def _nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    # pytest would keep each of the compiler's thousands of notes.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def _batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of those lengths, the second half of each kept."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 60, (len(lengths), max(lengths)), generator=generator)
    at = torch.arange(max(lengths) - 1)
    return ids, torch.stack([(at >= length // 2) & (at < length - 1) for length in lengths])


def _hidden_and_gradients(model: Any, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    hidden = kept_hidden(model, *batch)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients | {"hidden": hidden.detach()}


@pytest.mark.parametrize(
    ("architecture", "packed"),
    [("llama", True), ("gpt2", True), ("gpt_neo", False)],  # gpt_neo has windows in every second layer
)
def test_compiled_layers_give_the_same_gradients(architecture: str, packed: bool) -> None:
    model = tiny(architecture)
    assert not packed or pack_rows(model)
    batch = _batch([12, 7, 9])
    wanted = _hidden_and_gradients(model, batch)
    compiled = CompiledLayers([model, None], DIFFERENTIATED)
    with compiled.active():
        found = _hidden_and_gradients(model, batch)
    assert counters["stats"]["unique_graphs"] > 0
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        close(found[name], tensor, atol=1e-5 * float(tensor.abs().max().clamp(min=1)))
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("packed", [True, False])
def test_one_program_serves_all_layers_and_lengths(packed: bool) -> None:
    """Three layers take as many programs as two, and other lengths none."""
    made = []
    for layers in (2, 3):
        torch.compiler.reset()
        counters.clear()
        model = tiny("llama", num_hidden_layers=layers)
        assert not packed or pack_rows(model)
        compiled = CompiledLayers([model], TRACED)
        for lengths in ([12, 7, 9], [9, 9, 8, 15, 31]):
            with compiled.active():
                _hidden_and_gradients(model, _batch(lengths))
            made.append(counters["stats"]["unique_graphs"])
    assert made == [made[0]] * 4


def test_what_runs_compiled_is_what_runs_in_active_alone() -> None:
    model = tiny("llama")
    own = [layer.forward for layer in model.model.layers]
    with pytest.raises(ZeroDivisionError), CompiledLayers([model], TRACED).active():
        assert all(layer.forward != before for layer, before in zip(model.model.layers, own, strict=True))
        raise ZeroDivisionError
    assert [layer.forward for layer in model.model.layers] == own
    model.model.layers[0].forward = own[1]  # as hooks of other libraries leave it
    with CompiledLayers([model], TRACED).active():
        pass
    assert model.model.layers[0].forward == own[1]


KINDS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared, checkpointing": {"value_model_kind": "shared", "gradient_checkpointing": True},
    "adapter": {"peft_config": LoraConfig(r=4, target_modules=["q_proj"]), "value_model_kind": "adapter"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_trains_as_without(policy_folder: Path, tmp_path: Path, kind: str) -> None:
    found = []
    for on in (False, True):
        how = {"torch_compile": True, "torch_compile_backend": TRACED} if on else {}
        trainer = cases.trainer(policy_folder, tmp_path / str(on), **KINDS[kind], **how)
        trainer.train()
        assert trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=True) is trainer.model
        assert (counters["stats"]["unique_graphs"] > 0) == on
        found.append((cases.log(trainer), cases.weights(trainer)))
    (rows, weights), (mine, ours) = found
    assert mine[0]["kl"] == 0.0  # the passes that weigh replies are the reference's own still
    assert mine[0]["ratio/first_deviation"] < 1e-4
    for key in ("loss", "score", "kl", "entropy"):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in rows], abs=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)


def test_as_a_user_switches_it_on_and_resumed_to_the_bit(policy_folder: Path, tmp_path: Path) -> None:
    """Inductor's programs, in C++; a run resumed from its second round ends where the whole one does."""
    settings = {"torch_compile": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    whole = cases.trainer(policy_folder, tmp_path, **settings)
    whole.train()
    again = cases.trainer(policy_folder, tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    mine, theirs = cases.weights(again), cases.weights(whole)
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    assert {
        key: value for key, value in cases.log(again)[-1].items() if "second" not in key and "memory" not in key
    } == {key: value for key, value in cases.log(whole)[-1].items() if "second" not in key and "memory" not in key}


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"torch_compile: finds no C\+\+ compiler; install one .*torch_compile false"):
        CompiledLayers([tiny("llama")])


def test_a_layer_that_cannot_be_compiled() -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("no such operation")

    model = tiny("llama")
    compiled = CompiledLayers([model], refuses)
    with (
        pytest.raises(UserError, match=r"torch_compile: a layer cannot be compiled .*no such operation.*compile false"),
        compiled.active(),
    ):
        kept_hidden(model, *_batch([5]))
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_a_model_without_layers() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny("llama").config
            self.base_model = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match="torch_compile: Flat has no stack of like layers"):
        CompiledLayers([Flat()], TRACED)


def test_not_with_zero_3(policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(
        UserError, match="torch_compile: is not there with ZeRO-3, which fetches weights within a layer"
    ):
        cases.trainer(policy_folder, tmp_path, torch_compile=True, peft_config=cases.lora(), value_model_kind="shared")
