"""launch/with-vllm.sh, with stand-ins for `vllm` and `nvidia-smi`, which no machine here has."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf.ppo.vllm_engine import SERVE

SCRIPT = Path(__file__).parents[1] / "launch" / "with-vllm.sh"
# Writes down how it was called; serves /health, and ends when the file `die` is there.
SERVER = """#!{python}
import http.server, json, os, pathlib, sys, threading, time
place = pathlib.Path({place!r})
facts = {{"argv": sys.argv[1:], "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "mode": os.environ["VLLM_SERVER_DEV_MODE"]}}
(place / "server.json").write_text(json.dumps(facts | {{"pid": os.getpid()}}))
def watch():
    while not (place / "die").exists():
        time.sleep(0.05)  # until the test makes the file
    print("out of memory", flush=True)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("localhost", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    stand_ins = {
        "vllm": SERVER.format(python=sys.executable, place=str(tmp_path)),
        "nvidia-smi": "#!/bin/sh\nseq 0 7\n",
        "python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def _start(place: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    own = {"PATH": f"{place / 'bin'}:{kept['PATH']}", "SERVER_PORT": str(port), "VLLM_LOG": str(place / "vllm.log")}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env={**kept, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _server(place: Path) -> dict[str, object]:
    return json.loads((place / "server.json").read_text())


def _until(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)  # another process's file: nothing to wait on but it


def test_the_last_gpus_are_the_server_s_and_the_command_has_the_others(place: Path) -> None:
    done = _start(place, "runs/sft", "2", "sh", "-c", "echo gpus $CUDA_VISIBLE_DEVICES; exit 7")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out, err) == (7, "gpus 0,1,2,3,4,5\n", "")
    server = _server(place)
    assert (server["gpus"], server["mode"]) == ("6,7", "1")
    argv = server["argv"]
    assert isinstance(argv, list) and argv[:4] == ["serve", "runs/sft", "--tensor-parallel-size", "2"]
    assert not psutil.pid_exists(int(str(server["pid"])))
    for word in ("--weight-transfer-config", '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs"):
        assert word in argv and word in SERVE  # what PPO's engine asks for


def test_only_the_gpus_that_the_job_has_are_shared_out(place: Path) -> None:
    done = _start(place, "m", "1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", CUDA_VISIBLE_DEVICES="3,5,9")
    assert done.communicate(timeout=60)[0] == "3,5\n"
    assert _server(place)["gpus"] == "9"


def test_a_server_that_does_not_come_up_is_told_with_its_last_lines(place: Path) -> None:
    (place / "die").touch()
    done = _start(place, "m", "1", "touch", str(place / "ran"))
    _, err = done.communicate(timeout=60)
    assert done.returncode == 3
    assert "the vLLM server ended before it was up; its last lines, of" in err and "out of memory" in err
    assert not (place / "ran").exists()


def test_a_server_that_is_too_slow_is_ended(place: Path) -> None:
    (place / "bin" / "vllm").write_text("#!/bin/sh\nexec sleep 600\n")
    done = _start(place, "m", "1", "true", SERVER_SECONDS="1")
    _, err = done.communicate(timeout=60)
    assert done.returncode == 3 and "was not up after 1 s" in err


def test_a_server_that_dies_ends_the_command(place: Path) -> None:
    done = _start(place, "m", "1", "sh", "-c", f"echo $$ >{place}/command; exec sleep 600")
    _until(place / "command")
    (place / "die").touch()
    _, err = done.communicate(timeout=60)
    assert done.returncode == 3
    assert "the vLLM server ended while the command ran, which is stopped" in err
    assert not psutil.pid_exists(int((place / "command").read_text()))


def test_sigterm_ends_both_and_sigusr1_goes_to_the_command(place: Path) -> None:
    asked = f"trap 'echo asked; exit 75' USR1; touch {place}/ready; while :; do sleep 0.05; done"
    done = _start(place, "m", "1", "sh", "-c", asked)
    _until(place / "ready")
    done.send_signal(signal.SIGUSR1)
    assert done.communicate(timeout=60)[0] == "asked\n" and done.returncode == 75
    (place / "ready").unlink()
    done = _start(place, "m", "1", "sh", "-c", f"echo $$ >{place}/command; touch {place}/ready; exec sleep 600")
    _until(place / "ready")
    done.send_signal(signal.SIGTERM)
    done.communicate(timeout=60)
    assert done.returncode == 143
    assert not psutil.pid_exists(int((place / "command").read_text()))
    assert not psutil.pid_exists(int(str(_server(place)["pid"])))


@pytest.mark.parametrize("words", [(), ("m",), ("m", "2"), ("m", "0", "true"), ("m", "x", "true")])
def test_what_it_needs_is_said(place: Path, words: tuple[str, ...]) -> None:
    done = _start(place, *words)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 2 and err.startswith("usage: with-vllm.sh MODEL N COMMAND")


def test_gpus_for_the_command_must_be_left(place: Path) -> None:
    done = _start(place, "m", "8", "true")
    _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (
        2,
        "with-vllm.sh: 8 GPUs for vLLM leave none of 8 for the command; lower N\n",
    )


def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)
