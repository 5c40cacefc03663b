"""Policies that are no models here: a file of responses, a server; and what a kill leaves of one that is."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.run import CompareConfig, Config, run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.errors import UserError
from rlhf.models import load_tokenizer
from rlhf.parts import PartFile
from rlhf.records import Messages, Prompt, Response, read_jsonl, write_jsonl
from tests.judge_server import Answer, JudgeServer, Request, says, serve_fixture
from tests.tiny import endless_policies, tiny_policy

__all__ = ["serve_fixture"]

Serve = Callable[..., JudgeServer]
NUM = 5


def vowels(prompts: list[Messages], responses: list[str], **columns: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_policy(folder / "sft", seed=0)
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": f"Number {n}"}]) for n in range(NUM)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    return folder


def _config(place: Path, out: Path, *policies: str, **more: Any) -> Config:
    values = {"max_new_tokens": 8, "num_bootstrap": 200, "batch_size": 4} | more
    settings = CompareConfig(
        policies=list(policies), prompts=str(place / "prompts.jsonl"), output_dir=str(out), **values
    )
    return Config(settings)


def _report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def _lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- A file


def test_a_file_of_responses_is_a_policy(place: Path, tmp_path: Path) -> None:
    texts = [f"I would say aeiou {'a' * n}" for n in range(NUM)]
    file = _lines(tmp_path / "gpt.jsonl", [{"prompt_id": f"p{n}", "text": text} for n, text in enumerate(texts)])
    run(_config(place, tmp_path / "out", str(place / "sft"), file), {"gold": vowels})
    report = _report(tmp_path / "out")
    numbers = report["policies"]["gpt"]
    assert (numbers["kl"], numbers["finished"]) == (None, None)
    tokenizer = load_tokenizer(str(place / "sft"))
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
    assert numbers["length"]["mean"] == pytest.approx(sum(lengths) / NUM)
    assert numbers["gold"]["mean"] == pytest.approx(sum(vowels([], texts)) / NUM)
    assert report["settings"]["sources"]["gpt"]["file"] == "gpt.jsonl"
    rows = read_jsonl(tmp_path / "out" / "responses.gpt.jsonl", Response)
    assert [row.text for row in rows] == texts  # people can judge them too


def test_of_a_file_whether_a_response_ended_is_kept(place: Path, tmp_path: Path) -> None:
    """The responses of an earlier comparison, of which there were two a prompt."""
    run(_config(place, tmp_path / "one", str(place / "sft"), num_responses=2), {"gold": vowels})
    file = str(tmp_path / "one" / "responses.sft.jsonl")
    run(_config(place, tmp_path / "two", str(place / "sft"), f"again={file}"), {"gold": vowels})
    both = _report(tmp_path / "two")["policies"]
    first = [row for row in read_jsonl(file, Response) if row.sampling["index"] == 0]
    share = sum(row.sampling["finished"] for row in first) / NUM
    assert both["again"]["finished"]["mean"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt_id": "p0", "text": "a"}], r"too few responses to 4 of 5 prompts, the first is `p1` with 0 of 1"),
        ([{"id": "p0", "text": "a"}], r'line 1: is no response; write {"prompt_id": "...", "text": "..."}'),
        ([{"prompt_id": "p0", "text": 3}], r"line 1: is no response"),
        (["words"], r"line 1: is no response"),
    ],
)
def test_a_file_that_lacks_something(place: Path, tmp_path: Path, rows: list[Any], message: str) -> None:
    file = _lines(tmp_path / "gpt.jsonl", rows)
    with pytest.raises(UserError, match=message):
        run(_config(place, tmp_path / "out", str(place / "sft"), file), {"gold": vowels})
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        run(_config(place, tmp_path / "out", str(place / "sft"), str(tmp_path / "none.jsonl")), {"gold": vowels})


def test_somebody_must_count_the_tokens(place: Path, tmp_path: Path) -> None:
    file = _lines(tmp_path / "gpt.jsonl", [{"prompt_id": f"p{n}", "text": "a"} for n in range(NUM)])
    with pytest.raises(UserError, match="policies: are files and servers only; name a model as --reference"):
        run(_config(place, tmp_path / "out", file), {"gold": vowels})
    with pytest.raises(UserError, match=r"reference: .*gpt.jsonl is no model"):
        run(_config(place, tmp_path / "out", str(place / "sft"), reference=file), {"gold": vowels})
    run(_config(place, tmp_path / "out", file, reference=str(place / "sft")), {"gold": vowels})
    assert _report(tmp_path / "out")["settings"]["reference"] == "sft"


def test_what_needs_models_says_so(place: Path, tmp_path: Path) -> None:
    file = _lines(tmp_path / "gpt.jsonl", [{"prompt_id": f"p{n}", "text": "a"} for n in range(NUM)])
    config = _config(place, tmp_path / "out", str(place / "sft"), file)
    with pytest.raises(UserError, match="lm_eval: needs every policy as a model, and gpt is none; leave one of them"):
        run(config._replace(quality=QualityConfig(lm_eval=["arc_easy"])), {"gold": vowels})
    assert not (tmp_path / "out").exists()


# ---- A server


def _speaks(request: Request, _: int = 0) -> Answer:
    return says(f"aeiou {request.body['messages'][-1]['content']} {request.body['seed']}")


def test_a_server_is_a_policy(place: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(_speaks)
    policy = f"theirs={server.url}#big-model"
    run(_config(place, tmp_path / "out", str(place / "sft"), policy, num_responses=2, seed=3), {"gold": vowels})
    report = _report(tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "responses.theirs.jsonl", Response)
    assert [row.text for row in rows] == [f"aeiou Number {n} {seed}" for n in range(NUM) for seed in (3, 4)]
    assert report["policies"]["theirs"]["finished"]["mean"] == 1.0
    assert report["policies"]["theirs"]["kl"] is None
    assert report["settings"]["sources"]["theirs"]["model"] == "big-model"
    body = server.requests[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("big-model", 1.0, 8)
    assert len(server.requests) == 2 * NUM


def test_a_server_is_asked_nothing_twice(place: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda request, number: _speaks(request) if number <= 3 else Answer(401, b"who are you"))
    policy = f"theirs={server.url}#m"
    with pytest.raises(UserError, match="answered HTTP 401"):
        run(_config(place, tmp_path / "out", str(place / "sft"), policy), {"gold": vowels})
    kept = len((tmp_path / "out" / "answers.theirs.jsonl").read_text().splitlines())
    server.answer, before = _speaks, len(server.requests)
    run(_config(place, tmp_path / "out", str(place / "sft"), policy, resume=True), {"gold": vowels})
    assert kept == 3 and len(server.requests) - before == NUM - kept


def test_a_cut_answer_and_a_refusal(place: Path, tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda *_: says("aeiou", finish="length"))
    run(_config(place, tmp_path / "out", str(place / "sft"), f"theirs={server.url}#m"), {"gold": vowels})
    assert _report(tmp_path / "out")["policies"]["theirs"]["finished"]["mean"] == 0.0
    refuses = serve(lambda *_: Answer(400, b"not that"))
    with pytest.raises(UserError, match=r"theirs: .* will not answer prompt `p\d` \(HTTP 400 'not that'\); compare on"):
        run(_config(place, tmp_path / "no", str(place / "sft"), f"theirs={refuses.url}#m"), {"gold": vowels})


def test_a_server_without_a_model(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no model; write it as theirs=http"):
        run(_config(place, tmp_path / "out", str(place / "sft"), "theirs=http://127.0.0.1:1/v1"), {"gold": vowels})
    assert not (tmp_path / "out").exists()


# ---- A model, killed in the middle

_KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf import parts
from tests.test_compare_sources import _config, vowels
from rlhf.compare.run import run
add = parts.PartFile.add
def add_and_die(self, number, rows):
    add(self, number, rows)
    if len(self.done) == 2 and self.path.name == "responses.b.part":
        os.kill(os.getpid(), signal.SIGKILL)
parts.PartFile.add = add_and_die
place, out = map(Path, sys.argv[1:])
run(_config(place, out, str(place / "a"), str(place / "b")), {"gold": vowels})
"""


def test_no_batch_is_done_twice(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless_policies(place, ("a", "b"))
    policies = (str(place / "a"), str(place / "b"))
    run(_config(place, tmp_path / "whole", *policies), {"gold": vowels})
    command = [sys.executable, "-c", _KILLED, str(place), str(tmp_path / "out")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    part = tmp_path / "out" / "responses.b.part"
    assert len(PartFile(part).done) == 2  # of two batches, one of four prompts and one of one
    added: list[tuple[str, int]] = []
    add = PartFile.add

    def noted(self: PartFile, number: int, rows: list[dict[str, Any]]) -> None:
        added.append((self.path.name, number))
        add(self, number, rows)

    monkeypatch.setattr(PartFile, "add", noted)
    run(_config(place, tmp_path / "out", *policies, resume=True), {"gold": vowels})
    assert not [name for name, _ in added if name.startswith("responses.")] and not part.exists()
    for name in ("report.json", "responses.a.jsonl", "responses.b.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_part_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_text('{"other": 1}\n')
    with pytest.raises(UserError, match=r"x.part: holds no batches of ours; remove it and run again"):
        PartFile(tmp_path / "x.part")
