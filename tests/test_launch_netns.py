"""Two nodes with networks of their own (namespaces): they train as one, and end when their cable is pulled."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rlhf.launcher.rank import choose_interface, interface_to, own_address
from tests import launch_cases as cases
from tests.network_nodes import Node, NotAllowed, two_nodes
from tests.test_launch_faults import when_at_step

VALUES = {"max_steps": 30, "save_strategy": "steps", "save_steps": 5}
WITHIN = 60  # seconds


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes; skips where this process may make none."""
    try:
        with two_nodes() as made:
            yield made
    except NotAllowed as reason:
        pytest.skip(f"no network namespaces here: {reason}")


def _start(nodes: tuple[Node, Node], verb: list[str], *flags: str) -> list[subprocess.Popen[str]]:
    launch = [sys.executable, "-m", "rlhf", "launch", "--gpus", "1", "--nodes", "2"]
    launch += ["--main_address", nodes[0].address, *flags]
    return [
        subprocess.Popen(
            node.command([*launch, "--node_rank", str(number), "--", *verb]),
            cwd=cases.ROOT,
            env=cases.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, node in enumerate(nodes)
    ]


def _ends(started: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    return [process.communicate(timeout=cases.PATIENCE) for process in started]


def _same_weights(left: Path, right: Path) -> None:
    mine, other = cases.weights(left), cases.weights(right)
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pulled_cable_ends_both_nodes_and_resume_gives_the_same_result(
    nodes: tuple[Node, Node], policy_folder: Path, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("one", "two", "cut")}
    for place in places.values():
        place.mkdir()
    verbs = {name: cases.sft(place, policy_folder, **VALUES) for name, place in places.items()}
    one = cases.launch(["--gpus", "2"], verbs["one"])
    assert one.returncode == 0, one.stderr

    two = _start(nodes, verbs["two"])
    told = _ends(two)
    assert [process.returncode for process in two] == [0, 0], told
    _same_weights(places["one"] / "run", places["two"] / "run")

    cut = _start(nodes, verbs["cut"])
    pulled = []

    def pull(_: object) -> None:
        pulled.append(time.monotonic())
        nodes[1].set_link("down")

    when_at_step(cut[1], places["cut"], 12, pull)
    told = _ends(cut)
    assert time.monotonic() - pulled[0] < WITHIN, told
    assert [process.returncode for process in cut] == [124, 124], told
    # Each says it by itself, or points to the other, who was first.
    said = [
        re.search(rf"rank {rank} on {node.name} is cut off \(for 30 s .+\) during step \d+;", err)
        for rank, (node, (_, err)) in enumerate(zip(nodes, told, strict=True))
    ]
    assert any(said), told
    for own, (_, err) in zip(said, told, strict=True):
        assert own or "failed, and its message is there" in err
    assert any(re.search(r"interface ve\w+ is down|the first node cannot be reached at 10\.", err) for _, err in told)
    assert cases.alive(places["cut"]) == []

    nodes[1].set_link("up")
    again = _start(nodes, [*verbs["cut"], "--resume", "true"], "--main_port", "29510")
    told = _ends(again)
    assert [process.returncode for process in again] == [0, 0], told
    _same_weights(places["one"] / "run", places["cut"] / "run")
    assert [row["step"] for row in cases.rows(places["cut"] / "run") if "loss" in row] == list(range(1, 31))


def test_ranks_of_several_nodes_use_the_interface_that_leads_to_the_first() -> None:
    loopback = next(
        name for name, entries in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in entries)
    )
    assert interface_to("127.0.0.1") == loopback
    assert own_address("127.0.0.1") == "127.0.0.1"
    environment = {"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "2"}
    choose_interface(environment)
    assert environment["GLOO_SOCKET_IFNAME"] == loopback
    assert environment["NCCL_SOCKET_IFNAME"] == f"={loopback}"


def test_one_node_the_user_s_choice_and_a_name_for_loopback_are_left_alone() -> None:
    one = {"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "1"}
    choose_interface(one)
    assert len(one) == 2
    chosen = {"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "mine"}
    choose_interface(chosen)
    assert chosen["GLOO_SOCKET_IFNAME"] == "mine"
    named = {"MASTER_ADDR": "localhost", "GROUP_WORLD_SIZE": "2"}
    choose_interface(named)
    assert len(named) == 2
