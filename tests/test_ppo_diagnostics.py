"""The doctor: what it says of a whole run, what it does not know, how it shows and where it reads."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.errors import UserError
from rlhf.ppo.diagnostics import CHECKS, Finding, diagnose, examine, table
from rlhf.ppo.series import by_step
from rlhf.runs import open_run
from tests.doctor_cases import CONFIG, finding, healthy, with_figures


def test_a_healthy_run_is_good_throughout() -> None:
    findings = diagnose(healthy(), CONFIG)
    assert [(found.name, found.verdict) for found in findings if found.verdict != "good"] == []
    assert len(findings) == 13


def test_every_finding_says_in_a_sentence_what_it_means_and_what_to_change() -> None:
    sick = with_figures(healthy(), eos_rate=0.1, clip_fraction=0.5, approx_kl=1.0, explained_variance=-1.0)
    for found in diagnose(healthy(), CONFIG) + diagnose(sick, CONFIG) + diagnose(healthy(2), {}):
        assert found.figure
        assert found.meaning.endswith("."), found
        assert found.mend.endswith("."), found


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_few_rounds_are_too_early_for_trends(num_rounds: int) -> None:
    sick = with_figures(healthy(num_rounds), eos_rate=0.0, clip_fraction=0.9, approx_kl=9.0, explained_variance=-9.0)
    found = {one.name: one for one in diagnose(sick, CONFIG)}
    at_once = {"skipped updates", "first-minibatch ratio", "KL at the start", "KL and its ceiling", "time"}
    assert {name for name, one in found.items() if one.verdict == "good"} == at_once
    assert {one.figure for name, one in found.items() if name not in at_once} == {"too early"}
    assert found["entropy"].meaning == f"There are {num_rounds} of the 4 rounds it takes to tell."


def test_the_fourth_round_is_enough_and_the_score_waits_for_the_eighth() -> None:
    assert finding("replies that end", healthy(4)).verdict == "good"
    assert finding("score", healthy(7)).figure == "too early"
    assert finding("score", healthy(8)).verdict == "good"


def test_what_is_not_logged_is_unknown() -> None:
    for found in diagnose([{"step": n, "loss": 0.1} for n in range(9)], CONFIG):
        assert found.verdict == "unknown", found
    assert finding("entropy", [{"step": n} for n in range(9)]).meaning == "No row holds `entropy`."


def test_rows_of_a_step_are_one_and_a_resumed_run_forgets_what_it_lost() -> None:
    rows = [
        {"step": 1, "score": 1.0},
        {"step": 2, "score": 2.0},
        {"step": 2, "eval_score": 9.0},
        {"step": 3, "score": 3.0},
        {"step": 4, "score": 4.0},
        {"step": 3, "score": 3.5},  # resumed from checkpoint-2
        {"score": 7.0},
    ]
    assert by_step(rows) == [
        {"step": 1, "score": 1.0},
        {"step": 2, "score": 2.0, "eval_score": 9.0},
        {"step": 3, "score": 3.5},
    ]


def test_the_table_fits_a_console_of_80_columns_and_says_everything() -> None:
    sick = with_figures(
        healthy(),
        eos_rate=0.1,
        clip_fraction=0.5,
        approx_kl=1.0,
        explained_variance=-1.0,
        kl=[1.0] * 11 + [1234.5],
        ratio__first_deviation=0.123456,
        length=[40.0] * 6 + [4000.0] * 6,
        entropy=[2.0] * 6 + [0.001] * 6,
        updates_skipped=[3.0] * 12,
    )
    for findings in (diagnose(healthy(), CONFIG), diagnose(sick, CONFIG), diagnose(healthy(2), {})):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table(findings))
        text = console.export_text()
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert "…" not in text
        told = text.replace("->", " ")
        for found in findings:
            sentences = f"{found.name} {found.figure} {found.meaning} {found.mend if found.verdict != 'good' else ''}"
            for word in sentences.replace("->", " ").split():
                assert word in told, word


def test_the_table_has_the_worst_first_and_mends_only_where_needed() -> None:
    findings = [Finding(verdict, verdict, "1", "Means.", f"Mend {verdict}.") for verdict in ("good", "watch", "bad")]  # type: ignore[arg-type]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(findings))
    text = console.export_text()
    assert text.index("Mend bad.") < text.index("Mend watch.")
    assert "Mend good." not in text
    assert "1 bad, 1 watch, 0 unknown, 1 good" in text


def test_rich_tags_in_a_finding_are_plain_text() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table([Finding("n", "bad", "[red]1", "A [bold]word.", "[x]")]))
    assert "[red]1" in (text := console.export_text())
    assert "[bold]word." in text


def ppo_run(folder: Path, lines: list[str], stage: str = "ppo") -> Path:
    """A run folder that was never finished."""
    with open_run(stage, folder, CONFIG, {}) as run:
        if lines:
            (run.path / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def test_an_unfinished_run_is_examined_its_torn_last_line_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in healthy()]
    folder = ppo_run(tmp_path / "run", [*lines, lines[-1][:40]])
    assert examine(folder) == diagnose(healthy(), CONFIG)
    assert examine(str(folder)) == examine(folder)


def test_a_nan_in_the_file_is_found(tmp_path: Path) -> None:
    folder = ppo_run(tmp_path / "run", [json.dumps(row) for row in with_figures(healthy(), loss=float("nan"))])
    assert examine(folder)[0].verdict == "bad"


def test_errors_name_the_folder_and_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(no run\.json\); give the output_dir"):
        examine(tmp_path)
    other = ppo_run(tmp_path / "dpo", ['{"step": 1}'], stage="dpo")
    with pytest.raises(UserError, match=r"dpo: is a dpo run; doctor reads PPO runs: give the output_dir of `rlhf ppo`"):
        examine(other)
    for number, lines in enumerate(([], ["", "{"], ['{"epoch": 1}', "[1]", '"text"'])):
        with pytest.raises(UserError, match=r"metrics\.jsonl: holds no metrics yet; wait for the first round"):
            examine(ppo_run(tmp_path / f"empty{number}", lines))


def test_the_doctor_starts_without_torch() -> None:
    code = "import sys, rlhf.ppo.diagnostics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_mends_name_keys_that_the_config_has() -> None:
    """Every snake_case word in a mend is one of PPOConfig's keys or ModelConfig's."""
    import dataclasses
    import re

    from trl import ModelConfig

    from rlhf.ppo.config import PPOConfig

    known = {field.name for kind in (PPOConfig, ModelConfig) for field in dataclasses.fields(kind)}
    modules = {check.judge.__module__ for check in CHECKS} | {Finding.__module__}
    judges = "".join(Path(sys.modules[module].__file__ or "").read_text() for module in modules)
    mends = " ".join(re.findall(r'"([^"\n]*(?:Set|Raise|Lower|raise|lower)[^"\n]*)"', judges))
    words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", mends))
    assert len(words) > 15
    values = {"adapter_off", "vllm_server", "peak_mb"}
    assert words - known - values == set()
    assert len({check.name for check in CHECKS}) == len(CHECKS)
