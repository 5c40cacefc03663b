"""Resuming on another number of ranks: the same losses as if nothing had changed, or one line that says why not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.records import Demonstration, make_id, write_jsonl
from rlhf.resume import prepare_resume
from tests import ppo_cases, stages

ROOT = Path(__file__).parents[1]
ZERO = [None, 1, 2, 3]
STEPS, FIRST, SECOND = 9, 4, 7  # checkpoints at 4 and 7; an epoch has 4 steps of 8 examples
SHARED = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "use_cpu": True, "lr_scheduler_type": "linear"}
# The loss and all else that is logged, over three epochs, for sft and ppo.
TOLERANCE = 1e-4


def _command(place: Path, policy: Path, verb: str, num_ranks: int, zero: int | None, **values: Any) -> list[str]:
    """The verb on so many ranks with 8 examples a step."""
    if verb == "ppo":
        own = {key: value for key, value in ppo_cases.SETTINGS.items() if key != "logging_nan_inf_filter"}
        own |= {"prompts": str(place / "prompts.jsonl"), "reward": ["tests.ppo_cases:count_e_in_texts"]}
        own |= {"per_device_train_batch_size": 8 // num_ranks, "kl_target": 0.5, "value_learning_rate": 1e-2}
    else:
        own = {**stages.TRAINING, "demonstrations": str(place / "demonstrations.jsonl"), "learning_rate": 3e-3}
        own |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // num_ranks}
    if zero:
        own["deepspeed"] = str(ROOT / "launch" / f"zero{zero}.json")
    config = place / f"{verb}-{num_ranks}.yaml"
    # Weights that decay and weights that do not: two groups of the optimizer, with settings of their own.
    settings = {**own, **SHARED, "weight_decay": 0.5, "model_name_or_path": str(policy), **values}
    config.write_text(json.dumps(settings))  # JSON is YAML
    return [verb, "--config", str(config)]


def _run(place: Path, plan: list[tuple[int, list[str]]]) -> list[tuple[list[int], str]]:
    """Exit codes and output of each command."""
    file = place / f"plan{len(list(place.glob('plan*.json')))}.json"
    file.write_text(json.dumps(plan))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "tests/other_ranks.py", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, Path(f"{file}.{at}.log").read_text()) for at, code in enumerate(codes)]


def _cut_off(run: Path, step: int, to: Path) -> Path:
    """The run as if it had been stopped after that step."""
    to.mkdir(exist_ok=True)
    shutil.copytree(run / f"checkpoint-{step}", to / f"checkpoint-{step}")
    shutil.copy(run / "metrics.jsonl", to)
    record = json.loads((run / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({**record, "finished": False, "metrics": {}}))
    return to


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and prompts of which no two steps have the same loss."""
    folder, rows = tmp_path_factory.mktemp("ranks"), []
    for n in range(32):
        reply = f"{n * n} " + ["Thank", "you", "kind", "shoes", "shop"][n % 5] * (n % 7)
        messages = [
            {"role": "user", "content": f"{stages.QUESTIONS[n % 4]} {n}"},
            {"role": "assistant", "content": reply},
        ]
        rows.append(Demonstration(make_id("dem", messages), messages))
    write_jsonl(folder / "demonstrations.jsonl", rows)
    stages.prompts(folder / "prompts.jsonl", 32)
    return folder


def _losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def _resume(place: Path, policy: Path, verb: str, num_ranks: int, zero: int | None, run: Path) -> tuple[list[int], str]:
    command = _command(place, policy, verb, num_ranks, zero, resume=True, output_dir=str(run))
    return _run(place, [(num_ranks, command)])[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["sft", "ppo"])
@pytest.mark.parametrize("zero", ZERO)
def test_two_ranks_go_on_as_one_and_one_as_two(place: Path, policy_folder: Path, verb: str, zero: int | None) -> None:
    whole, one, two = (place / f"{verb}-{zero}-{name}" for name in ("whole", "one", "two"))
    command = _command(place, policy_folder, verb, 2, zero, output_dir=str(whole))
    [(codes, log)] = _run(place, [(2, command)])
    assert codes == [0, 0], log[-3000:]
    codes, log = _resume(place, policy_folder, verb, 1, zero, _cut_off(whole, FIRST, one))
    assert codes == [0], log[-3000:]
    codes, log = _resume(place, policy_folder, verb, 2, zero, _cut_off(one, SECOND, two))
    assert codes == [0, 0], log[-3000:]
    expected = _losses(whole)
    assert len(expected) == STEPS
    assert _losses(one) == pytest.approx(expected, abs=TOLERANCE)
    assert _losses(two) == pytest.approx(expected, abs=TOLERANCE)


def _trainer(checkpoint: Path, ranks: int, batch: int, stage: int | None) -> Any:
    """What `prepare_resume` asks of a trainer before it converts anything."""
    attributes = {"num_ranks": 2, "global_batch": 8}
    callbacks = {"NumRanks": {"args": {}, "attributes": attributes}}
    (checkpoint / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": callbacks}))
    plugin = SimpleNamespace(zero_stage=stage) if stage else None
    return SimpleNamespace(
        args=SimpleNamespace(train_batch_size=batch, world_size=ranks, gradient_accumulation_steps=1),
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )


@pytest.mark.parametrize(
    ("ranks", "batch", "stage", "files", "message"),
    [
        (1, 4, None, [], "made with 8 examples a step, on 2 ranks, and now there would be 4, on 1 rank; keep it: "),
        (1, 4, None, [], "--per_device_train_batch_size times --gradient_accumulation_steps must be 8"),
        (3, 4, None, [], "resume on a number of ranks that divides 8"),
        (1, 8, None, ["mp_rank_00_model_states.pt"], "its optimizer is DeepSpeed's; resume with the same --deepspeed"),
        (1, 8, 2, None, "has no optimizer of DeepSpeed; resume without --deepspeed"),
        (1, 8, 3, ["mp_rank_00_model_states.pt"], "is of ZeRO-1 or 2, and this is ZeRO-3; resume with ZeRO-1 or 2"),
        (
            1,
            8,
            2,
            ["zero_pp_rank_0_mp_rank_00_model_states.pt"],
            "is of ZeRO-3, and this is ZeRO-2; resume with ZeRO-3",
        ),
    ],
)
def test_what_cannot_go_on_is_one_line(
    tmp_path: Path, ranks: int, batch: int, stage: int | None, files: list[str] | None, message: str
) -> None:
    if files:
        (tmp_path / "global_step4").mkdir()
        for name in files:
            (tmp_path / "global_step4" / name).touch()
    with pytest.raises(UserError) as error:
        prepare_resume(_trainer(tmp_path, ranks, batch, stage), tmp_path)
    assert message in str(error.value)
