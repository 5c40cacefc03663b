"""Tables of figures with their intervals, as the template of what the replies are like takes them."""

from collections.abc import Callable, Mapping
from typing import Any

from rlhf.compare.sentences import percent

Numbers = dict[str, Any]  # an interval as report.json has it

_SHARES = ("repetition", "finished")
_POINTS = " points"


def table(
    caption: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Numbers | None]],
    shown: Callable[[str], Callable[[float], str]],
    folded: bool = False,
    first: str = "Policy",
) -> dict[str, Any]:
    """A table as the template takes it, `first` its first column's title; columns that no row has are left out."""
    there = {key: title for key, title in columns.items() if any(row.get(key) for row in rows.values())}
    told = []
    for name, row in rows.items():
        n = max((one["n"] for key in there if (one := row.get(key))), default=0)
        cells = [_cell(row.get(key), shown(key), n) for key in there]
        told.append({"name": name, "cells": cells, "n": f"{n:,}"})
    return {"caption": caption, "first": first, "columns": list(there.values()), "rows": told, "folded": folded}


def _cell(one: Numbers | None, shown: Callable[[float], str], n: int) -> tuple[str, str] | None:
    if one is None:
        return None
    return shown(one["mean"]), span(one, shown) + ("" if one["n"] == n else f", n = {one['n']:,}")


def span(one: Numbers, shown: Callable[[float], str]) -> str:
    """The interval's ends, or that one or both are unknown."""
    low, high = (None if one[end] is None else shown(one[end]) for end in ("low", "high"))
    if low is None or high is None:
        return "interval unknown" if low == high else f"{low} or more" if high is None else f"{high} or less"
    return f"{low.removesuffix(_POINTS)} to {high}"


def as_measured(key: str) -> Callable[[float], str]:
    """How a figure is written: a share as a percentage, others with three digits."""
    return percent if key in _SHARES else "{:.3f}".format


def as_difference(key: str) -> Callable[[float], str]:
    """How a difference of figures is written: with its sign, that of shares in percentage points."""
    return points if key in _SHARES else decimals


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{_signed(100 * share, 1)}{_POINTS}"


def decimals(value: float) -> str:
    """A difference with its sign and three digits."""
    return _signed(value, 3)


def signed_percent(share: float) -> str:
    """A change as a percentage with its sign."""
    return f"{_signed(100 * share, 1)}%"


def _signed(value: float, digits: int) -> str:
    whole = round(value, digits)
    return f"{whole:+,.{digits}f}" if whole else f"{0:.{digits}f}"


def as_tokens(_: str) -> Callable[[float], str]:
    """How a length is written."""
    return lambda value: f"{value:,.0f}"


def as_more_tokens(_: str) -> Callable[[float], str]:
    """How a difference of lengths is written."""
    return lambda value: _signed(value, 0)
