"""docs/multi-gpu.md holds the tables of benchmarks/multi_gpu.py's results, and the results are the planner's."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# As the models' cards on huggingface.co count them (safetensors, without buffers).
KNOWN = {
    "Qwen2.5 0.5B": 494_032_768,
    "Qwen2.5 1.5B": 1_543_714_304,
    "Qwen2.5 7B": 7_615_616_512,
    "Llama 3.1 8B": 8_030_261_248,
    "Qwen2.5 14B": 14_770_033_664,
    "Qwen2.5 32B": 32_763_876_352,
    "Llama 3.1 70B": 70_553_706_496,
}


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("multi_gpu", ROOT / "benchmarks" / "multi_gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["multi_gpu"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(benchmark: Any) -> dict[str, Any]:
    return json.loads(benchmark.RESULTS.read_text())


def test_shapes_are_the_models(benchmark: Any) -> None:
    assert {shape.name: shape.num_weights for shape in benchmark.SHAPES} == KNOWN


def test_the_page_holds_the_results(benchmark: Any, results: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "multi-gpu.md").read_text()
    for verb in benchmark.WAYS:
        assert benchmark.table(results["rows"], verb) in page


def test_the_results_are_of_these_settings(benchmark: Any, results: dict[str, Any]) -> None:
    assert results["values"] == benchmark.VALUES
    asked = {(verb, s.name, m.name) for verb in benchmark.WAYS for s in benchmark.SHAPES for m in benchmark.MACHINES}
    assert {(row["verb"], row["model"], row["machines"]) for row in results["rows"]} == asked
    memory = {machines.name: machines.memory for machines in benchmark.MACHINES}
    for row in results["rows"]:
        for plan in filter(None, (row["full"], row["lora"])):
            assert not plan["fits"] or plan["peak"] <= 0.9 * memory[row["machines"]] * 2**30


@pytest.mark.parametrize(("verb", "machines"), [("sft", "8 x 24 GB"), ("ppo", "16 nodes of 8 x 80 GB")])
def test_the_planner_still_says_so(benchmark: Any, results: dict[str, Any], verb: str, machines: str) -> None:
    shape, place = benchmark.SHAPES[0], next(each for each in benchmark.MACHINES if each.name == machines)
    (found,) = benchmark.rows_of(verb, shape, [place])
    key = verb, shape.name, machines
    told = next(row for row in results["rows"] if (row["verb"], row["model"], row["machines"]) == key)
    assert found["full"]["setting"] == told["full"]["setting"]
    assert found["full"]["peak"] == pytest.approx(told["full"]["peak"], rel=0.02)


def test_what_the_planner_adds_up_by_hand(benchmark: Any, tmp_path: Path) -> None:
    """70B over 32 ranks with ZeRO-3: 16 bytes a weight over all GPUs of all nodes."""
    from rlhf.config import from_values
    from rlhf.planner.memory import account
    from rlhf.planner.options import PlanOptions, Setting
    from rlhf.planner.stages import Stage

    shape = benchmark.SHAPES[-1]
    values = benchmark.VALUES["sft"] | {"model_name_or_path": str(shape.write(tmp_path)), "max_length": 16}
    options = PlanOptions(gpus=8, nodes=4)
    stage = Stage("sft", from_values(benchmark._config_type("sft"), values, "sft"), options)
    found = account(stage, Setting(zero=3, checkpointing=True), options)
    step = next(moment for moment in found.moments if moment.phase == "step")
    kept = sum(part.bytes for part in step.parts if part.kind in ("parameters", "gradients", "optimizer"))
    assert kept == pytest.approx(16 * KNOWN[shape.name] / 32, rel=1e-6)
