"""Ranks that run out of memory: real ones, under a limit that the system holds, and errors from each phase."""

import json
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlhf.launcher import record
from rlhf.launcher.cause import Cause, cause_of, read_cause, write_cause
from rlhf.launcher.files import launch_folder
from rlhf.launcher.memory import next_setting, smaller
from rlhf.launcher.rank import RankFiles, read_mark
from rlhf.launcher.verdict import Lesson, Verdict, judge
from rlhf.records import Demonstration, make_id, write_jsonl
from tests import launch_cases as cases
from tests import ppo_cases, stages
from tests.tiny import tiny_policy

WIDE = 65_536  # of the feed-forward: about 1 MiB of activations a token, so that 512 tokens are half a GiB


def wide_policy(folder: Path) -> Path:
    """The tiny policy with one layer, and a feed-forward that is far too wide."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    tiny_policy(folder, max_length=512)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.num_hidden_layers, config.intermediate_size = 1, WIDE
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def one_long_row(path: Path, count: int = 32, long: int = 27) -> Path:
    """Short conversations and a single long one."""
    rows = []
    for n in range(count):
        text = "Thank you, that is very kind. " * (60 if n == long else 1)
        messages = [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": text}]
        rows.append(Demonstration(make_id("dem", messages), messages))
    write_jsonl(path, rows)
    return path


def peak_data(process: subprocess.Popen[str], place: Path) -> int:
    """The most private memory that rank 0 or 1 had while the job ran, in bytes, as RLIMIT_DATA counts it."""
    folder, most = launch_folder(place / "run"), 0
    while process.poll() is None:
        for rank in (0, 1):
            mark = read_mark(RankFiles(folder, rank))
            try:
                status = Path(f"/proc/{mark.pid}/status").read_text() if mark else ""
            except (OSError, psutil.Error):
                continue
            if found := re.search(r"VmData:\s+(\d+) kB", status):
                most = max(most, int(found[1]) * 1024)
        time.sleep(0.02)
    return most


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_auto_halves_the_micro_batch_and_goes_on_to_the_same_result(tmp_path: Path) -> None:
    policy = wide_policy(tmp_path / "wide")
    data = one_long_row(tmp_path / "demonstrations.jsonl")
    values: dict[str, Any] = {"demonstrations": str(data), "max_length": 512, "max_steps": 4, "save_strategy": "steps"}
    values |= {"save_steps": 1, "optim": "sgd", "learning_rate": 0.5}
    places = [tmp_path / name for name in ("small", "auto")]
    for place in places:
        place.mkdir()
    small = {**values, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    undisturbed = cases.start(["--gpus", "2"], cases.sft(places[0], policy, **small))
    most = peak_data(undisturbed, places[0])
    assert undisturbed.returncode == 0, undisturbed.communicate()

    limit = most + 150 * 2**20  # two rows of 512 tokens take half a GiB more than one
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))  # of this process too: what it starts takes it over
    try:
        process = cases.start(
            ["--gpus", "2", "--auto", "true"],
            cases.sft(places[1], policy, **values, per_device_train_batch_size=4),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    out, err = process.communicate(timeout=cases.PATIENCE)
    print(out, err, [r for r in cases.rows(places[1] / "run")], [r for r in cases.rows(places[0] / "run")])
    assert process.returncode == 0, err
