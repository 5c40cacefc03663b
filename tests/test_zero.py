"""ZeRO-1, 2 and 3 with real DeepSpeed on two processes (gloo): sft, reward, dpo, ppo as one process trains them.

tests/test_ppo_sharded.py has PPO's longer curves, LoRA and resume; this file is the same for all trainers, and memory.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import zero_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS, BATCH = 4, 4


@pytest.fixture(scope="module")
def alone(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainers, each in one process and without DeepSpeed."""
    place = tmp_path_factory.mktemp("alone")
    configs = {verb: cases.config(place, verb, policy_folder, STEPS, 1, BATCH) for verb in cases.VERBS}
    cases.run(place, [cases.job(place, verb, path) for verb, path in configs.items()], 1, patience=500)
    return place


@pytest.fixture(scope="module", params=cases.VERBS)
def sharded(request: pytest.FixtureRequest, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer's name, and the folder of its runs with all three stages, in one pair of processes."""
    place = tmp_path_factory.mktemp(request.param)
    config = cases.config(place, request.param, policy_folder, STEPS, 2, BATCH)
    cases.run(place, [cases.job(place, request.param, config, zero) for zero in cases.STAGES], 2, patience=500)
    return request.param, place


@pytest.mark.parametrize("zero", cases.STAGES)
def test_the_losses_are_those_of_one_process(sharded: Any, alone: Path, zero: int) -> None:
    verb, place = sharded
    expected = cases.losses(alone / verb)
    assert len(expected) == STEPS
    assert cases.losses(place / f"{verb}-zero{zero}") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("zero", cases.STAGES)
def test_the_checkpoint_is_a_plain_folder(sharded: Any, alone: Path, zero: int) -> None:
    """transformers alone loads every weight of it, and they are the single process's."""
    verb, place = sharded
    loader: Any = AutoModelForSequenceClassification if verb == "reward" else AutoModelForCausalLM
    model, report = loader.from_pretrained(place / f"{verb}-zero{zero}", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    expected = loader.from_pretrained(alone / verb).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-3)


@pytest.mark.parametrize("zero", cases.STAGES)
def test_each_rank_holds_what_zero_promises(sharded: Any, zero: int) -> None:
    """Bytes of the live engine's tensors against table 1 of the ZeRO paper, padding computed and small."""
    verb, place = sharded
    ranks = cases.memory(place, verb, zero)
    assert len(ranks) == 2
    for held in ranks:
        for part in cases.PARTS:
            assert held[part] == held[f"promised/{part}"], part
        whole = held["promised/weights"]
        table = {
            "parameters": 4 * whole / (2 if zero == 3 else 1),
            "gradients": 4 * whole / (1 if zero == 1 else 2),
            "optimizer": (8 if zero == 3 else 12) * whole / 2,
        }
        for part, size in table.items():  # padding, and norms that ZeRO-3 keeps whole
            assert size <= held[f"promised/{part}"] <= 1.01 * size, part
