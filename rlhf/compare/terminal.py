"""The report on the terminal: the verdict, what qualifies it, a table of the policies."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.compare.headline import headline
from rlhf.compare.judges import label
from rlhf.compare.sections import SECTIONS
from rlhf.compare.sentences import cell, judge_sentence, people_sentences, warnings


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """The verdict, what qualifies it, and a table of the policies, on the terminal."""
    console = console or Console()
    judges = report["settings"]["judges"]
    columns = {"win_rate": f"win rate by {label(judges[0])}", "gold": "gold", "score": "score", "kl": "KL (nats)"}
    columns |= {"length": "length (tokens)", "finished": "finished"}
    shown = [key for key in columns if any(numbers[key] for numbers in report["policies"].values())]
    table = Table("policy", *(columns[key] for key in shown), box=box.SIMPLE_HEAD, pad_edge=False)
    for name, numbers in report["policies"].items():
        table.add_row(Text(name), *(cell(numbers[key], key, "\n") for key in shown))
    console.print(table)
    console.print(f"{headline(report)}.", markup=False, highlight=False, soft_wrap=True, style="bold")
    for judge in judges[1:]:
        console.print(f"{judge_sentence(report, judge)}.", markup=False, highlight=False, soft_wrap=True)
    shown_sections = [section for section in SECTIONS if section.key in report]
    said = [sentence for section in shown_sections for sentence in section.says(report)]
    for sentence in [*people_sentences(report), *said]:
        console.print(f"{sentence}.", markup=False, highlight=False, soft_wrap=True)
    found = [*warnings(report), *(line for section in shown_sections for line in section.warnings(report))]
    for warning in found:
        console.print(f"! {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
