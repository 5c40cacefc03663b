"""An OpenAI-compatible server on a policy: vLLM's where it is installed, else transformers' own.

The server is another program, started on the policy's folder and stopped with this one. It gets the
folder under a plain name (what clients send as `model`), an adapter merged into its base, and with
a generation_config.json that samples at the temperature a client asks for.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlhf.config import packaged
from rlhf.errors import UserError, disk_full_as_user_error
from rlhf.ports import choose_port, url_of

ENGINES = ("auto", "vllm", "transformers")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_NUM_LOG_LINES = 3  # of a server that died, in the error
_PATIENCE = 15  # seconds a server has to end after it was asked to


@dataclass(frozen=True)
class ServeConfig:
    """Which policy to serve, by which engine, and where."""

    policies: list[str] = field(metadata={"help": "folder of the policy (one)"})
    engine: str = field(
        default="auto", metadata={"help": "vllm, transformers, or auto: vllm where it is installed", "choices": ENGINES}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "a .jinja file in place of the checkpoint's own chat template"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 lets other machines in"})
    port: int = field(default=8000, metadata={"help": "port to listen on; 0 = any free one"})
    api_key: str | None = field(
        default=None, metadata={"help": "key that clients must send (vllm only); VLLM_API_KEY does the same"}
    )
    dtype: str = field(
        default="auto", metadata={"help": "number format of the weights; auto: as saved", "choices": DTYPES}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the checkpoint"})
    show_log: bool = field(default=False, metadata={"help": "show what the server writes"})


class Config(NamedTuple):
    """The config of `rlhf serve`."""

    serve: ServeConfig


@dataclass(frozen=True)
class Server:
    """A server that answers: `url` ends with /v1, `model` is the name to send."""

    engine: str
    url: str
    model: str
    process: subprocess.Popen[str]
    log: deque[str]  # its last lines


def run(config: Config) -> None:
    """Serve until Ctrl-C (or SIGTERM); prints the address and an example once the server answers.

    Raises UserError for a folder that cannot be served, a port in use, a missing engine, and a
    server that dies.
    """
    settings = config.serve
    with contextlib.suppress(KeyboardInterrupt), _terminated_as_interrupt(), serving(settings) as server:
        print(_welcome(server, settings), flush=True)
        server.process.wait()
        raise UserError(f"the server of {settings.policies[0]} ended by itself: {_last_words(server)}")


@contextlib.contextmanager
def serving(settings: ServeConfig) -> Iterator[Server]:
    """A server on the policy, ended on the way out; yields once it answers. Raises as `run`."""
    engine = _engine(settings)
    _check(settings)
    port = choose_port(settings.host, settings.port)
    with tempfile.TemporaryDirectory(prefix="rlhf-serve-") as place:
        folder = _servable(settings, Path(place))
        print(f"starting {engine} on {settings.policies[0]} ...", file=sys.stderr, flush=True)
        url = url_of(settings.host, port)
        process = _start(engine, settings, folder, port)
        server = Server(engine, f"{url}/v1", folder.name, process, deque(maxlen=_NUM_LOG_LINES))
        reader = threading.Thread(target=_read_log, args=(server, settings.show_log), daemon=True)
        reader.start()
        try:
            while not _answers(f"{url}/health"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                    reader.join(timeout=5)
                    raise UserError(f"{engine} could not serve {settings.policies[0]}: {_last_words(server)}")
            yield server
        finally:
            _end(process)


def _engine(settings: ServeConfig) -> str:
    has_vllm = importlib.util.find_spec("vllm") is not None
    engine = ("vllm" if has_vllm else "transformers") if settings.engine == "auto" else settings.engine
    if engine == "vllm" and not has_vllm:
        raise UserError("engine: vllm is not installed; `pip install vllm`, or --engine transformers")
    if engine == "transformers" and settings.api_key:
        raise UserError("api_key: transformers' server knows no keys; `pip install vllm`, or leave the key out")
    return engine


def _check(settings: ServeConfig) -> None:
    """Everything that can be seen to be wrong before a server is started."""
    from rlhf.data.encode import Encoder
    from rlhf.models import check_model_folder, load_tokenizer

    if len(settings.policies) != 1:
        raise UserError(
            f"policies: serve takes one policy, there are {len(settings.policies)}; "
            "start one server each, on a --port of its own"
        )
    path = settings.policies[0]
    check_model_folder(path)
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; for a Hub id, `hf download {path} --local-dir FOLDER` first")
    Encoder(load_tokenizer(path, settings.chat_template_path, settings.trust_remote_code))


def _servable(settings: ServeConfig, place: Path) -> Path:
    """A folder in `place`, named after the policy, that both engines load as it is.

    Made of links to the policy's files, but for a chat template that was asked for and for
    generation_config.json: transformers' server takes the likeliest token whatever temperature it is
    asked for, unless that file says `do_sample`.
    """
    source = Path(settings.policies[0]).resolve()
    # Transformers reads `name@revision` and `name:file` as more than a name.
    folder = place / source.name.replace("@", "-").replace(":", "-")
    folder.mkdir()
    own = {"generation_config.json"} | ({"chat_template.jinja"} if settings.chat_template_path else set())
    with disk_full_as_user_error(folder, "free some and run again"):
        if (source / "adapter_config.json").is_file():
            _merge(settings, folder)
        else:
            for path in source.iterdir():
                if path.is_file() and path.name not in own:
                    (folder / path.name).symlink_to(path)
            kept = source / "generation_config.json"
            if kept.is_file():
                (folder / kept.name).write_bytes(kept.read_bytes())
        if settings.chat_template_path:
            # Where there is this file, no library reads a template from tokenizer_config.json.
            (folder / "chat_template.jinja").write_bytes(packaged(settings.chat_template_path).read_bytes())
        _sample_by_default(folder, settings.trust_remote_code)
    return folder


def _merge(settings: ServeConfig, folder: Path) -> None:
    from rlhf.models import load_causal, load_tokenizer

    (path,) = settings.policies
    load_causal(path, settings.dtype, settings.trust_remote_code).save_pretrained(folder)
    load_tokenizer(path, trust_remote_code=settings.trust_remote_code).save_pretrained(folder)


def _sample_by_default(folder: Path, trust_remote_code: bool) -> None:
    from transformers import AutoConfig, GenerationConfig

    from rlhf.models import load_tokenizer

    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        )
    if not generation.do_sample:
        generation.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    # A turn ends where it ended in training: see rlhf.data.encode.
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    ids = generation.eos_token_id
    ends = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
    generation.update(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    generation.save_pretrained(folder)


def _start(engine: str, settings: ServeConfig, folder: Path, port: int) -> subprocess.Popen[str]:
    command, environment = _command(engine, settings, folder, port)
    return subprocess.Popen(
        command,
        cwd=folder.parent,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that Ctrl-C reaches the server once, from here
    )


def _command(engine: str, settings: ServeConfig, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line, and what it adds to the environment (a key on a command line is no secret)."""
    model = folder.name
    options = ["--host", settings.host, "--port", str(port), "--dtype", settings.dtype]
    if settings.trust_remote_code:
        options.append("--trust-remote-code")
    if engine == "vllm":
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
        key = {"VLLM_API_KEY": settings.api_key} if settings.api_key else {}
        return [*command, "--served-model-name", model, *options], key
    # Transformers' server takes the path it is given as the model's name, so it gets a relative one.
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    cache = _cache_that_lists(folder)
    return [*command, *options], {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def _cache_that_lists(folder: Path) -> Path:
    """A Hub cache that holds this policy's config, and nothing else.

    Transformers' /v1/models lists the cache whatever it serves, and fails where there is none.
    """
    cache = folder.parent / "hub"
    snapshot = cache / f"models--{folder.name}" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((folder / "config.json").read_bytes())
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text(snapshot.name)
    return cache


def _answers(url: str) -> bool:
    try:
        # Not through a proxy, which could not reach this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _read_log(server: Server, show: bool) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        if show:
            print(line, end="", file=sys.stderr, flush=True)
        if line.strip():
            server.log.append(line.strip())


def _last_words(server: Server) -> str:
    said = " | ".join(server.log) or "it wrote nothing"
    return f"exit code {server.process.returncode}, {said}; --show_log true shows all it writes"


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the server and the processes it started to end, and make them where they do not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # A second Ctrl-C while waiting is impatience: ask harder.
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(timeout=_PATIENCE)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM (of a scheduler, a container) as Ctrl-C, so that the server ends too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _welcome(server: Server, settings: ServeConfig) -> str:
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
    has_key = server.engine == "vllm" and (settings.api_key or os.environ.get("VLLM_API_KEY"))
    key = ' -H "Authorization: Bearer $VLLM_API_KEY"' if has_key else ""
    return (
        f"{server.model} answers at {server.url} (Ctrl-C stops it); try: "
        f"curl {server.url}/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )
