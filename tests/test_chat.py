"""`rlhf chat`: replies that stream and stop, what the page is made of, and what is refused."""

import dataclasses
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from rlhf import chat, streaming
from rlhf.chat import ChatConfig, Page, chatting, harmless, names
from rlhf.config import parse
from rlhf.data.encode import Encoder
from rlhf.errors import UserError
from rlhf.generate import Sampling, generate
from rlhf.models import load_policy
from rlhf.streaming import Piece, stream
from tests.tiny import endless_policies, tiny_policy

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    return endless_policies(tmp_path_factory.mktemp("chat"), ("sft", "ppo"))


@pytest.fixture(scope="module")
def policies(folders):
    return [load_policy(folder) for folder in folders]


def greedy(policy, messages) -> str:
    """The reply by the other way to get one."""
    ((_, (reply,)),) = generate(policy, [messages], 1, GREEDY, batch_size=1)
    return reply.text


def last(pieces) -> dict[int, Piece]:
    return {piece.column: piece for piece in pieces}


# --- replies that grow -------------------------------------------------------------------------


def test_replies_grow_and_end_as_generate_writes_them(policies):
    pieces = list(stream(policies, [HELLO, HELLO], GREEDY, threading.Event()))
    for column, policy in enumerate(policies):
        *growing, final = [piece for piece in pieces if piece.column == column]
        assert final.text == greedy(policy, HELLO)
        assert final.ending == "reached the longest reply after 12 tokens"
        assert all(piece.ending is None for piece in growing)
        assert [len(piece.text) for piece in growing] == sorted(len(piece.text) for piece in growing)


def test_stop_ends_the_writing_at_the_next_token(policies):
    stop = threading.Event()
    replies = stream(policies, [HELLO, HELLO], Sampling(1.0, 2000), stop)
    next(replies)
    stop.set()
    for piece in last(replies).values():
        assert piece.ending is not None
        assert piece.ending.startswith("stopped after ")
        assert int(piece.ending.split()[2]) < 2000


def test_nobody_writes_on_when_the_reader_leaves(policies):
    before = threading.active_count()
    replies = stream(policies, [HELLO, HELLO], Sampling(1.0, 2000), threading.Event())
    next(replies)
    assert threading.active_count() > before
    replies.close()
    assert threading.active_count() == before


def test_a_policy_that_ends_its_turn(policies):
    (policy, _) = policies
    every_token_ends = Encoder(policy.tokenizer, stop_ids=range(len(policy.tokenizer)))
    policy = dataclasses.replace(policy, encoder=every_token_ends)
    pieces = last(stream([policy], [HELLO], GREEDY, threading.Event()))
    assert pieces[0].ending == "ended its turn after 1 token"


def test_a_policy_that_fails_says_so_and_the_other_goes_on(policies):
    class Broken:
        device = "cpu"

        def generate(self, **_):
            raise RuntimeError("out of memory")

    broken = dataclasses.replace(policies[0], model=Broken())
    pieces = last(stream([broken, policies[1]], [HELLO, HELLO], GREEDY, threading.Event()))
    assert pieces[0] == Piece(0, "", "failed: out of memory")
    assert pieces[1].text == greedy(policies[1], HELLO)


def test_a_conversation_that_no_longer_fits_is_said(policies):
    policy = dataclasses.replace(policies[0], max_length=60)
    turns = [*HELLO, {"role": "assistant", "content": "word " * 40}, *HELLO]
    pieces = last(stream([policy], [turns], GREEDY, threading.Event()))
    assert pieces[0].ending == (
        "reached the longest reply after 12 tokens; the start of the conversation no longer fits its context"
    )


def test_half_a_character_waits_for_the_other_half(policies):
    import queue

    import torch

    pieces: queue.Queue[Piece] = queue.Queue()
    feed = streaming._Feed(0, policies[0], pieces)
    feed.put(torch.tensor([[5, 6, 7]]))  # the prompt
    first, second = policies[0].tokenizer("é", add_special_tokens=False)["input_ids"]
    feed.put(torch.tensor([first]))
    assert pieces.empty()
    feed.put(torch.tensor([second]))
    assert pieces.get_nowait() == Piece(0, "é")


