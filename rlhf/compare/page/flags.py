"""Replies that a section flags, for the browser of side-by-side texts.

A section flags by a list `flags` in its part of the report: `{"prompt": id, "policy": name, "why": words}` each. The
browser then lists them under "flagged" and marks the policy's reply with the words.
"""

from typing import Any


def flags(report: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """By prompt id and policy: why its reply is flagged, each reason once, in the report's order."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for part in report.values():
        for one in part.get("flags", []) if isinstance(part, dict) else []:
            found.setdefault((one["prompt"], one["policy"]), {})[one["why"]] = None
    return {place: list(reasons) for place, reasons in found.items()}
