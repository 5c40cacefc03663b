"""What annotators are asked, from a YAML file: guidelines, flags, attributes, skip reasons."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, nearest

MAX_RATING = 4
MAX_STRENGTH = 3  # much better; 2 is better, 1 slightly better, 0 a tie
_ID = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Choice:
    """Something to tick or to rate: `id` in the data, `label` on screen."""

    id: str
    label: str


@dataclass(frozen=True)
class Form:
    """What is asked about each task. See configs/forms/ranking.yaml for what each part does."""

    title: str = "Which answer is better?"
    guidelines: str = ""
    strength: bool = True
    both_bad: bool = True
    flags: tuple[Choice, ...] = ()
    attributes: tuple[Choice, ...] = ()
    reason: str = "optional"
    better_answer: bool = True
    skip_reasons: tuple[str, ...] = field(default=("I cannot judge this",))

    @property
    def guidelines_sha256(self) -> str:
        """Which guidelines somebody has read."""
        return hashlib.sha256(self.guidelines.encode("utf-8", "surrogatepass")).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As the store keeps it; `from_dict` reads it back."""
        return asdict(self)


def read_form(path: str | Path) -> Form:
    """The form in a YAML file. Raises UserError, with file and key, for what is not one."""
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the form's YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: is no YAML ({error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold keys such as `title` and `flags`; see configs/forms/ranking.yaml")
    return from_dict(content, str(path))


def from_dict(content: Mapping[str, Any], where: str = "form") -> Form:
    """A form from plain values. Raises UserError naming `where` and the key."""
    known = [item.name for item in fields(Form)]
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key `{key}`{nearest(str(key), known)}; keys are {', '.join(known)}")
    values = dict(content)
    for key in ("title", "guidelines"):
        if key in values and not isinstance(values[key], str):
            raise UserError(f"{where}: `{key}` should be text")
    for key in ("strength", "both_bad", "better_answer"):
        if key in values and not isinstance(values[key], bool):
            raise UserError(f"{where}: `{key}` should be true or false")
    if values.get("reason") is False:  # YAML reads a bare `off` as false
        values["reason"] = "off"
    if values.get("reason", "optional") not in ("optional", "required", "off"):
        raise UserError(f"{where}: `reason` is {values['reason']!r}, should be optional, required or off")
    for key in ("flags", "attributes"):
        if key in values:
            values[key] = _choices(values[key], key, where)
    if "skip_reasons" in values:
        reasons = values["skip_reasons"]
        if not isinstance(reasons, list | tuple) or not reasons or not all(isinstance(r, str) and r for r in reasons):
            raise UserError(f"{where}: `skip_reasons` should be a list of one or more sentences")
        values["skip_reasons"] = tuple(reasons)
    return Form(**values)


def _choices(value: Any, key: str, where: str) -> tuple[Choice, ...]:
    choices = []
    for number, item in enumerate(value if isinstance(value, list | tuple) else [None], 1):
        if not isinstance(item, Mapping) or set(item) != {"id", "label"} or not isinstance(item["label"], str):
            raise UserError(f"{where}: `{key}`, item {number}: should be {{id: short_name, label: What people see}}")
        if not isinstance(item["id"], str) or not _ID.fullmatch(item["id"]):
            raise UserError(
                f"{where}: `{key}`, item {number}: id {item['id']!r} should be lower-case letters, digits and _"
            )
        choices.append(Choice(item["id"], item["label"]))
    ids = [choice.id for choice in choices]
    for id in ids:
        if ids.count(id) > 1:
            raise UserError(f"{where}: `{key}` has `{id}` twice")
    return tuple(choices)
