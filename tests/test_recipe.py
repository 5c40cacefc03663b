"""Recipes: checked whole before they start, finished stages passed over, cut-off ones gone on with."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.errors import UserError
from rlhf.loop import run_recipe
from tests import stages


def _recipe(tmp_path: Path, policy: Path, **over: Any) -> Path:
    training = {**stages.TRAINING, "save_strategy": "no", "max_steps": 2}
    recipe: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "stages": {
            "sft": {
                **training,
                "demonstrations": str(stages.demonstrations(tmp_path / "d.jsonl")),
                "model_name_or_path": str(policy),
            },
            "sample": {
                "policies": ["sft/"],
                "prompts": str(stages.prompts(tmp_path / "p.jsonl")),
                "max_new_tokens": 4,
                "num_responses": 2,
            },
            "dpo": {
                **training,
                "preferences": str(stages.preferences(tmp_path / "f.jsonl")),
                "model_name_or_path": "sft/",
                "loss_type": ["sft"],  # a value that is a stage's name, and no path
                "num_kl_prompts": 0,
            },
        },
        **over,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_stages_run_in_a_row_and_are_not_run_again(tmp_path: Path, policy_folder: Path) -> None:
    path = _recipe(tmp_path, policy_folder)
    seen: list[str] = []
    runs = run_recipe(str(path), announce=lambda name, *_: seen.append(name))
    assert list(runs) == ["sft", "sample", "dpo"]
    assert runs["sample"].parents == runs["dpo"].parents == [runs["sft"].id]
    assert seen == ["sft", "sft", "sample", "sample", "dpo", "dpo"]  # at the start and at the end of each
    seen.clear()
    assert run_recipe(str(path), announce=lambda name, *_: seen.append(name)) == runs
    assert seen == []


def test_a_cut_off_recipe_goes_on(tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rlhf.sample

    path = _recipe(tmp_path, policy_folder)
    real = rlhf.sample.generate

    def cut(*args: Any, **kwargs: Any) -> Any:
        yield next(real(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(rlhf.sample, "generate", cut)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(str(path), settings={"sample": {"batch_size": 4}})
    monkeypatch.setattr(rlhf.sample, "generate", real)
    runs = run_recipe(str(path), settings={"sample": {"batch_size": 4}})
    assert runs["sample"].metrics["num_responses"] == 12
    assert runs["dpo"].finished


def test_a_mistake_in_the_last_stage_shows_before_the_first_begins(tmp_path: Path, policy_folder: Path) -> None:
    path = _recipe(tmp_path, policy_folder)
    with pytest.raises(UserError, match=r"stage dpo: unknown key `bet`, did you mean `beta`"):
        run_recipe(str(path), settings={"dpo": {"bet": 0.1}})
    assert not (tmp_path / "out").exists()


def test_other_settings_for_a_finished_stage_are_an_error(tmp_path: Path, policy_folder: Path) -> None:
    path = _recipe(tmp_path, policy_folder)
    run_recipe(str(path))
    with pytest.raises(UserError, match=r"sft: finished with another learning_rate; remove it, or choose another"):
        run_recipe(str(path), settings={"sft": {"learning_rate": 0.5}})


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"stages": {}}, "has no stages; list them under `stages:`"),
        ({"stages": {"sfft": {}}}, "unknown stage `sfft`, did you mean `sft`"),
        ({"output_dir": None}, "has no output_dir; set it"),
        ({"seed": 1}, "unknown key `seed`; a recipe has output_dir and stages"),
    ],
)
def test_broken_recipes_are_named(tmp_path: Path, policy_folder: Path, over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(str(_recipe(tmp_path, policy_folder, **over)))


def test_a_live_page_would_hold_the_recipe(tmp_path: Path, policy_folder: Path) -> None:
    live = {"policies": ["sft/"], "prompts": "nowhere.jsonl", "live": True}
    path = _recipe(tmp_path, policy_folder, stages={"compare": live})
    folder = re.escape(str(tmp_path / "out" / "compare"))
    words = rf"stage compare: live: waits for Ctrl-C and would hold the recipe; leave it out, .* `rlhf watch {folder}`$"
    with pytest.raises(UserError, match=words):
        run_recipe(str(path))
    assert not (tmp_path / "out").exists()


def test_a_gold_that_cannot_be_loaded_is_named() -> None:
    from types import SimpleNamespace

    from rlhf.loop import judges

    for gold in ("nowhere:score", "rlhf.errors:score", "rlhf"):
        with pytest.raises(UserError, match=f"gold: `{gold}` cannot be loaded .* name a callable as module:function"):
            judges(SimpleNamespace(reward_model=None, gold=gold, batch_size=1))
