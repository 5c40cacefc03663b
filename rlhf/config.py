"""One flat YAML per verb, overridden by flags; every mistake is one line that names the mend."""

import dataclasses
import importlib
import json
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rlhf.errors import UserError, nearest

Config = TypeVar("Config", bound=tuple)

_PACKAGE = Path(__file__).parent


def packaged(path: str) -> Path:
    """A file of `configs/` or `launch/`: from the working folder, the checkout or the installed package."""
    for root in (Path.cwd(), _PACKAGE.parent, _PACKAGE):
        if (root / path).is_file():
            return root / path
    return Path(path)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises UserError for a missing file, broken YAML (with its line) and anything but a mapping.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file; `rlhf configs` lists those that come with rlhf")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: broken YAML ({getattr(error, 'problem', error)})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: is a {type(values).__name__}, should be `key: value` lines")
    return values


def take_config(argv: list[str], default: str | None) -> tuple[str | None, list[str]]:
    """The path after `--config`, `default` where there is none, and the flags without both words.

    Raises UserError for a `--config` without a path.
    """
    if "--config" not in argv:
        return default, list(argv)
    at = argv.index("--config")
    if at + 1 >= len(argv):
        raise UserError("--config: needs the path of a YAML file")
    return argv[at + 1], [*argv[:at], *argv[at + 2 :]]


def parse(config_type: type[Config], argv: list[str], default_config: str | None = None) -> Config:
    """Read `--config FILE` and `--key value` flags into the dataclasses of `config_type`.

    `config_type` is a NamedTuple whose fields are dataclasses; their keys share one flat name space.
    Raises UserError for unknown keys (naming the nearest), values of the wrong type and missing keys.
    """
    config_path, argv = take_config(argv, default_config)
    values = read_yaml(packaged(config_path)) if config_path else {}
    return from_values(config_type, values, config_path or "the command line", argv)


def from_values(
    config_type: type[Config], values: dict[str, Any], source: str, argv: list[str] | None = None
) -> Config:
    """The dataclasses of `config_type` from a mapping, then from flags; `source` names it in errors."""
    parser = _parser(config_type)
    known = [action.dest for action in parser._actions if action.dest != "help"]
    for key in values:
        if key not in known:
            raise UserError(f"{source}: unknown key `{key}`{nearest(str(key), known)}")

    nothing = [key for key, value in values.items() if value is None or value == []]
    defaults = {key: values[key] for key in nothing}
    for action in parser._actions:
        if action.dest in values:
            action.required = False
    parser.set_defaults(**_hardware_defaults(config_type, values), **defaults)
    given = [part for key, value in values.items() if key not in nothing for part in _flag(key, value)]

    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    parser.source = source
    parser.parse_known_args(given)  # so that an error in the file names the file
    for action in required:
        action.required = True

    parser.source = "the command line" if argv else source
    spaces, unknown = parser.parse_known_args(given + (argv or []))
    if unknown:
        word = unknown[0].split("=")[0]
        raise UserError(
            f"the command line: unknown flag `{word}`{nearest(word.lstrip('-'), known).replace('`', '`--', 1)}"
        )
    try:
        parts = [
            kind(**{f.name: getattr(spaces, f.name) for f in dataclasses.fields(kind) if f.init})
            for kind in _kinds(config_type)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error
    return config_type(*parts)


def as_dict(config: tuple) -> dict[str, Any]:
    """Every key of every part of a config, as JSON-able values: what `run.json` records."""
    values: dict[str, Any] = {}
    for part in config:
        plain = part.to_dict() if hasattr(part, "to_dict") else dataclasses.asdict(part)
        values.update(plain)
    return json.loads(json.dumps(values, default=str))


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The callable that `module:function` names; `key` is the setting that named it, for the UserError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}: `{name}` cannot be loaded ({error}); name a callable as module:function") from None


def _kinds(config_type: type) -> list[Any]:
    return list(typing.get_type_hints(config_type).values())


def _hardware_defaults(config_type: type, values: dict[str, Any]) -> dict[str, Any]:
    """For trainers: the CPU where there is no accelerator, and bf16 there only where it is faster.

    TRL asks for bf16 everywhere, which refuses to start on a CPU that `use_cpu` does not name.
    """
    # By name: to import the class takes torch, which the labeling app does without.
    if not any(base.__name__ == "TrainingArguments" for kind in _kinds(config_type) for base in kind.__mro__):
        return {}
    import torch

    if torch.accelerator.is_available():
        return {}
    from rlhf.hardware import cpu_runs_amx

    return {"use_cpu": True, "bf16": "bf16" not in values and cpu_runs_amx()}


def _parser(config_type: type) -> Any:
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        source = "the command line"

        def error(self, message: str) -> NoReturn:
            message = re.sub(r"/--[\w-]+", "", message)  # the parser also takes dashes for underscores
            message = message.replace("argument --", "").replace("the following arguments are required:", "missing:")
            mend = "; set it in the YAML or as a flag" if message.startswith("missing:") else ""
            raise UserError(f"{self.source}: {message.replace('missing: --', 'missing: ')}{mend}")

    # Ours first, so that `--help` opens with the few keys a newcomer needs. Abbreviations are off: a
    # typo must not silently become another key.
    return Parser(_kinds(config_type), prog="rlhf", allow_abbrev=False)


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *(str(item) for item in value)]
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    return [f"--{key}={value}"]
