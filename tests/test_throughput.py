"""Tokens a second, MFU and memory in the log: formulas by hand, a real run's rows, two real ranks."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.encode import CutReport, Encoder
from rlhf.models import load_tokenizer
from rlhf.planner.speed import read_throughput
from rlhf.records import Demonstration, read_jsonl
from rlhf.throughput import flops_per_token, peak_flops
from tests import launch_cases, stages


def test_flops_of_a_token_by_hand() -> None:
    """PaLM's 6 N + 12 L H Q T; LoRA leaves 2 a frozen weight out, a reference adds a third."""
    palm = 6 * 1000 + 12 * 2 * 32 * 10
    assert flops_per_token(1000, 1000, layers=2, width=32, length=10) == palm
    assert flops_per_token(1010, 10, layers=2, width=32, length=10) == 4 * 1010 + 2 * 10 + 7680
    assert flops_per_token(1000, 1000, 2, 32, 10, reference=True) == pytest.approx(palm * 4 / 3)


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "16", 989.4),
        ("NVIDIA H100 PCIe", "16", 756),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA L4", "16", 121),
        ("NVIDIA L40S", "16", 362),
        ("Tesla T4", "16", 65),
        ("Tesla T4", "tf32", None),
        ("NVIDIA GeForce RTX 4090", "16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "16", None),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("AMD Instinct MI300X", "16", 1307.4),
        ("Some other chip", "16", None),
    ],
)
def test_a_chip_s_peak_by_its_name(name: str, precision: str, tera: float | None) -> None:
    assert peak_flops(name, precision) == (None if tera is None else pytest.approx(tera * 1e12))


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_training_row_has_the_figures_and_plan_reads_them(tmp_path: Path, policy_folder: Path) -> None:
    data = stages.demonstrations(tmp_path / "d.jsonl", 16)
    values = {**stages.TRAINING, "demonstrations": data, "model_name_or_path": policy_folder, "output_dir": tmp_path}
    held_out = {"eval_demonstrations": data, "eval_strategy": "steps", "eval_steps": 2}
    stages.run("sft", **{**values, **held_out, "output_dir": tmp_path / "run"}, save_strategy="no")
    rows = [row for row in _rows(tmp_path / "run") if "loss" in row]
    assert len(rows) == 4
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert 0.05 < row["memory_gb"] < 100
        assert "mfu" not in row  # nobody knows a processor's peak
    rates = sorted(row["tokens_per_second"] for row in rows)
    assert read_throughput(str(tmp_path / "run")) == pytest.approx((rates[1] + rates[2]) / 2)


@pytest.mark.slow
def test_two_ranks_sum_their_tokens(tmp_path: Path, policy_folder: Path) -> None:
    """The tokens behind the rates are all the data's, and the seconds behind them no more than the run took."""
    words = launch_cases.sft(tmp_path, policy_folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "rlhf"]
    done = subprocess.run(
        [*command, *words], cwd=launch_cases.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = _rows(tmp_path / "run")
    trained = [row for row in rows if "loss" in row]
    counts = [0, *(row["num_tokens"] for row in trained)]
    tokens = [after - before for before, after in pairwise(counts)]

    encoder = Encoder(load_tokenizer(str(policy_folder)))
    rows_read = read_jsonl(tmp_path / "demonstrations.jsonl", Demonstration)
    encoded = [encoder.encode_conversation(row.messages, 128, CutReport()) for row in rows_read]
    expected = sum(len(found[0]) for found in encoded if found is not None)
    assert sum(tokens) == expected  # 6 steps of 2 ranks of 2 rows are all 24, padding left out
    seconds = sum(count / row["tokens_per_second"] for count, row in zip(tokens, trained, strict=True))
    runtime = next(row["train_runtime"] for row in rows if "train_runtime" in row)
    assert 0 < seconds <= 1.05 * runtime
