"""Pushing a policy to the Hub: Trainer's own push, against a server that speaks the Hub's upload API.

The Hub itself cannot be reached here, so the other end is this file's: it takes every file inline and keeps it.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rlhf.models import load_policy

PUSH = """
import sys
from pathlib import Path
from tests import ppo_cases as cases
keys = {"push_to_hub": True, "hub_model_id": "somebody/my-policy", "hub_token": "hf_test", "max_steps": 1}
trainer = cases.trainer(Path(sys.argv[1]), Path(sys.argv[2]), **keys)
trainer.train()
trainer.push_to_hub(commit_message="trained")
"""


class Hub(BaseHTTPRequestHandler):
    """The calls of huggingface_hub's create_repo and upload_folder; `files` is what was committed."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        self._answer({"name": "somebody", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.headers["Authorization"] == "Bearer hf_test"
        if self.path.startswith("/api/repos/create"):
            self._answer({"url": f"{_url(self.server)}/somebody/my-policy", "name": "somebody/my-policy"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self._answer({"commitOid": "0" * 40, "commitUrl": f"{_url(self.server)}/somebody/my-policy/commit/0"})
        else:
            self._answer({"errors": [], "warnings": []})  # validate-yaml: the model card's header

    def _answer(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def _url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The server's address, and what is pushed to it."""
    files: dict[str, bytes] = {}
    handler = type("OneHub", (Hub,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield _url(server), files
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pushed_policy_is_a_plain_checkpoint(
    policy_folder: Path, tmp_path: Path, hub: tuple[str, dict[str, bytes]]
) -> None:
    endpoint, files = hub
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PUSH, str(policy_folder), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    assert "- ppo" in files["README.md"].decode().splitlines()  # among the card's tags
    pushed = tmp_path / "pushed"
    for name, content in files.items():
        (pushed / name).parent.mkdir(parents=True, exist_ok=True)
        (pushed / name).write_bytes(content)
    assert load_policy(str(pushed)).tokenizer.chat_template