# --- what the page is made of ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/runs/sft"], ["sft"]),
        (["/runs/sft", "/runs/ppo/"], ["sft", "ppo"]),
        (["/a/run", "/b/run"], ["a/run", "b/run"]),
        (["/a/run", "/a/run"], ["run (1)", "run (2)"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(paths, expected):
    assert names(paths) == expected


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("plain **bold**", "plain **bold**"),
        ("<b>&lt;", "&lt;b>&amp;lt;"),
        ("![pic](http://x) [link](http://x)", "\\![pic](http://x) [link](http://x)"),
        ("`<b>` and <b>", "`<b>` and &lt;b>"),
        ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n&lt;b>"),
        ("```\n<b> of a reply that still grows", "```\n<b> of a reply that still grows"),
        # No code for markdown, so not for us either.
        ("not a fence ```\n<b>", "not a fence ```\n&lt;b>"),
        ("``<b>`", "``&lt;b>`"),
        ("\\`<b>\\`", "\\`&lt;b>\\`"),
    ],
)
def test_tags_become_text_and_code_stays(text, markdown):
    assert harmless(text) == markdown


def test_each_policy_has_a_history_of_its_own(policies):
    page = Page(policies, ["sft", "ppo"], GREEDY, longest=64)
    page.build()
    first = list(page._reply("Hello", [[], []], GREEDY, "visitor"))[-1][page.histories]
    assert first == [[*HELLO, {"role": "assistant", "content": greedy(policy, HELLO)}] for policy in policies]
    second = list(page._reply(" and then? ", first, GREEDY, "visitor"))[-1][page.histories]
    for policy, before, after in zip(policies, first, second, strict=True):
        asked = [*before, {"role": "user", "content": "and then?"}]
        assert after == [*asked, {"role": "assistant", "content": greedy(policy, asked)}]
    assert not page.stops


def test_an_empty_message_is_not_sent(policies):
    page = Page(policies, ["sft", "ppo"], GREEDY, longest=64)
    page.build()
    assert list(page._reply("  \n", [[], []], GREEDY, "visitor")) == [{page.message: ""}]


def test_the_module_costs_nothing_until_it_runs():
    code = "import rlhf.chat, sys; assert not {'gradio', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_config_that_comes_with_rlhf_is_valid():
    config = parse(chat.Config, ["--config", "configs/chat.yaml", "--policies", "a", "b"])
    assert config.chat == ChatConfig(["a", "b"])


@pytest.mark.slow
def test_ctrl_c_ends_the_verb(folders):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
    code += "import sys; from rlhf.chat import *; from rlhf.config import parse; run(parse(Config, sys.argv[1:]))"
    flags = ["--policies", *folders, "--port", "0"]
    verb = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)
    assert verb.stdout is not None
    line = verb.stdout.readline()
    assert line.startswith("chat with sft and ppo at http://127.0.0.1:")
    verb.send_signal(signal.SIGINT)
    assert verb.wait(timeout=60) == 0


# --- errors ------------------------------------------------------------------------------------


def refused(policies: list[str], **settings: Any) -> str:
    settings = {"port": 0, **settings}
    with pytest.raises(UserError) as error:
        chat.run(chat.Config(ChatConfig(policies, **settings)))
    return str(error.value)


@pytest.mark.parametrize("number", [0, 3])
def test_not_one_or_two_policies(folders, number):
    assert refused(folders[:1] * number) == f"policies: chat takes one policy or two, there are {number}"


def test_a_folder_that_does_not_exist(tmp_path):
    assert f"{tmp_path / 'none'}: no such model folder" in refused([str(tmp_path / "none")])


def test_a_folder_without_tokenizer(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    assert "tokenizer" in refused([str(folder)])


def test_a_folder_without_template_and_the_mend_it_names(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    (folder / "chat_template.jinja").unlink()
    message = refused([str(folder)])
    assert "has no chat template" in message
    assert "--chat_template_path configs/templates/chatml.jinja" in message
    with chatting(ChatConfig([str(folder)], port=0, chat_template_path="configs/templates/chatml.jinja")) as url:
        assert url.startswith("http://127.0.0.1:")


def test_a_port_in_use(folders):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(folders, port=port)
    assert message.startswith(f"port: {port} on 127.0.0.1 cannot be used (Address already in use); choose another")


@pytest.mark.parametrize("length", [0, 2049])
def test_a_reply_that_leaves_no_room(folders, length):
    message = refused(folders, max_new_tokens=length)
    assert message == f"max_new_tokens: {length} should be from 1 to 2048, half the context of the policies"


def test_a_temperature_out_of_range():
    with pytest.raises(UserError, match=r"temperature is 3\.0, should be from 0 to 2"):
        parse(chat.Config, ["--policies", "a", "--temperature", "3"])
