"""The project lead's page: progress, agreement, annotators, disputes, export."""

from pathlib import Path

import gradio as gr

from labeling_app.routes import Desk
from labeling_app.ui.lead import Lead
from labeling_app.ui.static_files import STATIC, address
from labeling_app.ui.tabs.agreement import agreement_tab
from labeling_app.ui.tabs.annotators import annotators_tab
from labeling_app.ui.tabs.export import export_tab
from labeling_app.ui.tabs.pieces import markup
from labeling_app.ui.tabs.progress import progress_tab

HEAD = f"""
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<script type="module" src="{address("masthead.js")}"></script>
<script type="module" src="{address("disputes.js")}"></script>
"""
CSS = (STATIC / "admin.css").read_text(encoding="utf-8")


def admin_page(desk: Desk, exports: Path | None = None) -> gr.Blocks:
    """The page, for `mount_gradio_app` with HEAD and CSS.

    Args:
        desk: what the routes share.
        exports: the folder for export runs; None: the page says how to name one.
    """
    shared = Lead(desk, exports)
    with gr.Blocks(title="Lead's page", analytics_enabled=False, fill_width=True) as page:
        markup('<lead-masthead api="/api"></lead-masthead>')
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Progress", id="progress") as tab:
                progress_tab(shared, [page.load, tab.select])
            with gr.Tab("Agreement", id="agreement") as tab:
                agreement_tab(shared, [tab.select])
            with gr.Tab("Annotators", id="annotators") as tab:
                annotators_tab(shared, [tab.select])
            with gr.Tab("Disputes", id="disputes"):
                markup('<dispute-desk api="/api"></dispute-desk>')
            with gr.Tab("Export", id="export") as tab:
                export_tab(shared, [tab.select])
    return page
