"""Cost and lineage in a report: summed by hand, apart from what must be the same in two runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.cost import cost_since
from rlhf.compare.headline import headline
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sections.cost import duration
from rlhf.lineage import trace
from rlhf.records import Messages, Prompt, write_jsonl
from rlhf.runs import open_run
from tests.tiny import tiny_policy

# Seconds, tokens generated, tokens trained of each stage; device-hours are seconds / 3600.
STAGES = {
    "sft": (100.0, 0, 5000),
    "sample": (36.0, 400, 0),
    "export": (0.0, 0, 0),
    "reward": (72.0, 0, 3000),
    "dpo": (36.0, 0, 2000),
    "ppo": (108.0, 900, 4000),
}


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


def _made(place: Path, stage: str, metrics: dict[str, Any] | None = None, **inputs: Path) -> None:
    """A run folder of a stage, with a policy in it and a usage by hand."""
    folder = place / stage
    config = {name: str(path) for name, path in inputs.items()}
    with open_run(stage, folder, config | {"learning_rate": 1e-5}, dict(inputs)) as opened:
        if stage in ("sft", "dpo", "ppo"):
            tiny_policy(folder, seed=list(STAGES).index(stage))
        opened.finish(**(metrics or {}))
    written = json.loads((folder / "run.json").read_text())
    seconds, generated, trained = STAGES[stage]
    usage = {"seconds": seconds, "device_hours": seconds / 3600, "peak_memory_gib": 1 + seconds / 100}
    written["usage"] |= usage | {"tokens_generated": generated, "tokens_trained": trained, "energy_wh": None}
    (folder / "run.json").write_text(json.dumps(written))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft -> sample -> export -> dpo, and reward -> ppo; six prompts."""
    folder = tmp_path_factory.mktemp("cost")
    _made(folder, "sft")
    _made(folder, "sample", policy=folder / "sft")
    _made(folder, "export", {"num_annotators": 5, "num_votes": 1234}, rows=folder / "sample")
    _made(folder, "reward", model=folder / "sft", rows=folder / "export")
    _made(folder, "dpo", model=folder / "sft", rows=folder / "export")
    _made(folder, "ppo", model=folder / "sft", scores=folder / "reward")
    write_jsonl(
        folder / "prompts.jsonl", [Prompt(f"p{n}", [{"role": "user", "content": f"Number {n}"}]) for n in range(6)]
    )
    return folder


def _compared(place: Path, out: Path, *names: str) -> Path:
    settings = CompareConfig(
        policies=[str(place / name) for name in names],
        prompts=str(place / "prompts.jsonl"),
        output_dir=str(out),
        max_new_tokens=8,
        num_bootstrap=200,
    )
    run(Config(settings), {"gold": vowels})
    return out


def test_what_lies_between_the_start_and_a_policy_is_summed(place: Path) -> None:
    start = trace(place / "sft").runs
    cost = cost_since(list(trace(place / "ppo").runs.values()), start)
    assert cost is not None
    assert [stage for stage, _ in cost.stages] == ["sample", "export", "reward", "ppo"]
    assert cost.numbers == {
        "stages": [{"stage": stage, "seconds": STAGES[stage][0]} for stage in ("sample", "export", "reward", "ppo")],
        "seconds": 36 + 72 + 108,
        "device": "cpu",
        "device_hours": 0.06,
        "tokens_generated": 400 + 900,
        "tokens_trained": 3000 + 4000,
        "peak_memory_gib": 2.08,
        "energy_wh": None,
    }


def test_a_run_of_before_usage_was_recorded_leaves_the_cost_unknown(place: Path) -> None:
    runs = list(trace(place / "dpo").runs.values())
    old = dataclasses.replace(runs[1], run=dataclasses.replace(runs[1].run, usage={}))
    assert cost_since([runs[0], old], {}) is None
    assert cost_since(runs, trace(place / "dpo").runs) is None  # nothing was needed beyond the start


