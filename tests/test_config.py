"""Configs: YAML and flags into dataclasses, every mistake one line that names the mend."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from rlhf.config import as_dict, parse
from rlhf.errors import UserError


@dataclass
class Paths:
    data: str = field(metadata={"help": "a file"})
    names: list[str] = field(default_factory=list, metadata={"help": "some names"})
    limit: int | None = field(default=5, metadata={"help": "a limit"})


@dataclass
class Numbers:
    learning_rate: float = field(default=0.1, metadata={"help": "a rate"})
    resume: bool = field(default=False, metadata={"help": "go on"})


class Config(NamedTuple):
    paths: Paths
    numbers: Numbers


def _parse(tmp_path: Path, yaml: str, *argv: str) -> Config:
    (tmp_path / "c.yaml").write_text(yaml)
    return parse(Config, ["--config", str(tmp_path / "c.yaml"), *argv])


def test_flags_override_the_yaml(tmp_path: Path) -> None:
    config = _parse(tmp_path, "data: a.jsonl\nlearning_rate: 1e-6\nnames: [x, y]\n", "--data", "b.jsonl")
    assert config == (Paths("b.jsonl", ["x", "y"], 5), Numbers(1e-6, False))


def test_null_empty_and_true_are_taken_as_written(tmp_path: Path) -> None:
    config = _parse(tmp_path, "data: a\nlimit: null\nnames: []\nresume: true\n")
    assert config == (Paths("a", [], None), Numbers(0.1, True))


def test_values_that_begin_with_a_dash_are_values(tmp_path: Path) -> None:
    assert _parse(tmp_path, "data: -a-\nlearning_rate: -1.5\n").numbers.learning_rate == -1.5


def test_as_dict_is_flat(tmp_path: Path) -> None:
    expected = {"data": "a", "names": [], "limit": 5, "learning_rate": 0.1, "resume": False}
    assert as_dict(_parse(tmp_path, "data: a\n")) == expected


@pytest.mark.parametrize(
    ("yaml", "argv", "message"),
    [
        ("data: a\nlearning_rat: 1\n", [], r"c\.yaml: unknown key `learning_rat`, did you mean `learning_rate`\?"),
        ("data: a\nlimit: many\n", [], r"c\.yaml: limit: invalid int value: 'many'"),
        ("data: a\nresume: perhaps\n", [], r"c\.yaml: resume"),
        ("limit: 1\n", [], r"c\.yaml: missing: data; set it in the YAML or as a flag"),
        ("data: a\n", ["--learning_rat", "1"], r"the command line: unknown flag `--learning_rat`.*`--learning_rate`"),
        ("data: a\n", ["--limit", "x"], r"the command line: limit: invalid int value: 'x'"),
        ("data: [a\n", [], r"c\.yaml, line \d: broken YAML"),
        ("- a\n", [], r"c\.yaml: is a list, should be `key: value` lines"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, yaml: str, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _parse(tmp_path, yaml, *argv)


def test_a_missing_config_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file; `rlhf configs` lists"):
        parse(Config, ["--config", "nowhere.yaml"])
    with pytest.raises(UserError, match="--config: needs the path"):
        parse(Config, ["--config"])


def test_library_errors_become_one_line(tmp_path: Path) -> None:
    from rlhf.sft import Config as SFT

    (tmp_path / "c.yaml").write_text(
        "demonstrations: x\noutput_dir: y\neval_strategy: steps\neval_steps: 0\nlogging_steps: 0\n"
    )
    with pytest.raises(UserError, match=r"c\.yaml: .*(steps|strategy)"):
        parse(SFT, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("verb", ["prepare", "pretrain", "sft", "sample", "export", "reward", "dpo", "ppo", "compare"])
def test_every_verb_has_a_config_that_parses(verb: str) -> None:
    import importlib

    from rlhf.loop import STAGES

    filled = {"sft": ["--model_name_or_path", "m"]}.get(verb, [])
    config = parse(importlib.import_module(STAGES[verb]).Config, filled, f"configs/{verb}.yaml")
    assert as_dict(config)["output_dir"] == f"runs/{verb}"
