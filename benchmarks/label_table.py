"""The load benchmark's figures: ratios to the peers, and a table."""

from statistics import median
from typing import Any

# By name: where the figure is, and whether more of it is better.
FIGURES = {
    "submits": (("submit", "per_second"), True),
    "turns": (("turn", "per_second"), True),
    "submits_per_core": (("submit", "per_core_second"), True),
    "turns_per_core": (("turn", "per_core_second"), True),
    "submit_p95": (("submit", "p95_ms"), False),
    "turn_p95": (("turn", "p95_ms"), False),
    "page": (("page_ms",), False),
    "memory": (("memory_mb",), False),
}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside each peer with as many clients, medians over the rounds; over 1 is in our favour."""
    found = []
    for name, num_clients in dict.fromkeys((row["system"], row["clients"]) for row in rows):
        if name == "rlhf label":
            continue
        ours = [row for row in rows if (row["system"], row["clients"]) == ("rlhf label", num_clients)]
        theirs = [row for row in rows if (row["system"], row["clients"]) == (name, num_clients)]
        ratio: dict[str, Any] = {"peer": name, "clients": num_clients}
        for figure, (path, more_is_better) in FIGURES.items():
            mine, other = _median(ours, path), _median(theirs, path)
            above, below = (mine, other) if more_is_better else (other, mine)
            ratio[figure] = round(above / below, 2) if above and below else None
        found.append(ratio)
    return found


def _median(rows: list[dict[str, Any]], path: tuple[str, ...]) -> float | None:
    values = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value[key]
        values.append(value)
    return None if None in values else median(values)


def load_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    submit, turn = row["submit"], row["turn"]
    failed = sum(count for status, count in submit["statuses"].items() if status[0] not in "23")
    failed += sum(count for status, count in turn["statuses"].items() if status[0] not in "23")
    cells = [row["system"], row["clients"], submit["per_second"], submit["p50_ms"], submit["p95_ms"], submit["p99_ms"]]
    cells += [turn["per_second"], turn["p95_ms"], turn["per_core_second"], row["page_ms"], row["memory_mb"], failed]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(result: dict[str, Any]) -> str:
    """All figures in Markdown."""
    alone = result["clients_alone"]
    lines = [
        f"clients alone: {alone['requests_per_second']} requests a second, "
        f"{alone['microseconds_of_cpu_per_request']} µs of CPU each"
    ]
    if "load" in result:
        head = ["system", "clients", "submits/s", "p50 ms", "p95", "p99"]
        head += ["turns/s", "turn p95", "per core", "page ms", "memory MB", "errors"]
        lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *map(load_line, result["load"])]
    for row in result.get("ratios", []):
        values = {key: value for key, value in row.items() if key not in ("peer", "clients")}
        cells = ", ".join(f"{key} {value}" for key, value in values.items())
        lines.append(f"ours / {row['peer']}, {row['clients']} clients (over 1: ours is better): {cells}")
    for run in result.get("survive", []):
        lines += ["", f"survive, {run['store']}: {run['kills']} kills, {run['acknowledged_rankings']} rankings in "]
        lines[-1] += f"{run['seconds']} s, {run['counted']} count, {run['surplus']} beside them, "
        lines[-1] += f"problems: {run['problems'] or 'none'}, refusals: {run['refusals'] or 'none'}"
    return "\n".join(lines)
