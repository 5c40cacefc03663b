"""What an export would hold now, label by label accounted for; and the run folder that holds it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from labeling_app.admin_routes import EXPORT
from labeling_app.answer import Refused
from labeling_app.people import list_people
from labeling_app.ui.lead import Call, Lead
from labeling_app.ui.tabs.pieces import (
    cards,
    counted,
    first_heading,
    harmless,
    heading,
    markup,
    percent,
    rows_or,
    table,
)
from rlhf.errors import UserError

NUM_RUNS = 5  # of the last export runs are offered
_SUMS = ("What becomes of each label", "Labels")
_MADE = ("What comes of them", "How many")
_WHY = {
    "practice": "left out: practice",
    "gold": "left out: gold tasks, whose answer is known",
    "repeat": "left out: the same person's second look",
    "surplus": "left out: came after the place was taken",
    "left_out": "left out: of people whose labels you left out",
    "annotator_out": "left out: of people whose labels you left out",
    "annotator_heldout": "set aside: of people who are held out, in a file of their own",
    "too_few_votes": "left out: the task has too few labels",
    "other_set": "left out: of other sets",
    "comparison": "left out: comparisons of policies",
}
_FILES = {
    "preferences.train.jsonl": "preferences to train on",
    "preferences.validation.jsonl": "preferences to validate on",
    "preferences.heldout.jsonl": "preferences of held-out annotators",
    "ties.jsonl": "pairs that people could not tell apart",
    "demonstrations.jsonl": "better answers that annotators wrote",
    "tasks.jsonl": "the tasks as they were asked",
    "rankings.jsonl": "every label as it was given, left out or not",
    "run.json": "the manifest: counts, exclusions, hashes",
}


def export_tab(desk: Lead, opened: Sequence[Any]) -> None:
    """Build the tab inside an open gr.Tab; it is filled on `opened` events."""
    refresh = first_heading("What an export would hold now")
    summary = markup(elem_id="export")
    with gr.Row(elem_classes="form-row"):
        weights = gr.Radio(
            [("All the same", "none"), ("By reliability", "reliability")], value="none", label="Votes count", scale=2
        )
        share = gr.Slider(0, 0.5, value=0.0, step=0.05, label="Share of prompts for validation", scale=2)
        votes = gr.Number(1, label="Least labels a task", precision=0, minimum=1, scale=1, min_width=150)
    heldout = gr.Dropdown([], multiselect=True, label="Held out: annotators to measure on, never to train on")
    heading("Every label accounted for", "Labels in are the labels that are exported and those that are left out.")
    sums = table(_SUMS, "Labels in and out", ("75%", "25%"))
    heading("What comes of them")
    made = table(_MADE, "What is exported", ("75%", "25%"))
    with gr.Row():
        is_possible = desk.exports is not None
        write = gr.Button("Write the export", variant="primary", interactive=is_possible, scale=0, min_width=200)
    runs = markup(elem_id="runs")

    settings = [weights, share, votes, heldout]
    shown = [summary, sums, made]

    def show(call: Call, weights: str, share: float, votes: float | None, heldout: list[str] | None) -> list[Any]:
        names = [row["name"] for row in desk.read(list_people) if row["answers"]]
        held = [name for name in heldout or [] if name in names]
        preview = show_preview(desk, weights, share, votes, held)
        return [*preview, gr.update(choices=names, value=held), list_runs(desk.exports)]

    def look(call: Call, *values: Any) -> list[Any]:
        return show_preview(desk, *values)

    def export(call: Call, *values: Any) -> list[Any]:
        run = write_run(desk, *values)
        gr.Info(f"Written to {harmless(run)}")
        return [*show_preview(desk, *values), list_runs(desk.exports)]

    desk.on([*opened, refresh.click], show, settings, [*shown, heldout, runs])
    changes = [weights.change, share.release, votes.change, heldout.input]
    desk.on(changes, look, settings, shown)
    desk.on([write.click], export, settings, [*shown, runs], show_progress="minimal", show_progress_on=[runs])


def show_preview(
    desk: Lead, weights: str, share: float, votes: float | None, heldout: Sequence[str] | None
) -> list[Any]:
    """What an export with these settings would hold now."""
    from labeling_app.export import assemble
    from labeling_app.stored import read_labels

    settings = _settings(desk, "preview", weights, share, votes, heldout)
    labels = desk.read(read_labels)
    try:
        metrics = assemble(labels, settings).metrics
    except UserError as error:
        empty = rows_or([], _SUMS, "No export yet."), rows_or([], _MADE, "No export yet.")
        return [f'<p class="verdict">Nothing to export yet.</p><p class="note">{harmless(error)}</p>', *empty]
    return [
        summary_of(metrics),
        rows_or(sum_rows(metrics), _SUMS, "No labels yet."),
        rows_or(made_rows(metrics), _MADE, "Nothing yet."),
    ]


def _settings(
    desk: Lead, name: str, weights: str, share: float, votes: float | None, heldout: Sequence[str] | None
) -> Any:
    from labeling_app.export import ExportConfig

    try:
        return ExportConfig(
            output_dir=str((desk.exports or Path()) / name),
            store=desk.desk.store.url.render_as_string(hide_password=False),
            weights=weights,
            validation_share=float(share or 0),
            min_votes=int(votes or 1),
            annotators_heldout=list(heldout or []),
        )
    except ValueError as error:
        raise Refused(str(error)) from None


def summary_of(metrics: Mapping[str, Any]) -> str:
    """The figures on top."""
    ceiling = metrics["human_ceiling"]
    return cards(
        [
            ("Preferences", f"{metrics['num_preferences']:,}", f"and {counted(metrics['num_ties'], 'tie')}"),
            ("From labels", f"{metrics['num_labels']:,}", f"of {metrics['num_labels_in']:,} that came in"),
            ("From tasks", f"{metrics['num_tasks']:,}", f"of {metrics['num_tasks_in']:,}"),
            (
                "Human ceiling",
                "none yet" if ceiling is None else percent(ceiling),
                "no pair has two votes"
                if ceiling is None
                else f"one voter against the others, {counted(metrics['human_ceiling_num_pairs'], 'pair')}",
            ),
        ]
    )


def sum_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Labels in, exported, left out by reason: the rows add up, and the last one says so."""
    out = {reason: number for reason, number in metrics["exclusions"]["labels"].items() if number}
    total = metrics["num_labels"] + sum(out.values())
    adds_up = "which is every label that came in" if total == metrics["num_labels_in"] else "which is not what came in!"
    return [
        ["exported", f"{metrics['num_labels']:,}"],
        *([_WHY.get(reason, f"left out: {reason}"), f"{number:,}"] for reason, number in out.items()),
        [f"Together, {adds_up}", f"{total:,}"],
    ]


