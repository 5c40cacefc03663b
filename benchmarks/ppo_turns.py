"""Two ways that took turns in one process: how their seconds are told, and the file with a row for each machine."""

import json
import statistics
from pathlib import Path
from typing import Any


def told(one: str, other: str, seconds: list[tuple[float, float]]) -> dict[str, Any]:
    """Median milliseconds of both ways, and how many times as long the first takes: median and middle half."""
    ratios = sorted(first / second for first, second in seconds)
    return {
        "milliseconds": {
            name: round(1000 * statistics.median(each), 1)
            for name, each in zip((one, other), zip(*seconds, strict=True), strict=True)
        },
        f"{one} over {other}": {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        },
    }


def keep(path: Path, row: dict[str, Any]) -> None:
    """Put a row into a file of rows, in the place of this device's and number of threads'."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if any(old[key] != row[key] for key in ("device", "threads"))]
    path.write_text(json.dumps([*rows, row], indent=2) + "\n")
