"""What the watch reads: last lines of logs, checkpoints that were cut off."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.launcher.memory import next_setting
from rlhf.launcher.watch import End, Watch, last_lines, read_news
from rlhf.resume import drop_torn_checkpoints, is_whole, newest_checkpoint


def test_last_lines_of_a_log_with_a_bar(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(b"one\n\n 0%\r50%\r100%\ntwo\r\nthree")
    assert last_lines(log) == ["one", "100%", "two", "three"]
    assert last_lines(log, 2) == ["two", "three"]
    assert last_lines(tmp_path / "none.log") == []


def _checkpoint(folder: Path, step: int, num_ranks: int, sharded: bool = False) -> Path:
    """As the trainer leaves it: of each rank its random state, and under DeepSpeed its part of the optimizer."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    names = [f"rng_state_{rank}.pth" for rank in range(num_ranks)] if num_ranks > 1 else ["rng_state.pth"]
    if sharded:
        (made / f"global_step{step}").mkdir()
        (made / "latest").write_text(f"global_step{step}")
        names += [f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(num_ranks)]
    for name in names:
        torch.save({"state": torch.zeros(3)}, made / name)
    callbacks = {"NumRanks": {"args": {}, "attributes": {"num_ranks": num_ranks}}}
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step, "stateful_callbacks": callbacks}))
    return made


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("trainer_state.json", "gone"),
        ("trainer_state.json", "cut"),
        ("rng_state_1.pth", "gone"),
        ("rng_state_1.pth", "cut"),
        ("latest", "gone"),
        ("global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt", "gone"),
        ("global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt", "cut"),
    ],
)
def test_a_torn_checkpoint_is_known_and_skipped(tmp_path: Path, name: str, how: str) -> None:
    whole, torn = _checkpoint(tmp_path, 2, 2, sharded=True), _checkpoint(tmp_path, 4, 2, sharded=True)
    assert is_whole(whole) and is_whole(torn)
    assert newest_checkpoint(tmp_path) == str(torn)
    content = (torn / name).read_bytes()
    (torn / name).unlink()
    if how == "cut":
        (torn / name).write_bytes(content[: len(content) // 2])
    assert not is_whole(torn)
    assert newest_checkpoint(tmp_path) == str(whole)
    drop_torn_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


def test_checkpoints_from_before_ranks_were_noted_are_whole(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path, 2, 2)
    (old / "trainer_state.json").write_text('{"global_step": 2}')
    assert is_whole(old)
    shutil.rmtree(old)
    assert newest_checkpoint(tmp_path) is None


_FAILING = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "ranks" / "rank-1.json").write_text(json.dumps({"pid": os.getpid(), "host": "here"}))
(folder / "ranks" / "rank-1.beat").write_text("step 7")
(folder / "logs" / "rank-1.log").write_text("Traceback\\ntorch.OutOfMemoryError: CUDA out of memory. Tried to ...\\n")
failures = [{"rank": 0, "exit_code": 1, "time": 5}, {"rank": 1, "exit_code": 1, "time": 4}]
(folder / "ranks" / "ended-0.json").write_text(json.dumps(failures))
sys.exit(1)
"""


def test_the_first_rank_that_failed_is_named_and_memory_is_not_tried_again(tmp_path: Path) -> None:
    for part in ("logs", "ranks"):
        (tmp_path / part).mkdir()
    end = Watch(tmp_path, range(2), {}).run([sys.executable, "-c", _FAILING, str(tmp_path)])
    assert end.code == 1 and end.out_of_memory and not end.may_help
    log = tmp_path / "logs" / "rank-1.log"
    assert end.message == (
        f"rank 1 on here ended with exit code 1 during step 7; its last lines, of {log}:\n"
        "    Traceback\n    torch.OutOfMemoryError: CUDA out of memory. Tried to ..."
    )


# As soon as it runs, and once more when it is torchrun: SLURM signals whatever processes a step has.
_SIGNALLED = """
import os, signal, sys, types
os.kill(os.getpid(), signal.SIGUSR1)
from rlhf.launcher import agent
def torchrun(rest):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # ranks inherit it
sys.modules["torch.distributed.run"] = types.SimpleNamespace(main=torchrun)
agent.main([sys.argv[1]])
"""


def test_a_signal_that_comes_while_torchrun_starts_does_not_end_it(tmp_path: Path) -> None:
    for part in ("logs", "ranks"):
        (tmp_path / part).mkdir()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    end = Watch(tmp_path, range(1), dict(os.environ)).run([sys.executable, "-c", _SIGNALLED, str(tmp_path)])
    assert end == End(0), (tmp_path / "logs" / "node-0.log").read_text()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


_LOST = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for rank, code in json.loads(sys.argv[2]).items():
    (folder / "ranks" / f"rank-{rank}.said").write_text(str(code))
(folder / "ranks" / "ended-0.json").write_text(sys.argv[3])
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("said", "failures", "rank", "code", "may_help"),
    [
        # Rank 1 lost its connection to rank 0, which had a user's error, and was gone first.
        ({0: 2}, [(1, 1, 5)], 0, 2, False),
        ({0: 2}, [(1, -6, 4), (0, 2, 5)], 0, 2, False),
        # A rank that was aborted at the very end of what it had chosen.
        ({0: 75, 1: 75}, [(1, -6, 4)], None, 75, False),
        # A kill comes on its own, whatever the others made of it.
        ({0: 2}, [(0, 2, 4), (1, -9, 5)], 1, 137, True),
        ({0: 1}, [(0, 1, 4), (1, 1, 5)], 0, 1, True),
        ({}, [(0, 1, 5), (1, 1, 4)], 1, 1, True),
    ],
)
def test_what_a_rank_said_before_its_end_goes_before_who_was_gone_first(
    said: dict[int, int], failures: list[tuple[int, int, int]], rank: int | None, code: int, may_help: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    for part in ("logs", "ranks"):
        (tmp_path / part).mkdir()
    ended = [{"rank": one, "exit_code": status, "time": when} for one, status, when in failures]
    script = [sys.executable, "-c", _LOST, str(tmp_path), json.dumps(said), json.dumps(ended)]
    end = Watch(tmp_path, range(2), {}).run(script)
    assert (end.code, end.may_help) == (code, may_help)
    assert end.message.startswith("" if rank is None else f"rank {rank} on ")


def test_a_rank_notes_the_exit_code_that_it_chose(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    command = [sys.executable, "-m", "rlhf.launcher.verb", str(tmp_path), "sft", "--no_such_key", "1"]
    done = subprocess.run(command, env={**os.environ, "RANK": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "ranks" / "rank-1.said").read_text() == "2"
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["rank-1.said"]


def test_a_starter_that_cannot_start_is_told_with_its_own_lines(tmp_path: Path) -> None:
    for part in ("logs", "ranks"):
        (tmp_path / part).mkdir()
    end = Watch(tmp_path, range(2), {}).run([sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert end.code == 1 and not end.may_help
    assert "ended with exit code 1; its last lines" in end.message and end.message.endswith("\n    no such thing")


def test_news_of_another_node_ends_this_one_and_old_news_does_not(tmp_path: Path) -> None:
    for part in ("logs", "ranks"):
        (tmp_path / part).mkdir()
    news = tmp_path / "ranks" / "failed-0.json"
    news.write_text(json.dumps({"host": "other", "code": 9, "may_help": True}))
    idle = [sys.executable, "-c", "import signal; signal.pause()"]
    end = Watch(tmp_path, range(1), {}).run(idle)
    assert (end.code, end.message, end.may_help) == (9, "a rank on other failed, and its message is there", True)
    done = Watch(tmp_path, range(1), {}, old_news=read_news(tmp_path)).run([sys.executable, "-c", ""])
    assert done.code == 0


def test_what_to_try_next_where_memory_ran_out() -> None:
    def advice(zero: int = 0, offload: Any = None, ranks: int = 8, verb: str = "sft", **settings: Any) -> str:
        return next_setting(verb, settings, zero, offload, ranks)

    assert advice() == "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 (the global batch stays)"
    assert advice(per_device_train_batch_size=3).startswith(
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 3 (the global batch stays)"
    )
    one: dict[str, Any] = {"per_device_train_batch_size": 1}
    assert advice(verb="ppo", **one) == "--gradient_checkpointing true (a third slower)"
    assert advice(gradient_checkpointing=False, **one) == "--gradient_checkpointing true (a third slower)"
    assert advice(zero=2, **one) == "rlhf launch --zero 3"
    assert advice(ranks=1, **one).startswith("rlhf launch --zero 1 --offload optimizer")
    assert advice(zero=3, **one).startswith("rlhf launch --zero 3 --offload optimizer")
    assert advice(zero=3, offload="optimizer", **one).startswith("rlhf launch --zero 3 --offload params")
    assert advice(zero=3, offload="params", **one).startswith("--use_peft true")
    assert advice(zero=3, offload="params", use_peft=True, **one) == "more GPUs, or a smaller model"
