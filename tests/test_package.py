"""`pip install .` outside the checkout: a wheel in an empty venv has its configs and runs a stage."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_venv(tmp_path: Path) -> None:
    """The libraries come from this venv (a .pth line; its own editable rlhf is not seen that way)."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("rlhf-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def rlhf(*argv: str) -> str:
        command = [str(python.with_name("rlhf")), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=elsewhere, env=env).stdout

    where = subprocess.run(
        [python, "-c", "import rlhf; print(rlhf.__file__)"], capture_output=True, text=True, cwd=elsewhere, check=True
    )
    assert str(site) in where.stdout
    assert "prepare" in rlhf("--help")
    assert "configs/recipes/demo.yaml" in rlhf("configs")
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(20)]
    (elsewhere / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rlhf("prepare", "--config", "configs/prepare.yaml", "--input", "rows.jsonl", "--output_dir", "out")
    assert json.loads((elsewhere / "out" / "run.json").read_text())["finished"]
    for extra in (
        "compare/page/report.html.jinja",
        "compare/sections/agreement.html.jinja",
        "compare/sections/standing.html.jinja",
        "compare/judge_prompts/general.txt",
        "compare/lexicons/toxicity.txt",
        "configs/templates/user_bot.jinja",
        "launch/README.md",
    ):
        assert (site / "rlhf" / extra).is_file()
