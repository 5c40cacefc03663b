"""What the watch reads: last lines of logs, checkpoints that were cut off."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rlhf.launcher.watch import last_lines
from rlhf.training import drop_torn_checkpoints, is_whole, newest_checkpoint


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
