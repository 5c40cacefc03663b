"""`rlhf prepare`: raw files and Hub data sets -> clean records, split by prompt.

read -> recognise the format -> clean -> split -> write
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf.config import as_dict
from rlhf.data.clean import STEPS, Dropped, StepReport, clean, keep_max_rows, report
from rlhf.data.convert import convert
from rlhf.data.formats import Columns, Example, check_columns, choose_columns
from rlhf.data.outputs import Records, build_records
from rlhf.data.readers import read_rows
from rlhf.data.split import SPLITS, Shares, assert_disjoint, assign_splits
from rlhf.errors import UserError
from rlhf.records import Run, write_jsonl
from rlhf.runs import open_run

Format = Literal[
    "auto",
    "preference",
    "implicit_preference",
    "hh",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "prompt",
    "text",
]


def _key(help_text: str, default: Any = None) -> Any:
    if isinstance(default, list):
        return field(default_factory=list, metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


@dataclass
class PrepareArguments:
    """Where the data is, what its columns hold, and how to split it."""

    output_dir: str = field(metadata={"help": "Run folder to write; it must not hold a finished run."})
    input: list[str] = _key("Files (.json .jsonl .csv .tsv .txt, also .gz; .parquet) or Hub ids, to be split here.", [])
    train: list[str] = _key("Inputs that are the training split already; instead of `input`.", [])
    validation: list[str] = _key("Inputs that are the validation split already.", [])
    test: list[str] = _key("Inputs that are the test split already.", [])
    resume: bool = _key("Go on with an unfinished run in `output_dir`.", False)

    format: Format = _key("Format of the rows; `auto` recognises it by the columns.", "auto")
    prompt_column: str | None = _key("Column with the prompt. `a.b` is the key `b` inside column `a`, here and below.")
    response_column: str | None = _key("Column with the reply to imitate.")
    chosen_column: str | None = _key("Column with the better reply of a pair.")
    rejected_column: str | None = _key("Column with the worse reply of a pair.")
    response_columns: list[str] = _key("Columns with the K replies of a prompt, or the one that holds a list.", [])
    rank_columns: list[str] = _key("Ranks of the replies, 1 is best: K columns, or one that holds a list.", [])
    score_columns: list[str] = _key("Scores of the replies, higher is better: K columns, or one with a list.", [])
    pairwise_column: str | None = _key(
        "Column with the verdict on each pair, in the order (1,2) (1,3) ... (K-1,K): 0 equal, 1 first, 2 second."
    )
    annotator_column: str | None = _key("Column that says who ranked the replies.")
    messages_column: str | None = _key("Column with a conversation: a list of messages or of [role, text] pairs.")
    user_role: str | None = _key("What the data calls the user, where it is not `user` or `human`.")
    assistant_role: str | None = _key("What the data calls the assistant, where it is not `assistant` or `gpt`.")
    system_column: str | None = _key("Column with the system message.")
    context_column: str | None = _key("Column with text to put before the prompt, such as passages.")
    context_chars: int | None = _key("Keep this many characters of the context.")
    text_column: str | None = _key("Column with plain text for pretraining.")
    dataset_config: str | None = _key("Configuration of a Hub data set that has several.")
    dataset_split: str = _key("Split of a Hub data set.", "train")

    max_rows: int | None = _key("Keep a random sample of so many clean rows.")
    demonstrations_from: Literal["none", "chosen"] = _key(
        "`chosen` also writes the preferred replies as demonstrations.", "none"
    )
    train_share: float = _key("Share of the prompts for training.", 0.9)
    validation_share: float = _key("Share of the prompts for validation.", 0.0)
    test_share: float = _key("Share of the prompts for the test split.", 0.1)
    split_by: Literal["conversation", "prompt"] = _key(
        "What stays in one split: conversations with the same first turn, or only equal prompts.", "conversation"
    )
    seed: int = _key("Seed of the split and of the sample.", 0)

    def columns(self) -> Columns:
        """The columns that were named."""
        return Columns(
            prompt=self.prompt_column,
            response=self.response_column,
            chosen=self.chosen_column,
            rejected=self.rejected_column,
            responses=tuple(self.response_columns),
            ranks=tuple(self.rank_columns),
            scores=tuple(self.score_columns),
            pairwise=self.pairwise_column,
            annotator=self.annotator_column,
            messages=self.messages_column,
            system=self.system_column,
            context=self.context_column,
            text=self.text_column,
            context_chars=self.context_chars,
            user_role=self.user_role,
            assistant_role=self.assistant_role,
        )

    def sources(self) -> list[tuple[str, str | None]]:
        """`(source, split)` of every input; the split is None where it is to be made here."""
        split = [(source, name) for name in SPLITS for source in getattr(self, name)]
        return [(source, None) for source in self.input] + split


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
                write_jsonl(folder.path / f"{kind}.{split}.jsonl", rows)
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

    console = Console()
    table = Table("input", "format", "rows", "of which", title="Read")
    for each in inputs:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in each.kinds.items())
        table.add_row(Path(each.source).name, each.format, f"{each.rows:,}", kinds)
    console.print(table)
    table = Table("step", "kept", "dropped", "why", title="Cleaned")
    for step in steps:
        why = "\n".join(f"{count:,} {reason} (first: {step.first[reason]})" for reason, count in step.dropped.items())
        table.add_row(step.step, f"{step.kept:,}", f"{sum(step.dropped.values()):,}", why)
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
