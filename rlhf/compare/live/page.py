"""`rlhf watch RUN`, `rlhf compare --live true`: a page that reads a comparison's folder every second.

The comparison knows nothing of the page, and may run anywhere that writes to the folder.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.compare.live import show
from rlhf.compare.live.folder import FILES, RunReader
from rlhf.errors import UserError
from rlhf.ports import choose_port, url_of

HERE = "127.0.0.1"  # this machine alone
_PARTS = (show.heading, show.progress, show.rates, show.examples, show.report)
_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class WatchConfig:
    """Which comparison is shown, and where the page is."""

    run: str = field(metadata={"help": "folder of a comparison, running or done"})
    host: str = field(default=HERE, metadata={"help": "address to listen on; 0.0.0.0 lets other machines in"})
    port: int = field(default=7860, metadata={"help": "port to listen on; 0 = any free one"})


class Config(NamedTuple):
    """The config of `rlhf watch`."""

    watch: WatchConfig


def run(config: Config) -> None:
    """Show the page until Ctrl-C; prints its address.

    Raises UserError for a folder that holds no comparison, files in it that are not ours, and a port in use.
    """
    settings = config.watch
    with contextlib.suppress(KeyboardInterrupt), watching(settings.run, settings.host, settings.port) as url:
        print(f"live view of {settings.run} at {url} (Ctrl-C stops it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def watching(folder: str | Path, host: str = HERE, port: int = 0) -> Iterator[str]:
    """The page, open at the address that is yielded, closed on the way out. Raises as `run`."""
    reader = RunReader(Path(folder))
    reader.snapshot()
    port = choose_port(host, port)
    blocks = Page(reader).build()
    try:
        app, _, _ = blocks.launch(server_name=host, server_port=port, **_launch_options())
        _serve_files(app, reader.folder)
        yield url_of(host, port)
    finally:
        blocks.close(verbose=False)


@dataclass
class Page:
    """The page: a part of it is sent again only where it changed for that visitor."""

    reader: RunReader
    lock: threading.Lock = field(default_factory=threading.Lock)

    def build(self) -> Any:
        """The gradio Blocks, not launched yet."""
        import gradio as gr

        with gr.Blocks(title="A comparison, live", analytics_enabled=False) as blocks:
            seen = gr.State([""] * len(_PARTS))
            parts = [gr.HTML(padding=False, elem_classes="live", container=False) for _ in _PARTS]
            timer = gr.Timer(_EVERY)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        with blocks:
            gr.on([blocks.load, timer.tick], self._changed, seen, [seen, *parts], **quiet)
        return blocks

    def _changed(self, seen: list[str]) -> list[Any]:
        import gradio as gr

        now = self.parts()
        if now == seen:
            return [gr.skip()] * (1 + len(now))
        return [now, *(gr.skip() if part == before else part for part, before in zip(now, seen, strict=True))]

    def parts(self) -> list[str]:
        """The page's parts as HTML; a folder that cannot be read any more is said in the first."""
        try:
            with self.lock:  # visitors share what is read
                shot = self.reader.snapshot()
        except UserError as error:
            return [show.problem(str(error)), *[""] * (len(_PARTS) - 1)]
        return [part(shot) for part in _PARTS]


def _serve_files(app: Any, folder: Path) -> None:
    """The finished run's files under /files/: these names and no others, and no page among them as one of ours."""
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def file(request: Any) -> Response:
        name = request.path_params["name"]
        if name not in FILES or not (folder / name).is_file():
            return PlainTextResponse("no such file", 404)
        # As in its frame: without this, the report opened by itself would have the page's origin.
        headers = {"Content-Security-Policy": "sandbox allow-scripts allow-downloads"} if name == "report.html" else {}
        return FileResponse(folder / name, headers=headers | {"X-Content-Type-Options": "nosniff"})

    app.router.routes.insert(0, Route("/files/{name}", file))


def _launch_options() -> dict[str, Any]:
    from gradio import themes

    # The system's own fonts, and a shade darker than gradio's faint grey: as `rlhf chat`.
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = themes.Default(primary_hue="indigo", neutral_hue="slate", font=sans, font_mono=mono)
    return {
        "theme": theme.set(body_text_color_subdued="*neutral_500"),
        "css": (Path(__file__).parent / "live.css").read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
    }
