"""policies.csv and pairs.csv: the report's two tables, a row a policy and a row a pair before one judge."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_MEASURES = ("win_rate", "gold", "score", "kl", "length", "finished")
_FIGURES = ("mean", "low", "high", "n")
_RUNS = ("=", "+", "-", "@", "\t", "\r")  # with these a spreadsheet begins a formula


def policies_csv(report: dict[str, Any]) -> str:
    """A row a policy: `<measure>_mean`, `_low`, `_high` (ends of the interval) and `_n` (prompts) of each measure.

    Units are those of report.json: shares from 0 to 1, KL in nats a response, length in tokens. A measure that no
    policy has is left out; what one policy lacks is an empty cell.
    """
    shown = [key for key in _MEASURES if any(numbers.get(key) for numbers in report["policies"].values())]
    header = ["policy", *(f"{key}_{figure}" for key in shown for figure in _FIGURES)]
    rows = [
        [name, *((numbers[key] or {}).get(figure) for key in shown for figure in _FIGURES)]
        for name, numbers in report["policies"].items()
    ]
    return _csv(header, rows)


def pairs_csv(report: dict[str, Any]) -> str:
    """A row a pair and judge: how often `a` beats `b` (ties half) with its interval, the share of ties, the verdict."""
    header = ["a", "b", "judge", *(f"win_rate_{figure}" for figure in _FIGURES), "ties", "verdict"]
    counts = [key for key in ("num_votes", "num_annotators") if any(key in pair for pair in report["pairs"])]
    rows = [
        [
            *(pair[key] for key in ("a", "b", "judge")),
            *(pair["win_rate"][figure] for figure in _FIGURES),
            pair["ties"],
            pair["verdict"],
            *(pair.get(key) for key in counts),
        ]
        for pair in report["pairs"]
    ]
    return _csv([*header, *counts], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as RFC 4180 has it: lines end with CR LF, as else a CR within a name would be no part of its cell."""
    out = io.StringIO()
    csv.writer(out).writerows([[guarded(cell) for cell in row] for row in [header, *rows]])
    return out.getvalue()


def guarded(cell: Any) -> Any:
    """A cell that no spreadsheet runs: text that begins like a formula gets an apostrophe, as OWASP has it.

    Numbers stay numbers. Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(_RUNS) else cell
