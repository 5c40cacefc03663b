"""The app's look: one theme for both pages, system fonts, nothing fetched from anywhere."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Calm, with one accent colour; fonts that every machine has."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