def made_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Preferences and what they come from."""
    rows = [
        ("Preferences by votes", metrics["num_preferences"]),
        ("Preferences for a better answer that an annotator wrote", metrics["num_preferences_better"]),
        ("Of these to train on", metrics["num_train"]),
        ("Of these to validate on", metrics["num_validation"]),
        ("Ties: never trained on", metrics["num_ties"]),
        ("Pairs that you settled", metrics["num_pairs_adjudicated"]),
        ("Demonstrations: better answers", metrics["num_demonstrations"]),
        ("Preferences of held-out annotators", metrics["num_heldout"]),
    ]
    return [[what, f"{number:,}"] for what, number in rows]


def write_run(desk: Lead, weights: str, share: float, votes: float | None, heldout: Sequence[str] | None) -> str:
    """Write an export run, and return its folder's name. Raises Refused where there is no folder for exports."""
    from labeling_app.export import Config, run

    if desk.exports is None:
        raise Refused("The app was started without a folder for exports; start it with --exports FOLDER.")
    name = f"{EXPORT}{datetime.fromtimestamp(desk.desk.clock()):%Y%m%d-%H%M%S}"
    run(Config(_settings(desk, name, weights, share, votes, heldout)))
    return name


def list_runs(exports: Path | None) -> str:
    """Links to the files of the last export runs."""
    if exports is None:
        return '<p class="note">To write exports from here, start the app with <code>--exports FOLDER</code>.</p>'
    found = sorted((path for path in exports.glob(f"{EXPORT}*") if (path / "run.json").is_file()), reverse=True)
    if not found:
        return '<p class="note">Nothing has been exported from here yet.</p>'
    parts = []
    for run in found[:NUM_RUNS]:
        files = sorted(path for path in run.iterdir() if path.suffix in (".jsonl", ".json"))
        links = "".join(_link(run.name, path) for path in files)
        parts.append(f"<h3>{harmless(run.name)}</h3><ul>{links}</ul>")
    return f'<h2 class="heading">Exports</h2>{"".join(parts)}'


def _link(run: str, path: Path) -> str:
    address = f"/api/admin/exports/{quote(run)}/{quote(path.name)}"
    what = _FILES.get(path.name, "")
    size = f"{path.stat().st_size / 1000:,.0f} kB"
    return (
        f'<li><a href="{harmless(address)}" download>{harmless(path.name)}</a> '
        f"<span>{harmless(what + ', ' if what else '')}{size}</span></li>"
    )
