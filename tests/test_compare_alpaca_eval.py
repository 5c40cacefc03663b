"""Our win rates against alpaca_eval's own, which benchmarks/alpaca_eval_parity.py had it say of the same verdicts."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SAID: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "alpaca_eval.json").read_text())["studies"]
REAL = [name for name in SAID if not name.startswith("made")]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.import_module("alpaca_eval_parity")
    monkeypatch.delitem(sys.modules, "alpaca_eval_parity")
    return found


def _theirs(name: str) -> dict[str, float]:
    """As alpaca_eval says it, in percent."""
    return {
        key: 100 * SAID[name][f"alpaca_eval{what}"]
        for key, what in (
            ("win_rate", ""),
            ("standard_error", "_standard_error"),
            ("controlled", "_controlled"),
            ("controlled_free", "_controlled_free"),
        )
    }


def _is_alpaca_evals(row: dict[str, float]) -> None:
    assert row["ours"] == pytest.approx(row["alpaca_eval"], abs=1e-9)
    assert row["ours_standard_error"] == pytest.approx(row["alpaca_eval_standard_error"], abs=1e-3)
    assert row["ours_controlled_free"] == pytest.approx(row["alpaca_eval_controlled_free"], abs=1e-6)


def test_on_made_verdicts(parity: Any) -> None:
    studies = dict(parity.made())
    assert len(studies) == len(SAID) - len(REAL) == 3
    for name, study in studies.items():
        row = parity.beside(study, _theirs(name))
        _is_alpaca_evals(row)
        assert row["ours_controlled"] == pytest.approx(row["alpaca_eval_controlled"], abs=1e-3)  # with its penalty


def test_on_peoples_verdicts(parity: Any, shared: Path) -> None:
    studies = dict([*parity.qa_feedback(shared / "data"), parity.hh(shared / "data")])
    assert list(studies) == REAL
    for name, study in studies.items():
        _is_alpaca_evals(parity.beside(study, _theirs(name)))


def test_the_table_in_the_docs_is_these_results(parity: Any) -> None:
    rows = [line for line in parity.table(SAID).splitlines() if line.startswith("|")]
    text = (ROOT / "docs" / "results.md").read_text()
    assert "\n".join(rows[2:]) in text
