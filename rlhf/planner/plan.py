"""`rlhf plan`: the verb's config and the machines in, the setting that fits and its memory out."""

import json
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rlhf.config import from_values, packaged, read_yaml, take_config
from rlhf.errors import UserError
from rlhf.planner.memory import Account, device_memory
from rlhf.planner.options import PlanOptions
from rlhf.planner.search import Search, search
from rlhf.planner.speed import Duration, duration
from rlhf.planner.stages import VERBS, Stage

_HELP = ("-h", "--help")
_GPU_MICRO_BATCH_TOKENS = 16_384  # PPOConfig's own where there is a GPU


@dataclass(frozen=True)
class Plan:
    """A stage, the machines, what fits there and how long it takes."""

    stage: Stage
    options: PlanOptions
    memory: float  # GiB of a GPU
    search: Search
    duration: Duration | None

    @property
    def chosen(self) -> Account:
        """The setting that fits, or that needs least."""
        return self.search.chosen


def check_verb(words: list[str]) -> str:
    """The verb of `rlhf plan VERB`; where `--help` stands for it, that is shown.

    Raises UserError for none, and for one that trains nothing.
    """
    known = ", ".join(VERBS)
    if words and words[0] in _HELP:
        show_help("VERB", f"VERB is one of {known}.")
    if not words or words[0].startswith("-"):
        raise UserError(f"plan: name the training that is to be planned, one of {known}")
    if words[0] not in VERBS:
        raise UserError(f"plan: `{words[0]}` trains nothing; name one of {known}")
    return words[0]


def show_help(verb: str, epilog: str) -> NoReturn:
    """Print the plan's own flags, and exit: the verb's are many, and `rlhf VERB --help` has them."""
    from transformers import HfArgumentParser

    parser: Any = HfArgumentParser(
        typing.cast("Any", PlanOptions),  # its stub takes NewTypes of type Any alone
        prog=f"rlhf plan {verb}",
        usage=f"rlhf plan {verb} [--config FILE] [--gpus N] [--gpu_memory GIB] [--KEY VALUE ...]",
        description="Will this training fit, with which sharding, and how long will it take? Nothing is loaded.",
        epilog=epilog,
    )
    parser.print_help()
    raise SystemExit(0)


def read(config_type: Any, verb: str, argv: list[str]) -> tuple[PlanOptions, tuple[Any, ...]]:
    """The plan's options and the verb's config, from configs/plan.yaml, the verb's YAML and flags of both.

    Where the plan is for GPUs and there is none here, precision and PPO's micro-batch are as they would be there.
    Raises UserError as rlhf.config.parse does.
    """
    default = f"configs/{verb}.yaml"
    path, argv = take_config(argv, default)
    path = path or default
    fields = [("options", PlanOptions), *typing.get_type_hints(config_type).items()]
    asked = NamedTuple("asked", fields)  # type: ignore[misc]  # made of fields that are known here only
    values = read_yaml(packaged("configs/plan.yaml")) | read_yaml(packaged(path))
    values.pop("deepspeed", None)  # the plan's to choose
    parts = from_values(asked, values, path, argv)
    if parts[0].gpus > 0:
        named = set(values) | {word[2:].split("=")[0] for word in argv if word.startswith("--")}
        there: dict[str, Any] = {} if verb == "ppo" else {"bf16": True}
        if verb == "ppo":
            there = {"micro_batch_tokens": _GPU_MICRO_BATCH_TOKENS}
        values |= {key: value for key, value in there.items() if key not in named}
        parts = from_values(asked, values, path, argv)
    return parts[0], tuple(parts[1:])


def make_plan(verb: str, options: PlanOptions, config: tuple[Any, ...]) -> Plan:
    """Find the cheapest setting that fits. Raises UserError for a model that is not there, and without a memory."""
    memory = options.gpu_memory or device_memory(options.gpus)
    if memory is None:
        raise UserError("gpu_memory: is not given and there is no GPU here; set --gpu_memory to the GiB of one GPU")
    options = replace(options, gpu_memory=memory)
    stage = Stage(verb, config, options)
    found = search(stage, options, memory)
    return Plan(stage, options, memory, found, duration(stage, found.chosen.setting, options))


def run(config_type: Any, argv: list[str]) -> None:
    """`rlhf plan VERB ...`: print the plan, write what `--output` asks for.

    Raises UserError where nothing fits, after the table.
    """
    from rlhf.planner.output import write
    from rlhf.planner.table import as_json, show, verdict

    verb = check_verb(argv)
    if any(word in _HELP for word in argv[1:]):
        show_help(verb, f"All keys of `rlhf {verb} --help` are flags here too, as in --max_length 512 --use_peft true.")
    options, config = read(config_type, verb, argv[1:])
    plan = make_plan(verb, options, config)
    if options.json:
        print(json.dumps(as_json(plan), indent=2))
    else:
        show(plan)
    if not plan.search.fits:
        raise UserError(verdict(plan))
    if options.output:
        for path in write(plan, Path(options.output)):
            if not options.json:
                print(f"written: {path}")
