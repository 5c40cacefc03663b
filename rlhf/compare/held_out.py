"""Whether the prompts of a comparison are held out from training: from all that each policy and judge learned from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.near import near_matches
from rlhf.data.split import prompt_key, prompts_of
from rlhf.errors import UserError
from rlhf.lineage import trace
from rlhf.records import Messages, Prompt

# Of two prompts of the demo's domain, whose sentences come from the same parts, the most alike share 0.74 of their
# runs of three words; of hh-rlhf's test and training prompts 0.64. At 0.9 one is a copy with a word changed.
NEAR = 0.9
# Pretraining is left out: its texts are no prompts, and they may hold anything.
_LEARNS = {"sft", "reward", "dpo", "ppo"}


@dataclass(frozen=True)
class HeldOut:
    """What the prompts were checked against.

    Args:
        files: name and number of prompts of each file of training data.
        not_found: `run: name` of training data that lies nowhere any more.
        unknown: models whose training is not recorded, or not all of it.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, Any]:
        """For report.json."""
        files = [{"file": name, "num_prompts": number} for name, number in self.files]
        return {"files": files, "not_found": self.not_found, "unknown": self.unknown}


def check_held_out(
    prompts: list[Prompt], source: str, models: Mapping[str, str], train_data: Iterable[str] = ()
) -> HeldOut:
    """Compare prompts with what models trained on, as their run folders record it, and with files named beside.

    Args:
        prompts: those of the comparison.
        source: their file, for errors.
        models: name to path, of policies and of judges.
        train_data: more JSONL files of records that somebody trained on.

    Raises UserError where a prompt is among the training prompts, or nearly is one of them (`NEAR`).
    """
    found = HeldOut()
    checked: set[str] = set()  # hashes, as many runs learn from one file
    for name, path in models.items():
        lineage = trace(path)
        if not lineage.runs or lineage.missing:
            found.unknown.append(name)
        for ancestor in lineage.runs.values():
            run = ancestor.run
            if run.stage not in _LEARNS:
                continue
            for data, sha in run.data_sha256.items():
                if sha in checked or data.startswith("eval_") or not _is_rows(run.config.get(data)):
                    continue
                checked.add(sha)
                file = lineage.data_file(ancestor, data)
                if file is None:
                    found.not_found.append(f"{run.stage}: {data}")
                else:
                    who = f"which the {run.stage} run of {name} read"
                    found.files.append((file.name, _compare(prompts, source, file, who)))
    for path in train_data:
        found.files.append((Path(path).name, _compare(prompts, source, Path(path), "named in train_data")))
    return found


def _is_rows(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".jsonl")


def _compare(prompts: list[Prompt], source: str, file: Path, who: str) -> int:
    """How many prompts the file has."""
    theirs = list(prompts_of(file))
    keys = {prompt_key(messages) for messages in theirs}
    same = [prompt for prompt in prompts if prompt_key(prompt.messages) in keys]
    if same:
        raise UserError(
            f"{source}: {_many(len(same), 'prompt')} {_are(same)} also in {file}, {who}: the first is `{same[0].id}`, "
            f"{_shown(same[0].messages)}; compare on prompts held out from training"
        )
    near = near_matches([_text(prompt.messages) for prompt in prompts], map(_text, theirs), NEAR)
    if near:
        at, (place, share) = min(near.items())
        raise UserError(
            f"{source}: {_many(len(near), 'prompt')} {_are(near)} nearly in {file}, {who}: the first is "
            f"`{prompts[at].id}`, {_shown(prompts[at].messages)}, which shares {share:.0%} of its word triples with "
            f"{_shown(theirs[place])}; compare on prompts held out from training"
        )
    return len(theirs)


def _text(messages: Messages) -> str:
    return "\n".join(message["content"] for message in messages)


def _shown(messages: Messages) -> str:
    text = " ".join(messages[-1]["content"].split())
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _are(found: Any) -> str:
    return "is" if len(found) == 1 else "are"
