"""`rlhf serve`: a real server on a tiny policy, asked through the openai client, and every error."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from rlhf import serve
from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.ports import choose_port, url_of
from rlhf.serve import ServeConfig, serving
from tests.tiny import tiny_policy

HELLO = [{"role": "user", "content": "Hello"}]


def settings_for(folder, **changes) -> ServeConfig:
    return ServeConfig(**({"policies": [str(folder)], "engine": "transformers", "port": 0} | changes))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tiny_policy(tmp_path_factory.mktemp("runs") / "sft@run")
    with serving(settings_for(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def test_a_reply(server, client):
    answer = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=8)
    assert server.model == "sft-run"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 8


def test_a_streamed_reply(server, client):
    # The likeliest tokens, always the same: of those drawn all eight may be parts of one character, sent as one.
    ask = {"model": server.model, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_the_temperature_a_client_asks_for_counts(server, client):
    def replies(temperature):
        ask = {"model": server.model, "messages": HELLO, "max_tokens": 16, "temperature": temperature}
        return {client.chat.completions.create(**ask).choices[0].message.content for _ in range(3)}

    assert len(replies(0.0)) == 1
    assert len(replies(2.0)) > 1


def test_clients_that_list_models_find_the_policy(server, client):
    assert [model.id for model in client.models.list()] == [server.model]


def test_the_policys_own_folder_is_left_as_it_was(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "place").mkdir()
    served = serve._servable(settings_for(folder), tmp_path / "place")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    generation = json.loads((served / "generation_config.json").read_text())
    assert generation["do_sample"] is True
    assert generation["top_k"] == 0
    assert generation["eos_token_id"] == [2]  # <|im_end|>, after <|pad|> and <|im_start|>


def test_a_checkpoint_that_samples_keeps_its_own_settings(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 7, "eos_token_id": 5}))
    (tmp_path / "place").mkdir()
    served = serve._servable(settings_for(folder), tmp_path / "place")
    generation = json.loads((served / "generation_config.json").read_text())
    assert generation["top_k"] == 7
    assert generation["eos_token_id"] == [2, 5]


def test_a_template_that_was_asked_for_is_served(tmp_path):
    from rlhf.models import load_tokenizer

    folder = tiny_policy(tmp_path / "run")
    (folder / "chat_template.jinja").unlink()  # a checkpoint without any, as many base models are
    (tmp_path / "place").mkdir()
    template = "configs/templates/user_bot.jinja"
    served = serve._servable(settings_for(folder, chat_template_path=template), tmp_path / "place")
    text = load_tokenizer(str(served)).apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert text == "User: Hello\nBot:"
    assert not (folder / "chat_template.jinja").exists()


def test_an_adapter_is_merged_into_its_base(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    from rlhf.models import load_causal, load_tokenizer

    base = tiny_policy(tmp_path / "base")
    adapter = get_peft_model(load_causal(str(base)), LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(base)).save_pretrained(tmp_path / "adapter")

    (tmp_path / "place").mkdir()
    served = serve._servable(settings_for(tmp_path / "adapter"), tmp_path / "place")
    assert not (served / "adapter_config.json").exists()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = load_causal(str(served))(ids).logits
        assert torch.allclose(logits, adapter.eval()(ids).logits, atol=1e-5)
        assert not torch.allclose(logits, load_causal(str(base))(ids).logits, atol=1e-3)


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_the_verb(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
    code += "import sys; from rlhf.serve import *; from rlhf.config import parse; run(parse(Config, sys.argv[1:]))"
    flags = ["--policies", str(folder), "--engine", "transformers", "--port", "0"]
    verb = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)
    line = verb.stdout.readline()  # comes when the server answers
    assert line.startswith("run answers at http://127.0.0.1:")
    assert "curl http://127.0.0.1:" in line
    assert '"model": "run"' in line
    port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
    curl = line.split("try: ")[1]
    assert json.loads(subprocess.run(curl, shell=True, capture_output=True, check=True).stdout)["choices"]
    verb.send_signal(signal.SIGINT)
    assert verb.wait(timeout=60) == 0
    assert verb.stdout.read() == ""
    choose_port("127.0.0.1", port)  # would raise were the server still there


# A program in the place of a server: it answers /health, and minds Ctrl-C or not.
STUB = """
import http.server, signal, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes `serve` start a program of ours instead of a server; returns settings."""

    def make(*arguments: str, code: str = STUB) -> ServeConfig:
        command = [sys.executable, "-c", code]
        monkeypatch.setattr(serve, "_command", lambda e, s, f, port: ([*command, str(port), *arguments], {}))
        return settings_for(tiny_policy(tmp_path / "run"))

    return make


def test_sigterm_ends_the_server_too(stub, monkeypatch):
    started = []

    def welcome(server, settings):
        started.append(server.process)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(serve, "_welcome", welcome)
    serve.run(serve.Config(stub("")))
    assert started[0].returncode is not None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_server_that_does_not_mind_ctrl_c_is_killed(stub, monkeypatch):
    monkeypatch.setattr(serve, "_PATIENCE", 0.2)
    with serving(stub("stubborn")) as server:
        assert server.process.poll() is None
    assert server.process.returncode == -signal.SIGKILL


def test_what_vllm_is_started_with(tmp_path):
    settings = settings_for("run", api_key="secret", host="0.0.0.0", dtype="bfloat16")
    command, environment = serve._command("vllm", settings, tmp_path / "run", 8001)
    assert command[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert command[4:] == [
        *(str(tmp_path / "run"), "--served-model-name", "run"),
        *("--host", "0.0.0.0", "--port", "8001", "--dtype", "bfloat16"),
    ]
    assert environment == {"VLLM_API_KEY": "secret"}


def test_the_config_that_comes_with_rlhf_is_valid():
    config = parse(serve.Config, ["--config", "configs/serve.yaml", "--policies", "run"])
    assert config.serve == ServeConfig(["run"])


# --- errors ------------------------------------------------------------------------------------


def refused(settings: ServeConfig) -> str:
    with pytest.raises(UserError) as error:
        serve.run(serve.Config(settings))
    return str(error.value)


def test_a_folder_that_does_not_exist(tmp_path):
    assert f"{tmp_path / 'none'}: no such model folder" in refused(settings_for(tmp_path / "none"))


def test_a_hub_id_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "owner/name: no such folder; for a Hub id, `hf download" in refused(settings_for("owner/name"))


def test_a_folder_without_template(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(settings_for(folder))


def test_a_folder_without_tokenizer(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    assert "tokenizer" in refused(settings_for(folder))


def test_two_policies(tmp_path):
    assert "serve takes one policy, there are 2" in refused(settings_for("a", policies=["a", "b"]))


def test_a_port_in_use(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(settings_for(folder, port=port))
    assert message.startswith(f"port: {port} on 127.0.0.1 cannot be used (Address already in use); choose another")


def test_a_port_that_is_none():
    with pytest.raises(UserError, match="port: 70000 is not a port; choose one from 1024 to 65535"):
        choose_port("127.0.0.1", 70000)


def test_a_free_port_is_none_that_the_kernel_lends_to_connections():
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    chosen = {choose_port(host, 0) for host in ("127.0.0.1", "0.0.0.0", "::1", "localhost") for _ in range(20)}
    assert len(chosen) > 70  # of 15,000, so that two jobs that begin at once do not meet
    assert not any(first <= port <= last for port in chosen)


def test_a_free_port_where_the_kernel_lends_all(monkeypatch, tmp_path):
    (tmp_path / "range").write_text("1024\t65535\n")
    for lent in (tmp_path / "range", tmp_path / "none"):  # the second: a system that does not say
        monkeypatch.setattr("rlhf.ports._LENT", lent)
        with socket.create_server(("127.0.0.1", choose_port("127.0.0.1", 0))):
            pass


def test_a_host_that_is_not_known():
    with pytest.raises(UserError, match=r"host: `no such host` is not known"):
        choose_port("no such host", 0)


def test_a_host_of_another_machine():
    with pytest.raises(UserError, match=r"on 192\.0\.2\.1 cannot be used"):  # an address for documentation (RFC 5737)
        choose_port("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("gpu-3", "http://gpu-3:80"),
    ],
)
def test_the_address_to_type(host, url):
    assert url_of(host, 80) == url


def test_vllm_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "engine: vllm is not installed" in refused(settings_for("run", engine="vllm"))


def test_a_key_that_nobody_would_ask_for():
    assert "transformers' server knows no keys" in refused(settings_for("run", api_key="secret"))


@pytest.mark.parametrize("flag", ["--engine", "--dtype"])
def test_an_unknown_choice(flag):
    with pytest.raises(UserError, match=f"{flag[2:]}: invalid choice: 'other'"):
        parse(serve.Config, ["--policies", "run", flag, "other"])


def test_a_server_that_cannot_start_says_why(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"broken")
    message = refused(settings_for(folder))
    assert message.startswith(f"transformers could not serve {folder}: exit code 1, ")
    assert "afetensor" in message
    assert "\n" not in message


def test_a_server_that_cannot_start_shows_its_last_lines(stub):
    code = "import sys; [print('line', n) for n in range(9)]; sys.exit(3)"
    message = refused(stub(code=code))
    assert ": exit code 3, line 6 | line 7 | line 8; --show_log true shows all it writes" in message


def test_a_server_that_dies_without_a_word(stub):
    assert "exit code 4, it wrote nothing;" in refused(stub(code="raise SystemExit(4)"))


def test_a_server_that_dies_later_says_so(stub, monkeypatch):
    monkeypatch.setattr(serve, "_welcome", lambda server, settings: server.process.kill())
    assert "run ended by itself: exit code -9, " in refused(stub(""))


def test_the_servers_log_can_be_seen(stub, capfd):
    refused(dataclasses.replace(stub(code="print('a word'); raise SystemExit(1)"), show_log=True))
    assert "a word" in capfd.readouterr().err
