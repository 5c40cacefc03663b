"""What a run used: measured, summed over attempts and ranks, and left out where it cannot be known."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf import usage
from rlhf.runs import open_run, read_run
from rlhf.usage import NOTED, Usage, read_usage
from tests import ppo_cases as cases

_TRAINED = Usage(10.0, "cpu", 2, 20 / 3600, 1.5, 4.0, 100, 1000, 1)


def test_attempts_add_up() -> None:
    again = Usage(5.0, "cpu", 2, 10 / 3600, 2.5, 1.0, 100, 1400, 1).after(_TRAINED)
    assert again == Usage(15.0, "cpu", 2, 30 / 3600, 2.5, 5.0, 100, 1400, 2)
    assert _TRAINED.after(Usage()) == _TRAINED  # no attempt before


def test_energy_is_unknown_where_one_attempt_did_not_read_it() -> None:
    assert _TRAINED.after(Usage(1.0, energy_wh=None, num_attempts=1)).energy_wh is None
    assert Usage(1.0, energy_wh=None, num_attempts=1).after(_TRAINED).energy_wh is None


def test_a_run_records_it(tmp_path: Path) -> None:
    began = time.monotonic()
    with open_run("sample", tmp_path / "r", {}, {}) as folder:
        held = bytearray(b"x" * 300_000_000)
        folder.tokens_generated = 7
        run = folder.finish()
    used = read_usage(read_run(tmp_path / "r").usage)
    assert used is not None and asdict(used) == run.usage
    assert used.seconds == run.seconds <= time.monotonic() - began + 0.1
    assert used.device_hours == pytest.approx(used.seconds / 3600, abs=0.06 / 3600)
    assert (used.num_processes, used.num_attempts, used.tokens_generated, used.tokens_trained) == (1, 1, 7, 0)
    assert used.peak_memory_gib * 2**30 > len(held)
    assert not (tmp_path / "r" / NOTED).exists()


def test_the_peak_is_the_runs_own(tmp_path: Path) -> None:
    """A stage that ran before in the same process does not count."""
    big = bytearray(b"x" * 600_000_000)
    with open_run("a", tmp_path / "a", {}, {}) as folder:
        first = folder.finish()
    del big
    with open_run("b", tmp_path / "b", {}, {}) as folder:
        second = folder.finish()
    assert first.usage["peak_memory_gib"] - second.usage["peak_memory_gib"] > 0.4


_WORKS = """
import sys, time
from rlhf import usage
from rlhf.runs import open_run
usage._NOTED_EVERY = 0.05
with open_run("sft", sys.argv[1], {}, {}, resume=len(sys.argv) > 2) as folder:
    if len(sys.argv) > 2:
        folder.finish()
    else:
        print("at work", flush=True)
        time.sleep(600)  # until it is killed
"""


def test_what_a_killed_attempt_used_counts(tmp_path: Path) -> None:
    out = tmp_path / "r"
    worker = subprocess.Popen([sys.executable, "-c", _WORKS, str(out)], stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"at work\n"
    while not (out / NOTED).is_file() or json.loads((out / NOTED).read_text())["seconds"] < 0.5:
        assert worker.poll() is None
        time.sleep(0.02)  # between two looks at its notes
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    noted = json.loads((out / NOTED).read_text())
    subprocess.run([sys.executable, "-c", _WORKS, str(out), "resume"], check=True)
    used = read_run(out).usage
    assert used["num_attempts"] == 2
    assert used["seconds"] >= round(noted["seconds"], 1)
    assert not (out / NOTED).exists()


def test_a_broken_note_is_no_note(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", '{"seconds": '):
        (tmp_path / NOTED).write_text(text)
        assert usage.Meter(tmp_path, notes=False).earlier == Usage()


def test_ranks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with open_run("sft", tmp_path / "r", {}, {}) as folder:
        used = folder.finish().usage
    assert used["num_processes"] == 4
    assert used["device_hours"] == pytest.approx(4 * used["seconds"] / 3600, abs=4 * 0.06 / 3600)


def test_energy_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAPL counts microjoules a package; its parts (`intel-rapl:0:0`) are in the package's."""
    for name, joules in (("intel-rapl:0", 3600), ("intel-rapl:1", 7200), ("intel-rapl:0:0", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{joules * 10**6}\n")
    monkeypatch.setattr(usage, "_RAPL", tmp_path)
    monkeypatch.setattr(usage, "_cuda", lambda: None)
    assert usage._energy_wh() == pytest.approx(3.0)  # 10,800 J
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert usage._energy_wh() == 0.0  # the first rank of a machine counts it
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(usage, "_RAPL", tmp_path / "none")
    assert usage._energy_wh() is None
    assert usage._since(3.0, 2.0) is None  # a counter that ran over its end


def test_runs_of_before_have_none() -> None:
    assert read_usage({}) is None
    assert read_usage({"seconds": 2.0, "of_a_later_version": 1}) == Usage(seconds=2.0)


def test_ppo_counts_its_tokens(policy_folder: Path, tmp_path: Path) -> None:
    """Two rounds of 8 replies, each trained on twice."""
    trainer = cases.trainer(policy_folder, tmp_path, max_steps=2, num_ppo_epochs=2)
    trainer.train()
    rounds = [row for row in trainer.state.log_history if "length" in row]
    generated = sum(row["length"] * 8 for row in rounds)
    assert trainer.ppo.tokens_generated == pytest.approx(generated)
    prompts = (trainer.ppo.tokens_trained - 2 * trainer.ppo.tokens_generated) / (2 * 16)
    assert 1 < prompts < 50  # the mean prompt, in tokens
