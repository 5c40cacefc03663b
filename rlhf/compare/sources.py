"""Where a policy's answers come from: a model that is loaded here, a file of responses, or a server."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from rlhf.compare.answers import Answers, Heard, Questions, answer_all
from rlhf.compare.llm_judge.budget import Budget
from rlhf.compare.llm_judge.cache import Reply, ReplyCache, request_key
from rlhf.compare.llm_judge.endpoint import JudgeEndpoint, Refused
from rlhf.compare.statistics import UNDECIDED
from rlhf.errors import UserError
from rlhf.models import load_tokenizer
from rlhf.records import Prompt, Response, make_id, write_jsonl
from rlhf.runs import file_sha256

MODEL, FILE, SERVER = "model", "file", "server"


def source_of(path: str) -> str:
    """What a policy's path is: `http...#model` a server, `*.jsonl` a file of responses, anything else a model."""
    if path.startswith(("http://", "https://")):
        return SERVER
    return FILE if path.endswith(".jsonl") else MODEL


def named_policies(given: list[str]) -> dict[str, str]:
    """Display name to path: `name=path`, or a path whose last folder is the name.

    Raises UserError for no policy, two of one name, and names that cannot be part of a file's name.
    """
    policies: dict[str, str] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or os.sep in name or Path(entry).exists():
            name, path = folder_name(entry), entry
        if not name or not path or name != name.strip() or name.startswith(".") or name == UNDECIDED:
            raise UserError(f"policies: `{entry}` gives no name to show; write it as name=path")
        if name in policies:
            raise UserError(
                f"policies: `{policies[name]}` and `{path}` have the same name `{name}`; "
                f"give one another, as {name}2={path}"
            )
        policies[name] = path
    if not policies:
        raise UserError("policies: is empty; give run folders or checkpoints, the baseline first")
    return policies


def folder_name(path: str) -> str:
    if source_of(path) == SERVER:
        return path.partition("#")[2]
    if source_of(path) == FILE:
        return Path(path).stem
    return Path(path).name or Path(path).resolve().name


def models_of(policies: Mapping[str, str]) -> dict[str, str]:
    """The policies that can be loaded here."""
    return {name: path for name, path in policies.items() if source_of(path) == MODEL}


def check_sources(policies: Mapping[str, str], reference: str | None, questions: Questions) -> str:
    """The reference: the one named, else the first model.

    Raises UserError for a file or server as the reference, where there is no model at all, for files that lack
    responses, and for a server without a model's name.
    """
    if reference is not None and source_of(reference) != MODEL:
        raise UserError(f"reference: {reference} is no model; name the SFT start, whose tokenizer counts lengths")
    for name, path in policies.items():
        if source_of(path) == SERVER:
            _server(name, path, questions, None)
        elif source_of(path) == FILE:
            read_responses(path, questions)
    if reference is None and not models_of(policies):
        raise UserError(
            "policies: are files and servers only; name a model as --reference, whose tokenizer counts lengths"
        )
    return reference or next(iter(models_of(policies).values()))


