"""Computations at once: what each thread has, whose error comes out, and that nothing is left behind."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rlhf.abreast import abreast, can_run_abreast
from rlhf.hardware import flushes_denormals


@pytest.fixture
def four_threads(two_threads: None) -> None:
    torch.set_num_threads(4)  # until the other fixture sets back what was before


def _here() -> tuple[int, int]:
    return threading.get_ident(), torch.get_num_threads()


def test_each_has_a_thread_and_its_share_of_the_cores(four_threads: None) -> None:
    me = threading.get_ident()
    (first, first_share), (second, second_share) = abreast([_here, _here])
    assert first == me != second
    assert first_share == second_share == 2
    assert abreast([_here, _here])[1][0] == second  # the thread is kept
    assert len({thread for thread, _ in abreast([_here] * 3)}) == 3
    assert [share for _, share in abreast([_here] * 8)] == [1] * 8  # never none
    assert abreast([_here]) == [(me, 4)]
    assert torch.get_num_threads() == 4


def test_they_run_at_once(four_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=60)
    assert sorted(abreast([meeting.wait, meeting.wait])) == [0, 1]


def test_a_thread_computes_as_its_caller(four_threads: None) -> None:
    def surroundings() -> tuple[bool, bool, torch.dtype, bool]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), product.dtype, flushes_denormals()

    flushed = flushes_denormals()
    try:
        for grad in (True, False):
            for mixed in (True, False):
                for flush in (True, False):
                    torch.set_flush_denormal(flush)
                    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, mixed):
                        mine, other = abreast([surroundings, surroundings])
                    assert mine == other == (grad, mixed, torch.bfloat16 if mixed else torch.float32, flush)
    finally:
        torch.set_flush_denormal(flushed)


def test_gradients_of_two_models_at_once_are_theirs(four_threads: None) -> None:
    def learn(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(64, 64, generator=generator, requires_grad=True)
        for _ in range(20):
            (torch.randn(32, 64, generator=generator) @ weight).tanh().sum().backward()
        assert weight.grad is not None
        return weight.grad

    torch.set_num_threads(2)
    at_once = abreast([lambda: learn(0), lambda: learn(1)])
    torch.set_num_threads(1)
    assert torch.equal(at_once[0], learn(0))
    assert torch.equal(at_once[1], learn(1))


def test_an_error_comes_out_when_all_have_ended(four_threads: None) -> None:
    ended, first_raised = [], threading.Event()

    def raises() -> None:
        first_raised.set()
        raise ValueError("first")

    def waits() -> None:
        assert first_raised.wait(60)
        ended.append(True)
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        abreast([raises, waits])
    assert ended == [True]
    with pytest.raises(ValueError, match="second"):
        abreast([first_raised.is_set, waits])
    assert torch.get_num_threads() == 4
    assert len(abreast([_here, _here])) == 2  # the thread lives on


def test_where_it_is_of_use(four_threads: None) -> None:
    cpu = torch.device("cpu")
    assert can_run_abreast(cpu)
    assert can_run_abreast(cpu, 4)
    assert not can_run_abreast(cpu, 5)
    assert not can_run_abreast(torch.device("cuda"))
    torch.set_num_threads(1)
    assert not can_run_abreast(cpu)


_FORK = """
import os, threading, torch
from rlhf.abreast import abreast
torch.set_num_threads(2)
assert abreast([lambda: 1, lambda: 2]) == [1, 2]
child = os.fork()
if child == 0:
    os._exit(0 if abreast([lambda: 1, lambda: 2]) == [1, 2] else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_has_threads_of_its_own() -> None:
    assert subprocess.run([sys.executable, "-c", _FORK], timeout=120).returncode == 0


_FAILS = """
import sys
from pathlib import Path
import torch
from tests import ppo_cases
from tests.tiny import tiny_policy
torch.set_num_threads(2)
place = Path(sys.argv[1])
trainer = ppo_cases.trainer(tiny_policy(place / "policy"), place / "run", max_steps=1)
trainer.model.value_model.score.weight.register_hook(lambda _: torch.empty(2**60, dtype=torch.uint8))
try:
    trainer.train()
except RuntimeError as error:
    kept = error  # with all frames, as who reports it does
sys.exit(2)
"""


def test_a_backward_pass_that_fails_does_not_take_python_down(tmp_path: Path) -> None:
    """PyTorch leaves the rest of the graph in the thread, to be freed at its end."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", _FAILS, str(tmp_path)], cwd=root, timeout=300)
    assert done.returncode == 2
