"""The annotator's page: a Gradio page that holds the ranking widget, which talks to our own routes."""

import gradio as gr

from labeling_app.ui.static_files import address

HEAD = f"""
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<script type="module" src="{address("ranking.js")}"></script>
"""
# The widget brings its own look and fills the window.
CSS = """
body, .gradio-container { background: light-dark(#f6f6f9, #14151a) !important; }
.gradio-container, .gradio-container :is(main, .main, .wrap, .app, .contain, .column) {
  max-width: none !important; padding: 0 !important; gap: 0 !important; border: 0 !important;
  overflow: visible !important; /* else the bar at the foot sticks to a box instead of the window */
}
body { color-scheme: light; }
body.dark { color-scheme: dark; }
#desk, .html-container { padding: 0; }
"""


def rank_page() -> gr.Blocks:
    """One custom element; no text of a task ever goes through Gradio's templates."""
    with gr.Blocks(title="Ranking", analytics_enabled=False, fill_width=True) as page:
        gr.HTML('<ranking-desk api="/api"></ranking-desk>', elem_id="desk", apply_default_css=False, js_on_load=None)
    return page
