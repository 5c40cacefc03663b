"""Several nodes: two launchers on this host, one rank each, as two machines with a shared disk would run them."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from rlhf.ports import choose_port
from tests import launch_cases as cases
from tests.test_launch_faults import when_at_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
VALUES = {"max_steps": 30, "save_strategy": "steps", "save_steps": 5}


def _start(verb: list[str], restarts: int) -> list[subprocess.Popen[str]]:
    port = str(choose_port("127.0.0.1", 0))
    own = ["--gpus", "1", "--nodes", "2", "--main_address", "127.0.0.1", "--main_port", port]
    own += ["--zero", "2", "--max_restarts", str(restarts)]
    return [cases.start([*own, "--node_rank", str(node)], verb) for node in (0, 1)]


def test_two_nodes_train_as_one_and_come_back_together_after_a_kill(policy_folder: Path, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    one = cases.launch(["--gpus", "2", "--zero", "2"], cases.sft(places[0], policy_folder, **VALUES))
    assert one.returncode == 0, one.stderr

    nodes = _start(cases.sft(places[1], policy_folder, **VALUES), restarts=1)
    when_at_step(nodes[1], places[1], 12, lambda pid: os.kill(pid, signal.SIGKILL))
    told = [node.communicate(timeout=cases.PATIENCE) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert re.search(r"rlhf: launch: rank 1 on \S+ ended with SIGKILL", told[1][1])
    assert all("launch: restart 1 of 1" in out for out, _ in told)
    assert "train loss" in told[0][0] and "train loss" not in told[1][0]  # the console is the first node's
    cases.same_weights(places[0] / "run", places[1] / "run")
    assert cases.alive(places[1]) == []


def test_an_error_on_one_node_ends_all_for_good(policy_folder: Path, tmp_path: Path) -> None:
    verb = cases.sft(tmp_path, policy_folder, learning_rate=1e25, max_steps=5000)
    nodes = _start(verb, restarts=2)
    told = [node.communicate(timeout=cases.PATIENCE) for node in nodes]
    assert all("restart 2" not in out for out, _ in told)
    assert 2 in [node.returncode for node in nodes] and 0 not in [node.returncode for node in nodes]
    # DeepSpeed leaves out each step whose gradient is no number, so that the loss stays where it is.
    assert any("step 21: the gradient is no number since step 2 (inf), so nothing is learned" in err for _, err in told)
    assert cases.alive(tmp_path) == []
