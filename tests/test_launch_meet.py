"""Nodes that meet: two launchers' halves in two threads, over real files and a real port."""

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.launcher import preflight
from rlhf.launcher.facts import code_hash, differences, node_facts, versions
from rlhf.launcher.meet import EndedElsewhere, Meeting
from rlhf.launcher.preflight import Place
from rlhf.ports import choose_port


@pytest.fixture
def first(tmp_path: Path) -> Meeting:
    """Node 0's half."""
    (tmp_path / "ranks").mkdir()
    return Meeting(tmp_path, 0, 2, 0, "127.0.0.1", choose_port("127.0.0.1", 0), seconds=60)


def _count(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"sum": sum(node["number"] for node in nodes)}


def _hold(*halves: Meeting) -> list[Any]:
    """What each half gets: its verdict, or its error."""

    def one(half: Meeting) -> Any:
        try:
            return half.hold({"number": half.node + 1}, _count)
        except (UserError, EndedElsewhere) as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, halves))


def test_all_get_one_verdict_and_old_files_do_not_count(first: Meeting) -> None:
    second = replace(first, node=1)
    assert _hold(first, second) == [{"sum": 3}, {"sum": 3}]
    began = first.began()
    # Once more in the same folder, at the same port: as a launch that follows another.
    assert _hold(second, first) == [{"sum": 3}, {"sum": 3}]
    assert first.began() > began
    with socket.create_server((first.address, first.port)):  # free for the ranks, at once
        pass


def test_a_node_that_does_not_come_is_named(first: Meeting) -> None:
    second = replace(first, node=1)
    _hold(first, second)  # what they left must not pass for either
    (error,) = _hold(replace(first, seconds=0.5))
    assert str(error).startswith(
        "nodes: node 1 did not come within 0.5 s (--meet_seconds); start the same command there with --node_rank 1. If "
    )
    assert "is not the same folder on all: put --output_dir on a disk that all nodes share" in str(error)
    (error,) = _hold(replace(first, num_nodes=4, seconds=0.5))
    assert str(error).startswith("nodes: nodes 1, 2, 3 did not come within 0.5 s")


def test_node_0_does_not_come(first: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.launcher.meet._LINGER", 0.0)
    (error,) = _hold(replace(first, node=1, seconds=0.5))
    assert str(error).startswith("nodes: node 0 did not come within 0.5 s (--meet_seconds); start the same command")
    assert "put --output_dir on a disk that all nodes share" in str(error)


def test_folders_that_are_not_shared(first: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.launcher.meet._LINGER", 0.0)
    (tmp_path / "other" / "ranks").mkdir(parents=True)
    errors = _hold(replace(first, seconds=1), replace(first, folder=tmp_path / "other", node=1, seconds=1))
    assert all("share" in str(error) for error in errors)


def test_a_port_that_cannot_be_reached_is_named_on_both(first: Meeting) -> None:
    second = replace(first, node=1, port=choose_port("127.0.0.1", 0), seconds=2)
    for error in _hold(first, second):
        assert str(error).startswith(
            f"main_address or main_port: node 1 on {socket.gethostname()} cannot reach {first.address}:{first.port} "
            "(Connection refused); open that port on node 0's firewall"
        )


def test_a_port_in_use(first: Meeting) -> None:
    with socket.create_server((first.address, first.port)):
        for error in _hold(first, replace(first, node=1, seconds=2)):
            assert str(error).startswith(
                f"main_port: {first.port} on 127.0.0.1 cannot be used (Address already in use)"
            )


def test_two_nodes_of_one_number(first: Meeting) -> None:
    second = replace(first, node=1)
    errors = [one for one in _hold(replace(first, num_nodes=3, seconds=2), second, second) if one]
    assert any(str(error).startswith("node_rank: 1 is this node's and ") for error in errors)


def test_a_node_that_has_ended_is_not_waited_for(first: Meeting) -> None:
    (error,) = _hold(replace(first, has_ended=lambda: True))
    assert isinstance(error, EndedElsewhere)


# ---- What is compared


def test_equal_nodes_and_each_difference() -> None:
    one = node_facts(8, 8, {"learning_rate": 1e-5, "seed": 1}, [])
    one["host"] = "a"
    assert differences([one, {**one, "host": "b"}]) == []

    def line(**values: Any) -> str:
        (told,) = differences([one, {**one, "host": "b", **values}])
        return told

    told = line(versions={**one["versions"], "torch": "1.0"})
    assert told == (
        f"versions: node 1 on b has torch 1.0, node 0 on a {one['versions']['torch']}; install the same on all"
    )
    assert line(num_ranks=4, num_gpus=4) == (
        "gpus: node 1 on b starts 4 ranks (of 4 GPUs), node 0 on a 8 (of 8 GPUs); set the same --gpus on all"
    )
    assert line(num_gpus=None) == "gpus: node 1 on b uses CPUs, node 0 on a uses GPUs; take nodes of one kind"
    assert line(mistakes=["model: no such"]) == "node 1 on b: model: no such"
    other = node_facts(8, 8, {"learning_rate": 2e-5, "bf16": True, "seed": 1}, [])["settings"]
    assert line(settings=other) == (
        "settings: node 1 on b has other values than node 0 on a for bf16, learning_rate; start the same command, with "
        "the same config, on all"
    )


def test_versions_name_the_code_too(tmp_path: Path) -> None:
    assert {"python", "torch", "transformers", "trl", "deepspeed", "rlhf"} <= versions().keys()
    package = tmp_path / "rlhf"
    package.mkdir()
    (package / "one.py").write_text("x = 1\n")
    before = code_hash(package)
    (package / "one.py").write_text("x = 2\n")
    assert code_hash(package) != before


# ---- GPU memory, with a stand-in for nvidia-smi


def _nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\ncat <<END\n{text}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_that_another_process_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(tmp_path, monkeypatch, "0, GPU-aa, 80000, 81920\n1, GPU-bb, 1024, 81920")
    preflight.check_gpu_memory(Place(1, 2, "127.0.0.1", 0))
    preflight.check_gpu_memory(Place(2, None, "127.0.0.1", 0))
    with pytest.raises(UserError, match=r"GPU 1 has 1.0 GiB of 80.0 GiB free, another process has the rest; end it"):
        preflight.check_gpu_memory(Place(2, 2, "127.0.0.1", 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert preflight.gpu_memory() == [("1", 2**30, 80 * 2**30)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")
    assert preflight.gpu_memory() == [("0", 80000 * 2**20, 80 * 2**30)]


def test_gpus_of_which_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(tmp_path, monkeypatch, "0, MIG-aa, [N/A], [N/A]")
    assert preflight.gpu_memory() == []
