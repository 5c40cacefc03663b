"""the study of benchmarks/demo_compare.py: its recipe fits the stages, people are counted against gold, a figure."""

import importlib
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import from_values
from rlhf.demo.run import DEMO_STAGES
from rlhf.loop import STAGES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The scripts as modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("demo_study", "demo_compare", "demo_compare_figure")
    found = {name: importlib.import_module(name) for name in names}
    for name in (*names, "figures", "svg"):
        monkeypatch.delitem(sys.modules, name)  # others may have modules of these names
    return found


def test_the_recipe_is_the_demos_with_sweeps(study: dict[str, Any]) -> None:
    stages = study["demo_study"].study_recipe()["stages"]
    for name, values in stages.items():
        module = (STAGES | DEMO_STAGES)[name.split(".")[0]]
        config = from_values(importlib.import_module(module).Config, values | {"output_dir": "out"}, name)
        assert config, name
    assert [name for name in stages if name.startswith(("dpo", "ppo"))] == [
        "dpo",
        "ppo",
        "dpo.beta-0.03",
        "dpo.beta-0.5",
        "ppo.kl-0.1",
        "ppo.kl-1",
    ]
    assert stages["dpo.beta-0.5"] == stages["dpo"] | {"beta": 0.5}
    assert stages["compare"]["sweeps"][0] == "dpo=dpo.beta-0.03/"


def test_verdicts_of_people_are_counted_against_golds(study: dict[str, Any]) -> None:
    def pair(gold: str, people: str) -> dict[str, Any]:
        return {"gold": {"verdict": gold}, "people": {"verdict": people}}

    rows = [
        {"people": [pair("dpo", "dpo"), pair("dpo", "undecided"), pair("undecided", "ppo")]},
        {"people": [pair("undecided", "undecided"), pair("dpo", "ppo")]},
    ]
    assert study["demo_compare"].same_verdicts(rows, "people") == {
        "same": 2,
        "people undecided": 1,
        "gold undecided": 1,
        "opposite": 1,
    }


def test_the_figure_has_a_panel_a_seed(study: dict[str, Any]) -> None:
    def figure(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    def point(method: str, kl: float, gold: float, step: int | None = None) -> dict[str, Any]:
        return {"method": method, "run": method, "step": step, "kl": figure(kl), "gold": figure(gold)}

    part = {
        "start": point("start", 0, 0.5),
        "points": [point("dpo", 1, 0.6, 20), point("dpo", 2, 0.7), point("ppo", 3, 0.8), point("best-of-n", 1, 0.6)],
    }
    drawn = ET.fromstring(study["demo_compare_figure"].draw({0: part, 3: part}))
    words = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("Seed 0") == words.count("Seed 3") == 1
    shapes = [len(list(drawn.iter(f"{{http://www.w3.org/2000/svg}}{kind}"))) for kind in ("circle", "polygon", "rect")]
    assert shapes == [1 + 2, 1 + 2 * 2, 1 + 1 + 2 * 2]  # the legend's, the panels'; the paper; best-of-n and the start
