"""`--open true`: the page in a browser where there is a display, else its path; and the files beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.tables import pairs_csv, policies_csv
from rlhf.records import Prompt, write_jsonl
from rlhf.runs import read_run
from tests.test_compare_frontier_section import BOTH
from tests.test_compare_run import report_of
from tests.tiny import tiny_policy


def shown(path: Path, **env: str) -> str:
    """What `show_page` prints in a process of its own, with no other display than `env` names."""
    code = f"from pathlib import Path; from rlhf.compare.page.show import show_page; show_page(Path({str(path)!r}))"
    rest = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    done = subprocess.run([sys.executable, "-c", code], env=rest | env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_a_display_gets_a_browser_and_a_terminal_the_path(tmp_path: Path) -> None:
    page = tmp_path / "a report.html"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/asked"\n')
    browser.chmod(0o755)
    assert shown(page, BROWSER=str(browser)) == f"report: {page}\n" and not (tmp_path / "asked").exists()
    assert shown(page, BROWSER=str(browser), WAYLAND_DISPLAY="wayland-0") == ""
    assert (tmp_path / "asked").read_text() == f"file://{tmp_path}/a%20report.html\n"
    browser.write_text("#!/bin/sh\nexit 1\n")
    assert shown(page, BROWSER=str(browser), DISPLAY=":0", PATH=str(tmp_path / "empty")) == f"report: {page}\n"


def test_a_run_writes_its_files_and_ends_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    tiny_policy(tmp_path / "sft", seed=0)
    tiny_policy(tmp_path / "dpo", seed=1)
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(f"p{n}", [{"role": "user", "content": "Hi"}]) for n in range(3)])
    policies = [str(tmp_path / name) for name in ("sft", "dpo")]
    out = tmp_path / "out"
    settings = CompareConfig(policies, str(tmp_path / "prompts.jsonl"), str(out), max_new_tokens=4, open=True)
    run(Config(settings), BOTH)
    report = report_of(out)
    assert (out / "policies.csv").read_bytes().decode() == policies_csv(report)
    assert (out / "pairs.csv").read_bytes().decode() == pairs_csv(report)
    assert (out / "report.md").read_text(encoding="utf-8").startswith("## Comparison of sft, dpo\n\n**Undecided")
    assert "open" not in read_run(out).config  # it changes no result, and a run may be resumed with another
    if sys.platform == "linux":
        assert capsys.readouterr().out.endswith(f"report: {out / 'report.html'}\n")