def test_the_report_of_three(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = _compared(place, tmp_path / "out", "sft", "dpo", "ppo")
    report, cost = (json.loads((out / name).read_text()) for name in ("report.json", "cost.json"))
    assert "cost" not in report  # no two runs take the same time
    assert cost["policies"]["sft"]["since"] is None
    assert cost["policies"]["sft"]["own"]["seconds"] == 100
    assert cost["policies"]["dpo"]["since"]["device_hours"] == 0.02
    gold = {name: numbers["gold"]["mean"] for name, numbers in report["policies"].items()}
    gain = cost["policies"]["ppo"]["gain_per_device_hour"]
    assert gain == pytest.approx((gold["ppo"] - gold["sft"]) / 0.06, rel=1e-4)
    shown, page = capsys.readouterr().out, (out / "report.html").read_text(encoding="utf-8")
    sentence = "ppo took 3.00 times the device time of dpo since sft (0.06 against 0.02 device-hours)"
    assert sentence in shown and sentence in page
    assert "sample 36 s, export 0 s, reward 72 s, ppo 2 min" in page

    lineage = report["lineage"]
    assert [lineage["runs"][id]["stage"] for id in lineage["models"]["ppo"]["runs"]] == [
        "sft",
        "sample",
        "export",
        "reward",
        "ppo",
    ]
    export = next(run for run in lineage["runs"].values() if run["stage"] == "export")
    assert (export["num_annotators"], export["num_votes"]) == (5, 1234)
    assert export["settings"] == {"learning_rate": 1e-5}  # no places
    assert "export (1,234 votes of 5 annotators)" in page


def test_two_runs_differ_in_no_report(place: Path, tmp_path: Path) -> None:
    one, two = (_compared(place, tmp_path / name, "sft", "dpo") for name in ("one", "two"))
    assert (one / "report.json").read_bytes() == (two / "report.json").read_bytes()
    assert str(place).encode() not in (one / "report.json").read_bytes()


def test_models_from_elsewhere_cost_nothing_known(tmp_path: Path) -> None:
    tiny_policy(tmp_path / "a")
    tiny_policy(tmp_path / "b", seed=1)
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt("p", [{"role": "user", "content": "Hello"}])])
    out = _compared(tmp_path, tmp_path / "out", "a", "b")
    assert not (out / "cost.json").exists()
    report = json.loads((out / "report.json").read_text())
    assert "lineage" not in report
    assert report["settings"]["held_out"]["unknown"] == ["a", "b", "reference"]


def _report(gold: float, other: float | None, hours: tuple[float, float] | None = None) -> dict[str, Any]:
    """ppo over dpo on these shares of prompts, give or take five points."""

    def pair(judge: str, mean: float) -> dict[str, Any]:
        low, high = mean - 0.05, mean + 0.05
        verdict = "ppo" if low > 0.5 else "dpo" if high < 0.5 else "undecided"
        rate = {"mean": mean, "low": low, "high": high, "n": 400}
        return {"a": "ppo", "b": "dpo", "judge": judge, "win_rate": rate, "ties": 0.0, "verdict": verdict}

    report: dict[str, Any] = {
        "policies": {"dpo": {}, "ppo": {}},
        "pairs": [pair("gold", gold), *([pair("reward_model", other)] if other is not None else [])],
        "settings": {"decided_by": "gold", "confidence": 0.95},
    }
    if hours:
        cost = {name: {"since": {"device_hours": one}} for name, one in zip(("ppo", "dpo"), hours, strict=True)}
        report["cost"] = {"policies": cost}
    return report


def test_the_headline_tells_cost_and_what_others_say() -> None:
    wins = "ppo beats dpo on 61% of 400 prompts by gold (95% interval 56% to 66%)"
    assert headline(_report(0.61, None)) == wins
    assert (
        headline(_report(0.61, 0.62, (3.1, 1.0))) == f"{wins}, at 3.10 times the device time; the reward model agrees"
    )
    assert headline(_report(0.61, 0.72, (1.05, 1.0))) == (
        f"{wins}, at the same device time; the reward model overstates it"
    )
    assert headline(_report(0.61, 0.52)) == f"{wins}; the reward model cannot tell them apart"
    assert headline(_report(0.61, 0.3)) == f"{wins}; the reward model prefers dpo"
    open_ = "undecided: ppo wins 52% of 400 prompts against dpo by gold (95% interval 47% to 57%, which holds 50%)"
    assert headline(_report(0.52, 0.52)) == f"{open_}; the reward model agrees"
    assert headline(_report(0.52, 0.7)) == f"{open_}; the reward model prefers ppo"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 99, 101, 3600, 5400)] == ["0 s", "99 s", "2 min", "60 min", "1.5 h"]
