"""bf16 on a CPU: by default only where it is faster, and never the end of the process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlhf import hardware, sft
from rlhf.config import from_values
from rlhf.models import load_causal


@pytest.fixture
def broken_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that advertises AMX and ends with SIGILL whoever uses it."""
    monkeypatch.setattr(hardware, "_amx_is_advertised", lambda: True)
    monkeypatch.setattr(hardware, "_TRY", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    enabled = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(True)
    hardware.cpu_runs_amx.cache_clear()
    yield
    hardware.cpu_runs_amx.cache_clear()
    torch._C._set_mkldnn_enabled(bool(enabled))


def test_amx_that_ends_the_process_is_not_used(broken_amx: None) -> None:
    assert not hardware.cpu_runs_amx()
    with pytest.warns(UserWarning, match="advertises AMX, which does not work; use float32"):
        hardware.spare_broken_amx()
    assert not torch.backends.mkldnn.enabled
    square = torch.full((64, 64), 0.5, dtype=torch.bfloat16)
    assert (square @ square).float().eq(16.0).all()  # 64 times a quarter: and the process lives


def test_amx_that_works_is_used(broken_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_TRY", "pass")
    assert hardware.cpu_runs_amx()
    hardware.spare_broken_amx()
    assert torch.backends.mkldnn.enabled


def test_without_amx_nothing_is_tried(broken_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_amx_is_advertised", lambda: False)
    monkeypatch.setattr(hardware, "_try_amx", lambda: pytest.fail("tried"))
    assert not hardware.cpu_runs_amx()
    hardware.spare_broken_amx()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("works", "given", "expected"), [(True, {}, True), (False, {}, False), (False, {"bf16": True}, True)]
)
def test_a_trainer_asks_for_bf16_only_where_it_is_faster(
    works: bool, given: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_runs_amx", lambda: works)
    values = {"demonstrations": "a.jsonl", "output_dir": str(tmp_path / "run"), **given}
    assert from_values(sft.Config, values, "sft.yaml").training.bf16 is expected


def test_a_model_in_bf16_loads_beside_broken_amx(broken_amx: None, policy_folder: Path) -> None:
    with pytest.warns(UserWarning, match="advertises AMX"):
        model = load_causal(str(policy_folder), "bfloat16")
    assert model(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.isfinite().all()
