"""`rlhf label` as a real process for tests: started, killed, started again on the same store and port."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from rlhf.ports import choose_port


class LabelServer:
    """The app on a store in a folder; `flags` as on the command line."""

    def __init__(self, folder: Path, **flags: object) -> None:
        self.folder = folder
        self.port = choose_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = str(flags.pop("store", folder / "labels.db"))
        self._flags = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "LabelServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGTERM)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "rlhf", "label", "--store", self.store, "--port", str(self.port)]
        log = (self.folder / "server.log").open("a")
        self._process = subprocess.Popen([*command, *self._flags], stdout=log, stderr=log, text=True, cwd=self.folder)
        log.close()
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < deadline, f"no answer in two minutes\n{self.printed()}"
            time.sleep(0.1)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, by default as a power cut does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def printed(self) -> str:
        """What it has printed so far."""
        return (self.folder / "server.log").read_text()

    def first_link(self) -> str:
        """The invitation that makes the first admin."""
        found = re.search(r"http\S+/join/\S+", self.printed())
        assert found, self.printed()
        return found.group()

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False
