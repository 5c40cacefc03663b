"""Talk to one policy in the browser, or to two side by side on the same message."""

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.errors import UserError
from rlhf.generate import Sampling
from rlhf.models import Policy, load_policy
from rlhf.ports import choose_port, url_of
from rlhf.records import Messages
from rlhf.streaming import stream

_LONGEST_REPLY = 2048  # tokens, where the context has room for more


@dataclass(frozen=True)
class ChatConfig:
    """Which policies to talk to, how they sample at first, and where the page is."""

    policies: list[str] = field(metadata={"help": "folder of one policy, or of two to see side by side"})
    temperature: float = field(default=1.0, metadata={"help": "at first; 0 = always the likeliest token"})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "longest reply at first, in tokens; 256 or half the context where not set"}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "a .jinja file in place of the checkpoint's own chat template"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 lets other machines in"})
    port: int = field(default=7860, metadata={"help": "port to listen on; 0 = any free one"})
    dtype: str | None = field(
        default=None, metadata={"help": "float32 if not set, bfloat16, float16 or auto (as saved)"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the checkpoint"})

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature is {self.temperature}, should be from 0 to 2")


class Config(NamedTuple):
    """The config of `rlhf chat`."""

    chat: ChatConfig


def run(config: Config) -> None:
    """Show the page until Ctrl-C; prints its address.

    Raises UserError for no or more than two policies, a folder that is no policy, a port in use and
    a reply length that leaves no room for a conversation.
    """
    with contextlib.suppress(KeyboardInterrupt), chatting(config.chat) as url:
        print(f"chat with {' and '.join(names(config.chat.policies))} at {url} (Ctrl-C stops it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def chatting(settings: ChatConfig) -> Iterator[str]:
    """The page, open at the address that is yielded, closed on the way out. Raises as `run`."""
    if not 1 <= len(settings.policies) <= 2:
        raise UserError(f"policies: chat takes one policy or two, there are {len(settings.policies)}")
    port = choose_port(settings.host, settings.port)
    loading = settings.dtype, settings.trust_remote_code, settings.chat_template_path
    policies = [load_policy(path, *loading) for path in settings.policies]
    length, longest = _reply_length(policies, settings.max_new_tokens)
    page = Page(policies, names(settings.policies), Sampling(settings.temperature, length), longest)
    blocks = page.build()
    try:
        blocks.launch(server_name=settings.host, server_port=port, **_launch_options())
        yield url_of(settings.host, port)
    finally:
        blocks.close(verbose=False)


def names(paths: Sequence[str]) -> list[str]:
    """What to call each policy: as little of the end of its path as tells them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, 1)]


def harmless(text: str) -> str:
    """A model's text as markdown that shows every tag as it was written, and fetches no image.

    Code stays as it is: markdown shows it literally already. The page sanitises all of it once more.
    """
    parts = _CODE.split(text)
    parts[::2] = [_MARKUP.sub(lambda found: _AS_TEXT[found[0]], part) for part in parts[::2]]
    return "".join(parts)


# Only what is code for every reader of markdown: a fence at the start of a line, single backticks.
_CODE = re.compile(r"(^```[^`\n]*\n.*?(?:^```[ \t]*$|\Z)|(?<![\\`])`[^`\n]+`(?!`))", re.DOTALL | re.MULTILINE)
_MARKUP = re.compile(r"[<&]|!(?=\[)")
_AS_TEXT = {"<": "&lt;", "&": "&amp;", "!": "\\!"}


def _reply_length(policies: Sequence[Policy], asked: int | None) -> tuple[int, int]:
    """The longest reply at first, and the longest one that can be asked for, in tokens."""
    # Half the context at most, so that a conversation fits beside it.
    longest = min(_LONGEST_REPLY, min(policy.max_length for policy in policies) // 2)
    if asked is not None and not 1 <= asked <= longest:
        raise UserError(f"max_new_tokens: {asked} should be from 1 to {longest}, half the context of the policies")
    return asked or min(256, longest), longest


_CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .main.app { padding: 16px clamp(12px, 3vw, 32px) !important; }
/* A long word breaks and a long line of code scrolls in its box: neither widens the page. */
.gradio-container, .gradio-container :is(.app, .wrap, main) { min-width: 0; width: 100%; }
.conversation .prose { overflow-wrap: anywhere; }
.conversation { height: min(56dvh, 640px) !important; }
.conversation .icon-button-wrapper { display: none !important; }  /* it would clear what is shown, not what was said */
.name h2 { margin: 0 !important; font-size: var(--text-lg) !important; }
.ending p { min-height: 1.5em; font-size: var(--text-sm); color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  .conversation.beside { height: 36dvh !important; }
}
"""


def _launch_options() -> dict[str, Any]:
    from gradio import themes

    # The system's own fonts: gradio's are fetched from the network.
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = themes.Default(primary_hue="indigo", neutral_hue="slate", font=sans, font_mono=mono)
    return {
        # A shade darker than gradio's, which is too faint to read on white (2.6 : 1).
        "theme": theme.set(body_text_color_subdued="*neutral_500", input_placeholder_color="*neutral_500"),
        "css": _CSS,
        "footer_links": [],
        "run_history": False,  # conversations stay in this window
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
    }


@dataclass
class Page:
    """The page: a column a policy, one message box below them.

    Each visitor has histories of their own, and an event that stops their replies.
    """

    policies: Sequence[Policy]
    names: Sequence[str]
    sampling: Sampling
    longest: int
    stops: dict[str, threading.Event] = field(default_factory=dict)  # visitor -> stops their replies

    def build(self) -> Any:
        """The gradio Blocks, not launched yet."""
        import gradio as gr

        one = len(self.names) == 1
        title = f"Chat with {self.names[0]}" if one else "Two policies, one message"
        with gr.Blocks(title=title, analytics_enabled=False) as blocks:
            gr.Markdown(harmless(f"# {title}"))
            self.histories = gr.State([[] for _ in self.names])
            with gr.Row():
                columns = [self._column(name, one) for name in self.names]
            self.columns, self.endings = zip(*columns, strict=True)
            self.message = gr.Textbox(
                label="Message", placeholder="Write a message, Enter sends it", max_lines=8, autofocus=True
            )
            with gr.Row():
                self.send = gr.Button("Send", variant="primary", scale=0, min_width=84)
                self.stop = gr.Button("Stop", interactive=False, scale=0, min_width=84)
                self.clear = gr.Button("Clear", scale=0, min_width=84)
            with gr.Row():
                with gr.Column(min_width=240):
                    likeliest = "0 takes the likeliest token, always"
                    now = self.sampling.temperature
                    temperature = gr.Slider(0, 2, now, step=0.05, label="Temperature", info=likeliest)
                with gr.Column(min_width=240):
                    about = "in tokens, about four characters each"
                    now = self.sampling.max_new_tokens
                    length = gr.Slider(1, self.longest, now, step=1, label="Longest reply", info=about)
            self._wire([self.message, self.histories, temperature, length])
        return blocks

    def _column(self, name: str, alone: bool) -> tuple[Any, Any]:
        import gradio as gr

        with gr.Column(min_width=280):
            if not alone:  # else the title names it
                gr.Markdown(harmless(f"## {name}"), elem_classes="name")
            conversation = gr.Chatbot(
                label=f"Conversation with {name}",
                show_label=False,
                layout="bubble",
                placeholder="Nothing said yet",
                sanitize_html=True,
                allow_tags=False,
                latex_delimiters=[],
                buttons=[],
                elem_classes=["conversation", "alone" if alone else "beside"],
            )
            return conversation, gr.Markdown(elem_classes="ending")

    def _wire(self, inputs: list[Any]) -> None:
        import gradio as gr

        # Gradio hands over the visitor's request by its type, which is only known here.
        def reply(message: str, histories: list[Messages], temperature: float, length: float, request: gr.Request):
            sampling = Sampling(temperature, min(int(length), self.longest))
            yield from self._reply(message, histories, sampling, str(request.session_hash))

        def stop(request: gr.Request) -> None:
            if event := self.stops.get(str(request.session_hash)):
                event.set()

        shown = [self.message, self.histories, *self.columns, *self.endings, self.send, self.stop, self.clear]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([self.send.click, self.message.submit], reply, inputs, shown, concurrency_limit=4, **quiet)
        self.stop.click(stop, queue=False, **quiet)
        self.clear.click(self._empty, outputs=shown, queue=False, **quiet)

    def _reply(self, message: str, histories: list[Messages], sampling: Sampling, visitor: str) -> Iterator[dict]:
        if not message.strip():
            yield {self.message: ""}
            return
        asked = [[*history, {"role": "user", "content": message.strip()}] for history in histories]
        replies = [""] * len(asked)
        stop = self.stops[visitor] = threading.Event()
        try:
            yield self._busy(True) | {self.message: ""} | self._show(asked, replies) | dict.fromkeys(self.endings, "")
            for piece in stream(self.policies, asked, sampling, stop):
                replies[piece.column] = piece.text
                ending = {} if piece.ending is None else {self.endings[piece.column]: harmless(piece.ending)}
                yield self._show(asked, replies) | ending
        finally:
            self.stops.pop(visitor, None)
        answered = [
            [*history, {"role": "assistant", "content": text}] for history, text in zip(asked, replies, strict=True)
        ]
        yield self._busy(False) | {self.histories: answered}

    def _show(self, histories: list[Messages], replies: list[str]) -> dict:
        shown = {}
        for column, history, text in zip(self.columns, histories, replies, strict=True):
            messages = [*history, {"role": "assistant", "content": text or "\N{HORIZONTAL ELLIPSIS}"}]
            shown[column] = [message | {"content": harmless(message["content"])} for message in messages]
        return shown

    def _busy(self, busy: bool) -> dict:
        import gradio as gr

        # Not two replies at once, and nothing to clear while one is written.
        return {
            self.send: gr.Button(interactive=not busy),
            self.stop: gr.Button(interactive=busy),
            self.clear: gr.Button(interactive=not busy),
        }

    def _empty(self) -> dict:
        nothing = {self.message: "", self.histories: [[] for _ in self.names]}
        return nothing | {column: [] for column in self.columns} | dict.fromkeys(self.endings, "") | self._busy(False)
