"""Resuming on another number of ranks: the same losses as if nothing had changed, or one line that says why not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.records import Demonstration, Preference, make_id, write_jsonl
from rlhf.resume import prepare_resume
from tests import ppo_cases, stages

ROOT = Path(__file__).parents[1]
ZERO = [None, 1, 2, 3]
STEPS, FIRST, SECOND = 9, 4, 7  # checkpoints at 4 and 7; an epoch has 4 steps of 8 examples
SHARED = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "use_cpu": True, "lr_scheduler_type": "linear"}
# Of the loss, over three epochs. Dropout is drawn anew by other ranks: none here.
TOLERANCE = 1e-4
FILES = {"sft": "demonstrations", "reward": "preferences", "dpo": "preferences", "ppo": "prompts"}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def _command(place: Path, policy: Path, kind: str, num_ranks: int, zero: int | None, **values: Any) -> list[str]:
    """The verb (or VERB-lora) on so many ranks with 8 examples a step."""
    verb, _, lora = kind.partition("-")
    values |= {FILES[verb]: str(place / f"{FILES[verb]}.jsonl")} | (LORA if lora else {})
    if verb == "ppo":
        own = {key: value for key, value in ppo_cases.SETTINGS.items() if key != "logging_nan_inf_filter"}
        own |= {"reward": ["tests.ppo_cases:count_e_in_texts"]}
        own |= {"per_device_train_batch_size": 8 // num_ranks, "kl_target": 0.5, "value_learning_rate": 1e-2}
    else:
        own = {**stages.TRAINING, "learning_rate": 3e-3}
        own |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // num_ranks}
        own |= {"num_kl_prompts": 0} if verb == "dpo" else {}
    if zero:
        own["deepspeed"] = str(ROOT / "launch" / f"zero{zero}.json")
    config = place / f"{kind}-{num_ranks}.yaml"
    # Weights that decay and weights that do not: two groups of the optimizer, with settings of their own.
    settings = {**own, **SHARED, "weight_decay": 0.5, "model_name_or_path": str(policy), **values}
    config.write_text(json.dumps(settings))  # JSON is YAML
    return [verb, "--config", str(config)]


class Ranks:
    """A process, with a process group of its own, that starts ranks of verbs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        self.errors = place / f"{len(list(place.glob('*.err')))}.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "tests/other_ranks.py"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def start(self, num_ranks: int, command: list[str]) -> Path:
        """Returns the file of what the ranks print."""
        log = self.place / f"{len(list(self.place.glob('*.log')))}.log"
        log.touch()
        assert self.process.stdin
        print(json.dumps([num_ranks, command, str(log)]), file=self.process.stdin, flush=True)
        return log

    def run(self, num_ranks: int, command: list[str]) -> str:
        """What the ranks print, all of which end well."""
        log = self.start(num_ranks, command)
        assert self.process.stdout
        codes = self.process.stdout.readline()
        assert codes, self.errors.read_text()[-3000:]
        assert json.loads(codes) == [0] * num_ranks, log.read_text()[-3000:]
        return log.read_text()

    def kill(self) -> None:
        """End it, all that it started, and all that those started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


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
    """Demonstrations, preferences and prompts of which no two steps have the same loss."""
    folder, rows, pairs = tmp_path_factory.mktemp("ranks"), [], []
    for n in range(32):
        prompt = [{"role": "user", "content": f"{stages.QUESTIONS[n % 4]} {n}"}]
        words = ["Thank", "you", "kind", "shoes", "shop"][n % 5] * (n % 7)
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (f"{n * n} {words}", f"No {words}"))
        rows.append(Demonstration(make_id("dem", n), prompt + chosen))
        pairs.append(Preference(make_id("prf", n), make_id("prm", prompt), prompt, chosen, rejected))
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "preferences.jsonl", pairs)
    stages.prompts(folder / "prompts.jsonl", 32)
    return folder


@pytest.fixture(scope="module")
def ranks(place: Path) -> Iterator[Ranks]:
    """Imports its libraries once, for all tests."""
    started = Ranks(place)
    yield started
    started.kill()


def _losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def _resume(ranks: Ranks, policy: Path, kind: str, num_ranks: int, zero: int | None, run: Path) -> str:
    """Go on with a run that was cut off, to its end. Returns what its ranks print."""
    command = _command(ranks.place, policy, kind, num_ranks, zero, resume=True, output_dir=str(run))
    return ranks.run(num_ranks, command)


def _whole(ranks: Ranks, policy: Path, kind: str, zero: int | None) -> Path:
    """An undisturbed run of two ranks, made once."""
    run = ranks.place / f"{kind}-{zero}-whole"
    if not run.is_dir():
        ranks.run(2, _command(ranks.place, policy, kind, 2, zero, output_dir=str(run)))
    assert len(_losses(run)) == STEPS
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "zero"),
    [
        *((kind, zero) for kind in ("sft", "ppo") for zero in ZERO),
        ("reward", 2),
        ("dpo", 3),
        ("sft-lora", 2),
        ("sft-lora", 3),
        ("reward-lora", 2),
        ("ppo-lora", 3),
    ],
)
def test_two_ranks_go_on_as_one_and_one_as_two(ranks: Ranks, policy_folder: Path, kind: str, zero: int | None) -> None:
    whole, one, two = _whole(ranks, policy_folder, kind, zero), *(ranks.place / f"{kind}-{zero}-{n}" for n in (1, 2))
    _resume(ranks, policy_folder, kind, 1, zero, _cut_off(whole, FIRST, one))
    _resume(ranks, policy_folder, kind, 2, zero, _cut_off(one, SECOND, two))
    assert _losses(one) == pytest.approx(_losses(whole), abs=TOLERANCE)
    assert _losses(two) == pytest.approx(_losses(whole), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "zero"), [("sft", 2), ("sft", 3), ("sft-lora", 2)])
def test_lost_moments_would_be_seen(ranks: Ranks, policy_folder: Path, kind: str, zero: int) -> None:
    """The control of the test above: without Adam's moments the losses are far off its tolerance."""
    whole = _whole(ranks, policy_folder, kind, zero)
    run = _cut_off(whole, FIRST, ranks.place / f"{kind}-{zero}-forgot")
    shards = sorted(run.glob("checkpoint-*/global_step*/*_optim_states.pt"))
    assert len(shards) == 2
    for shard in shards:
        state = torch.load(shard, weights_only=False)
        assert _zero_moments(state) > 0
        torch.save(state, shard)
    _resume(ranks, policy_folder, kind, 1, zero, run)
    got, expected = _losses(run), _losses(whole)
    # The first step after the resume has the loss of the weights as they were; what it does to them is other.
    assert got[: FIRST + 1] == pytest.approx(expected[: FIRST + 1], abs=TOLERANCE)
    assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) > 10 * TOLERANCE


