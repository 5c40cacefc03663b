"""`rlhf prepare`: raw files and Hub data sets -> clean records, split by prompt.

read -> recognise the format -> clean -> split -> write
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from rlhf.config import as_dict
from rlhf.data.arguments import PrepareArguments
from rlhf.data.clean import STEPS, Dropped, StepReport, clean, keep_max_rows, report
from rlhf.data.convert import convert
from rlhf.data.formats import Example, check_columns, choose_columns
from rlhf.data.outputs import Records, build_records
from rlhf.data.readers import read_rows
from rlhf.data.split import SPLITS, Shares, assert_disjoint, assign_splits
from rlhf.errors import UserError
from rlhf.records import Run, write_jsonl
from rlhf.runs import open_run


class Config(NamedTuple):
    """The keys of `configs/prepare.yaml`."""

    prepare: PrepareArguments


@dataclass(frozen=True)
class InputReport:
    """One input: the format it was recognised as, and how many rows it held."""

    source: str
    format: str
    rows: int
    kinds: dict[str, int]


def run(config: Config) -> Run:
    """Read, recognise, clean, split and write; returns the finished Run.

    Writes `<kind>.<split>.jsonl` for demonstrations, prompts, preferences, ties, tasks, rankings
    and text, only where there are rows. Raises UserError for bad input before anything is written.
    """
    arguments = config.prepare
    shares = _check(arguments)
    examples, inputs, steps = _read(arguments)
    examples, cleaned = clean(
        examples, [*STEPS, ("keep max_rows", lambda rows: keep_max_rows(rows, arguments.max_rows, arguments.seed))]
    )
    steps += cleaned
    if not examples:
        raise UserError(_nothing_left(inputs, steps))
    if not arguments.input:
        assert_disjoint(
            (example.split or "", example.where, example.prompt or [{"role": "text", "content": example.text}])
            for example in examples
        )
    by_split = assign_splits(examples, shares, arguments.seed, arguments.split_by)
    records = {name: build_records(rows, arguments.demonstrations_from) for name, rows in by_split.items()}

    sources = {source: source for source, _ in arguments.sources()}
    with open_run("prepare", arguments.output_dir, as_dict(config), sources, arguments.resume) as folder:
        for split, found in records.items():
            for kind, rows in found.files().items():
                name = f"{kind}.{split}.jsonl"
                write_jsonl(folder.path / name, tqdm(rows, desc=name, unit=" rows", delay=1, leave=False))
        finished = folder.finish(**_metrics(inputs, steps, records))
    _show(finished, inputs, steps, _missing_splits(arguments, shares, records))
    return finished


def _check(arguments: PrepareArguments) -> Shares:
    given = [name for name in SPLITS if getattr(arguments, name)]
    if not arguments.input and not given:
        raise UserError("input: is missing; name files or Hub data sets, for example --input data.jsonl")
    if arguments.input and given:
        raise UserError(f"input and {given[0]}: give inputs to split, or inputs that are split already, not both")
    if len({source for source, _ in arguments.sources()}) < len(arguments.sources()):
        raise UserError("input: names the same input twice; name each once")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise UserError(f"max_rows: is {arguments.max_rows}, should be at least 1, or left out to keep all")
    if arguments.columns().names() and arguments.format != "auto":
        raise UserError(f"format: is {arguments.format}, but columns are named too; leave one of them out")
    check_columns(arguments.columns())
    return Shares(arguments.train_share, arguments.validation_share, arguments.test_share)


def _read(arguments: PrepareArguments) -> tuple[list[Example], list[InputReport], list[StepReport]]:
    examples: list[Example] = []
    inputs: list[InputReport] = []
    dropped: Dropped = []
    named = arguments.columns()
    for source, split in arguments.sources():
        rows = read_rows(source, arguments.dataset_config, arguments.dataset_split)
        format_name, columns = choose_columns(rows, arguments.format, named, source)
        columns = dataclasses.replace(columns, user_role=named.user_role, assistant_role=named.assistant_role)
        converted, refused = convert(rows, columns, source, split)
        examples += converted
        dropped += refused
        inputs.append(InputReport(source, format_name, len(rows), dict(Counter(e.kind for e in converted))))
    return examples, inputs, [report("recognise the format", len(examples), dropped)]


def _nothing_left(inputs: list[InputReport], steps: list[StepReport]) -> str:
    reasons = Counter({why: count for step in steps for why, count in step.dropped.items()})
    first = {why: where for step in steps for why, where in step.first.items()}
    why = "; ".join(f"{why} ({count:,}, first {first[why]})" for why, count in reasons.most_common(3))
    sources = ", ".join(report.source for report in inputs)
    return f"{sources}: none of the {sum(report.rows for report in inputs):,} rows can be used: {why}"


def _metrics(inputs: list[InputReport], steps: list[StepReport], records: dict[str, Records]) -> dict[str, Any]:
    return {
        "inputs": [dataclasses.asdict(each) for each in inputs],
        "steps": [dataclasses.asdict(step) for step in steps],
        "splits": {split: {kind: len(rows) for kind, rows in r.files().items()} for split, r in records.items()},
        "num_rankings_without_order": sum(r.num_without_order for r in records.values()),
    }


def _missing_splits(arguments: PrepareArguments, shares: Shares, records: dict[str, Records]) -> list[str]:
    if not arguments.input:
        return []
    return [name for name in SPLITS if getattr(shares, name) > 0 and name not in records]


def _show(run: Run, inputs: list[InputReport], steps: list[StepReport], missing: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)  # file names and reasons may hold what rich takes for its own tags
    table = Table("input", "format", "rows", "of which", title="Read")
    for each in inputs:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in each.kinds.items())
        table.add_row(Path(each.source).name, each.format, f"{each.rows:,}", kinds)
    console.print(table)
    table = Table("step", "kept", "changed", "dropped", "why", title="Cleaned")
    for step in steps:
        first = {reason: Path(where).name for reason, where in step.first.items()}
        why = "\n".join(f"{count:,} {reason} (first: {first[reason]})" for reason, count in step.dropped.items())
        table.add_row(step.step, f"{step.kept:,}", f"{step.changed:,}", f"{sum(step.dropped.values()):,}", why)
    console.print(table)
    table = Table("file", "rows", title=f"Written to {run.config['output_dir']}")
    for split, files in run.metrics["splits"].items():
        for kind, count in files.items():
            table.add_row(f"{kind}.{split}.jsonl", f"{count:,}")
    console.print(table)
    without_order = run.metrics["num_rankings_without_order"]
    if without_order:
        console.print(
            f"{without_order:,} rankings have verdicts that no ranking agrees with (such as A = B, B = C, A > C): "
            "they are kept pair by pair, in preferences and ties, and not in rankings"
        )
    for name in missing:
        console.print(f"the {name} split is empty: too few prompts, or all with one opening (--split_by prompt)")
