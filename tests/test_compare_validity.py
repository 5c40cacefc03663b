"""A small version of benchmarks/compare_validity.py: the functions of a comparison on studies whose truth is known."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

STUDIES = 100


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "compare_validity.py"
    spec = importlib.util.spec_from_file_location("compare_validity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_validity"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "truth",
    [
        "A = B",
        "A better by 5 points",
        "several rows of a prompt, A = B",
        "40% ties, A = B",
        "judge likes the first place, A = B",
        "judge likes the first place, A better",
    ],
)
def test_a_truth_is_held_and_nothing_false_is_found(benchmark: Any, truth: str) -> None:
    """Of 100 studies: 95 hold on average, and 88 or fewer only once in 300."""
    found = [benchmark.one_study(truth, 200, seed) for seed in range(STUDIES)]
    for row in benchmark.summary(truth, found):
        if row["figure"] not in benchmark.UNCONTROLLED:
            assert row["coverage"] >= 0.89 and row["false"] <= 0.11, row
            assert abs(row["bias"]) < 0.03, row


def test_what_misses_is_told(benchmark: Any) -> None:
    row = {"figure": "win rate", "coverage": 0.9, "false": 0.06, "bias": 0.01, "error_of_bias": 0.001}
    assert benchmark.misses(row) == ["coverage", "false", "bias"]
    assert benchmark.misses(row | {"figure": "raw"}) == []
    assert benchmark.misses(row | {"coverage": 0.95, "false": 0.05, "bias": 0.003}) == []