def described(policies: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What report.json says of policies that are no models here."""
    found = {}
    for name, path in policies.items():
        if source_of(path) == SERVER:
            found[name] = {"server": urlsplit(path).netloc.rpartition("@")[2], "model": urlsplit(path).fragment}
        elif source_of(path) == FILE:
            found[name] = {"file": Path(path).name, "sha256": file_sha256(path)}
    return found


def answer_policies(
    policies: Mapping[str, str], reference: str, questions: Questions, folder: Path, heard: Heard | None = None
) -> list[Answers]:
    """The answers of every policy, in their order, each written to `responses.<name>.jsonl`; models as `answer_all`.

    Lengths of the others are in the reference's tokens, the end of turn included; they have no KL, and a file may
    not say whether a response ended by itself.
    """
    found = {one.name: one for one in answer_all(models_of(policies), reference, questions, folder, heard)}
    others = {name: path for name, path in policies.items() if name not in found}
    tokenizer = load_tokenizer(reference, trust_remote_code=questions.trust_remote_code) if others else None
    for name, path in others.items():
        if source_of(path) == FILE:
            texts = read_responses(path, questions)
            id = f"file-{file_sha256(path)[:12]}"
        else:
            texts = _ask(_server(name, path, questions, folder / f"answers.{name}.jsonl"), name, questions)
            id = f"server-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        rows = [
            [_response(prompt, at, text, finished, id, questions, tokenizer) for at, (text, finished) in enumerate(row)]
            for prompt, row in zip(questions.prompts, texts, strict=True)
        ]
        write_jsonl(folder / f"responses.{name}.jsonl", [response for row in rows for response in row])
        found[name] = Answers(name, rows)
        if heard is not None:
            heard(name, [(at, i, one.text) for at, row in enumerate(rows) for i, one in enumerate(row)])
    return [found[name] for name in policies]


def _response(
    prompt: Prompt, at: int, text: str, finished: bool | None, id: str, questions: Questions, tokenizer: Any
) -> Response:
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + (finished is not False)
    how = asdict(questions.sampling) | {"index": at, "finished": finished, "num_tokens": tokens}
    return Response(make_id("rsp", id, prompt.id, at, text), prompt.id, text, id, how | {"kl": None})


# ---- A file


def read_responses(path: str, questions: Questions) -> list[list[tuple[str, bool | None]]]:
    """By prompt, the texts of a JSONL file of `prompt_id` and `text`, and whether each ended by itself, where told.

    Raises UserError for a missing or broken file, and for prompts with fewer responses than are compared; what a
    file has beyond them is left out.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path}: no such file, or no text; a policy's responses are lines of prompt_id and text"
        ) from None
    found: dict[str, list[tuple[str, bool | None]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id, text = row["prompt_id"], row["text"]
            finished = (row.get("sampling") or {}).get("finished", row.get("finished"))
            if not isinstance(id, str) or not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path}, line {number}: is no response; write {{"prompt_id": "...", "text": "..."}}'
            ) from None
        found.setdefault(id, []).append((text, None if finished is None else bool(finished)))
    short = [prompt.id for prompt in questions.prompts if len(found.get(prompt.id, [])) < questions.num_responses]
    if short:
        raise UserError(
            f"{path}: has too few responses to {len(short):,} of {len(questions.prompts):,} prompts, the first is "
            f"`{short[0]}` with {len(found.get(short[0], []))} of {questions.num_responses}; add them, or compare on "
            "other prompts (--prompts)"
        )
    return [found[prompt.id][: questions.num_responses] for prompt in questions.prompts]


# ---- A server


def _server(name: str, path: str, questions: Questions, kept: Path | None) -> JudgeEndpoint:
    url, _, model = path.partition("#")
    if not model:
        raise UserError(f"policies: {name}={path} names no model; write it as {name}={url}#MODEL")
    sampling = questions.sampling
    return JudgeEndpoint(
        url,
        model,
        cache=None if kept is None else str(kept),
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
    )


def _ask(endpoint: JudgeEndpoint, name: str, questions: Questions) -> list[list[tuple[str, bool | None]]]:
    """Every prompt's responses; what was answered before a kill is read from the cache."""
    from rlhf.compare.llm_judge.client import ChatClient

    stop = threading.Event()
    prompts, size = questions.prompts, questions.num_responses

    with ReplyCache(endpoint.cache) as cache:
        places = [(at, index) for at in range(len(prompts)) for index in range(size)]

        def ask(place: tuple[int, int]) -> Reply:
            at, index = place
            asked = _seeded(endpoint, questions.sampling.seed + index)
            key = request_key(endpoint.model, prompts[at].messages, asked.sampling)
            reply = cache.get(key)
            if reply is None:
                try:
                    reply = clients[index].ask(prompts[at].messages)
                except Refused as error:
                    stop.set()
                    raise UserError(
                        f"{name}: {endpoint.url} will not answer prompt `{prompts[at].id}` ({error}); compare on other "
                        "prompts, or leave this policy out"
                    ) from None
                except BaseException:
                    stop.set()
                    raise
                cache.put(key, reply)
            return reply

        clients = [_client(ChatClient, _seeded(endpoint, questions.sampling.seed + i), stop) for i in range(size)]
        pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="policy")
        try:
            found = list(tqdm(pool.map(ask, places), total=len(places), desc=name, unit=" responses"))
        finally:
            pool.shutdown(cancel_futures=True)
            for client in clients:
                client.__exit__()
    rows: list[list[tuple[str, bool | None]]] = [[] for _ in prompts]
    for (at, _), reply in zip(places, found, strict=True):
        rows[at].append((reply.text, None if reply.finish is None else reply.finish != "length"))
    return rows


def _client(kind: Any, endpoint: JudgeEndpoint, stop: threading.Event) -> Any:
    return kind(endpoint, Budget(endpoint, stop), stop)


def _seeded(endpoint: JudgeEndpoint, seed: int) -> JudgeEndpoint:
    return replace(endpoint, extra_body={"seed": seed})