def _zero_moments(state: Any) -> int:
    """Set Adam's moments to 0 wherever they are, and count them."""
    if not isinstance(state, dict | list):
        return 0
    count = 0
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if key in ("exp_avg", "exp_avg_sq"):
            value.zero_()
            count += 1
        else:
            count += _zero_moments(value)
    return count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_conversion_that_was_killed_is_done_again(ranks: Ranks, policy_folder: Path) -> None:
    whole = _whole(ranks, policy_folder, "sft", 2)
    run = _cut_off(whole, FIRST, ranks.place / "sft-2-torn")
    checkpoint = run / f"checkpoint-{FIRST}"
    others = Ranks(ranks.place)
    others.start(1, _command(ranks.place, policy_folder, "sft", 1, 2, resume=True, output_dir=str(run)))
    while not list(checkpoint.glob("universal.partial-*/stderr")):  # the converter starts now, and takes seconds
        assert others.process.poll() is None
        time.sleep(0.01)  # another process's doing: nothing to wait on but what it shows
    others.kill()
    assert list(checkpoint.glob("universal.partial-*")) and not (checkpoint / "latest_universal").exists()
    # As if the kill had come between the two renames at the end, and with a file that is none.
    (checkpoint / "universal" / "zero").mkdir(parents=True)
    (checkpoint / "universal" / "zero" / "optimizer_state.pt").write_text("torn")
    log = _resume(ranks, policy_folder, "sft", 1, 2, run)
    assert f"checkpoint-{FIRST}: is of 2 ranks; converted for any number, here 1" in log
    assert _losses(run) == pytest.approx(_losses(whole), abs=TOLERANCE)
    assert sorted(path.name for path in checkpoint.glob("*universal*")) == ["latest_universal", "universal"]


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


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "global_step4").mkdir()
    torch.save({}, tmp_path / "global_step4" / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError) as error:
        prepare_resume(_trainer(tmp_path, 1, 8, 2), tmp_path)
    start = f"{tmp_path}: cannot be converted from 2 ranks to 1 ("
    assert str(error.value).startswith(start) and str(error.value).endswith("); resume on 2 ranks, or mend that")
    assert not list(tmp_path.glob("*universal*"))
