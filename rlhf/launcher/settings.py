"""What the verb behind `--` is asked to do: its YAML with its flags laid over, read without loading any library."""

from pathlib import Path
from typing import Any

from rlhf.config import packaged, read_yaml, take_config
from rlhf.errors import UserError, nearest

TRAINERS = ["pretrain", "sft", "reward", "dpo", "ppo"]
ALONE = ["sample", "compare"]  # one process does all their work


def split_command(argv: list[str]) -> tuple[list[str], str, list[str]]:
    """Launch's own flags, the verb, and the verb's flags: `[FLAGS] -- VERB [FLAGS]`.

    Raises UserError where the `--` or the verb is missing, or the verb is none that can be launched.
    """
    if "--" not in argv:
        raise UserError("launch: name the verb after two dashes, as in `rlhf launch --gpus 8 -- sft --config sft.yaml`")
    at = argv.index("--")
    own, rest = argv[:at], argv[at + 1 :]
    known = TRAINERS + ALONE
    if not rest:
        raise UserError(f"launch: no verb after `--`; give one of {', '.join(known)}")
    if rest[0] not in known:
        raise UserError(
            f"launch: `{rest[0]}` cannot be launched{nearest(rest[0], known)}; it takes one of {', '.join(known)}"
        )
    return own, rest[0], rest[1:]


def config_path(verb: str, argv: list[str]) -> str | None:
    """The YAML that the verb will read, as it was named; None where it has none.

    Raises UserError for a `--config` without a path.
    """
    default = f"configs/{verb}.yaml"
    return take_config(argv, default if packaged(default).is_file() else None)[0]


def read_settings(verb: str, argv: list[str]) -> dict[str, Any]:
    """The verb's settings as written: keys of its YAML, flags laid over; what is not set is not there.

    Values of flags are YAML scalars, lists where a flag has several. Types are not checked: each rank does that.
    Raises UserError for a config file that is missing or broken.
    """
    path = config_path(verb, argv)
    values = read_yaml(packaged(path)) if path else {}
    return {key: value for key, value in {**values, **_flags(argv)}.items() if value not in (None, [])}


def output_dir(settings: dict[str, Any]) -> Path:
    """The run's folder. Raises UserError where it is not set."""
    if not isinstance(settings.get("output_dir"), str) or not settings["output_dir"]:
        raise UserError("output_dir: is not set; name the run's folder, as in --output_dir runs/sft")
    return Path(settings["output_dir"])


def whole(settings: dict[str, Any], key: str, default: int | None = None) -> int | None:
    """A setting as a whole number; `default` where it is not set or is none."""
    try:
        return int(settings[key])
    except (KeyError, TypeError, ValueError):
        return default


def is_on(settings: dict[str, Any], key: str) -> bool:
    """Whether a yes-or-no setting is on."""
    return str(settings.get(key, False)).lower() in ("true", "1", "yes")


def _flags(argv: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, list[Any]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name] = [value] if value else []
        elif name is not None:
            found[name].append(word)
    found.pop("config", None)

    def plain(word: str) -> Any:
        try:
            value = yaml.safe_load(word)
        except yaml.YAMLError:
            return word
        return value if isinstance(value, bool | int | float | str) else word

    return {
        key: True if not words else plain(words[0]) if len(words) == 1 else [plain(word) for word in words]
        for key, words in found.items()
    }
