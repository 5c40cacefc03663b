"""What the tabs are made of: tables, cards, notes. Markup here is of our own words and numbers only."""

import html
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import gradio as gr

from rlhf.errors import UserError


def harmless(text: object) -> str:
    """Text for markup: no tag, and nothing that Gradio's templates would evaluate."""
    escaped = html.escape(str(text))
    return escaped.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


def markup(value: str = "", **options: Any) -> gr.HTML:
    """A piece of our own markup, with no script of Gradio's behind it."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


def heading(words: str, below: str = "") -> gr.HTML:
    """A heading, and a sentence that says what stands under it."""
    sentence = f'<p class="note">{harmless(below)}</p>' if below else ""
    return markup(f'<h2 class="heading">{harmless(words)}</h2>{sentence}')


def first_heading(words: str, below: str = "") -> gr.Button:
    """A tab's first heading, with the button that looks again beside it; returns the button."""
    with gr.Row(elem_classes="first"):
        heading(words, below)
        return gr.Button("Refresh", size="sm", scale=0, min_width=96, elem_classes="refresh")


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Figures side by side: (what, number, in words)."""
    made = [
        f'<div class="figure"><dt>{harmless(what)}</dt><dd><b>{harmless(number)}</b>'
        f"<span>{harmless(words)}</span></dd></div>"
        for what, number, words in items
    ]
    return f'<dl class="figures">{"".join(made)}</dl>'


def table(
    headers: Sequence[str], label: str, widths: Sequence[str] | None = None, width: str = "", **options: Any
) -> gr.Dataframe:
    """A table to read. Every cell is plain text: names and notes are shown as they were written.

    Args:
        headers: of its columns.
        label: what a screen reader calls it.
        widths: of its columns, in percent.
        width: `wide` or `medium`: it scrolls sideways rather than be narrower.
    """
    return gr.Dataframe(
        headers=list(headers),
        datatype="str",
        type="array",
        interactive=False,
        wrap=True,
        label=label,
        show_label=False,
        column_widths=list(widths) if widths else None,
        buttons=[],
        elem_classes=["table", width],
        **options,
    )


def rows_or(rows: Sequence[Sequence[object]], headers: Sequence[str], empty: str) -> dict[str, Any]:
    """A table's value; where there is nothing to show, one row that says so."""
    shown = [[str(cell) for cell in row] for row in rows] or [[empty, *[""] * (len(headers) - 1)]]
    return gr.update(value={"headers": list(headers), "data": shown})


def percent(share: float) -> str:
    """73%, and more digits near the ends, where they matter."""
    return f"{share:.0%}" if 0.01 <= share <= 0.99 or share in (0, 1) else f"{share:.1%}"


def counted(number: int, one: str, more: str | None = None) -> str:
    """1 label, 2,000 labels."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def day_of(at: float) -> str:
    """Fri 21 Nov: a day of the server's."""
    return f"{datetime.fromtimestamp(at):%a} {datetime.fromtimestamp(at).day} {datetime.fromtimestamp(at):%b}"


def ago(seconds: float) -> str:
    """How long ago, as one says it."""
    for size, one in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{counted(int(seconds // size), one)} ago"
    return "just now"


def refusal(error: Exception) -> gr.Error:
    """What the page shows for a thing that cannot be done."""
    title = "Cannot be done" if isinstance(error, UserError) else "Not done"
    return gr.Error(harmless(error), title=title, print_exception=False)
