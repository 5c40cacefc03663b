"""The live view: what a comparison's folder holds so far, and the page in a real browser beside a real comparison."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.compare import answers as answers_module
from rlhf.compare.anytime import AnytimeInterval
from rlhf.compare.live import page
from rlhf.compare.live.folder import RunReader
from rlhf.compare.live.page import watching
from rlhf.compare.live.scores import PROMPTS, ScoresSoFar
from rlhf.compare.live.show import escaped, progress, rates
from rlhf.compare.run import CompareConfig, Config, run
from rlhf.config import parse
from rlhf.errors import UserError
from rlhf.parts import PartFile
from rlhf.records import Prompt, Run, write_jsonl
from tests.hostile import HOSTILE
from tests.test_compare_run import vowels
from tests.tiny import tiny_policy

PATIENCE = 60_000  # milliseconds an expectation may take on a busy machine
ROOT = Path(__file__).parents[1]


def a_run(folder: Path, num_prompts: int = 4, stage: str = "compare", **config: Any) -> Path:
    """An unfinished comparison of `sft`, `dpo` and `ppo`, begun at 1970-01-01T00:01:40, without answers."""
    folder.mkdir(exist_ok=True)
    config = {"policies": ["sft", "dpo", "ppo"], "num_responses": 1, "confidence": 0.95} | config
    record = Run("compare-1", stage, [], config, {}, None, {}, started="1970-01-01T00:01:40+00:00")
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    write_jsonl(
        folder / PROMPTS, [Prompt(f"p{n}", [{"role": "user", "content": f"ask {n}"}]) for n in range(num_prompts)]
    )
    return folder


def add(folder: Path, policy: str, texts: dict[int, str], scores: dict[int, float], at: float = 0) -> None:
    """A batch of answers and of gold's scores, written at `at` seconds since 1970."""
    with PartFile(folder / f"responses.{policy}.part") as part:
        part.add(len(part.done), [{"prompt_index": n, "index": 0, "text": text} for n, text in texts.items()])
    with PartFile(folder / "scores.gold.part") as part:
        rows = [{"policy": policy, "prompt": n, "index": 0, "score": score} for n, score in scores.items()]
        part.add(len(part.done), rows)
    os.utime(folder / f"responses.{policy}.part", (at, at))


def test_a_snapshot_by_hand(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    assert [stage.done for stage in RunReader(folder).snapshot().stages] == [0, 0, 0, 0]
    add(folder, "sft", dict.fromkeys(range(4), "a"), dict.fromkeys(range(4), 1.0), at=120)
    add(folder, "dpo", {3: "b", 1: "c", 2: "d"}, {3: 2.0, 1: 1.0, 2: 0.5})
    shot = RunReader(folder).snapshot()
    assert [(stage.name, stage.done, stage.total) for stage in shot.stages] == [
        ("Answers of sft", 4, 4),
        ("Answers of dpo", 3, 4),
        ("Answers of ppo", 0, 4),
        ("Scores of gold", 7, 12),
        ("Statistics and report", 0, 1),
    ]
    dpo, ppo = shot.rates
    assert dpo.interval and dpo.interval.n == 3
    assert dpo.interval == AnytimeInterval().look([1, 0.5, 0])  # a win, a tie, a loss
    assert ppo.interval is None
    assert [one.number for one in shot.examples] == [3, 2, 4]  # what came last is first
    assert shot.examples[0].answers == {"sft": [("a", {"gold": 1.0})], "dpo": [("d", {"gold": 0.5})]}
    assert "3 of 4 answers" in progress(shot) and "anytime-valid" in rates(shot)


def test_the_time_left_by_hand(tmp_path: Path) -> None:
    """Half of the prompts in 20 seconds, the last batch 5 seconds ago: 15 to go, and 40 for each policy after."""
    folder = a_run(tmp_path / "run")
    add(folder, "sft", {0: "a", 1: "b"}, {}, at=120)
    sft, dpo, ppo, *_ = RunReader(folder).snapshot(now=125).stages
    assert (sft.seconds, dpo.seconds, ppo.seconds) == (15, 40, 40)


def test_a_reader_meets_a_line_that_is_being_written(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    add(folder, "sft", {0: "a"}, {0: 1.0})
    part = folder / "responses.sft.part"
    torn = part.read_bytes() + b'{"batch": 1, "ro'
    part.write_bytes(torn)
    assert RunReader(folder).snapshot().stages[0].done == 1
    assert part.read_bytes() == torn  # whoever reads mends nothing


def test_what_cannot_be_watched_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torn = a_run(tmp_path / "torn")
    (torn / "responses.sft.part").write_text('{"other": 1}\n')
    texts = a_run(tmp_path / "texts")
    (texts / "responses.sft.part").write_text('{"batch": 0, "rows": [{"index": 0}]}\n')
    scores = a_run(tmp_path / "scores")
    (scores / "scores.gold.part").write_text('{"batch": 0, "rows": [{"policy": "sft"}]}\n')
    bare = a_run(tmp_path / "bare")
    record = json.loads((bare / "run.json").read_text())
    (bare / "run.json").write_text(json.dumps(record | {"config": {}}))
    cases = {
        str(tmp_path / "nowhere"): "nowhere: is not a run folder (no run.json)",
        str(a_run(tmp_path / "other", stage="sft")): "other: holds a sft run, no comparison; give the folder of",
        str(torn): "responses.sft.part: holds no batches of ours",
        str(texts): "responses.sft.part: holds no answers; remove it",
        str(scores): "scores.gold.part: holds no scores; remove it",
        str(bare): "run.json: has no `policies` in its config",
    }
    for folder, words in cases.items():
        with pytest.raises(SystemExit) as ended:
            main(["watch", folder])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and words in error and error.count("\n") == 1


def test_judges_score_as_answers_come_and_one_that_fails_waits_for_the_end(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def gold(prompts: list, responses: list[str], **columns: Any) -> list[float]:
        asked.append(responses)
        return [float("nan") if text == "bad" else 1.0 for text in responses]

    prompts = [Prompt(f"p{n}", [{"role": "user", "content": "x"}]) for n in range(3)]
    (tmp_path / "scores.gold.part").write_text("of a judge since mended\n")
    so_far = ScoresSoFar({"gold": gold}, prompts, tmp_path)
    so_far.hear("sft", [(0, 0, "a"), (1, 0, "b")])
    so_far.hear("dpo", [(0, 0, "a"), (1, 0, "c")])  # the same text to the same prompt is judged once
    assert asked == [["a", "b"], ["c"]] and so_far.known["gold"] == {(0, "a"): 1.0, (1, "b"): 1.0, (1, "c"): 1.0}
    so_far.hear("dpo", [(2, 0, "bad")])
    so_far.hear("dpo", [(2, 0, "d")])
    assert len(asked) == 3 and so_far.known["gold"] == {} and not (tmp_path / "scores.gold.part").exists()


def test_no_template_is_left_in_what_is_shown() -> None:
    for _, text in HOSTILE:
        shown = escaped(text)
        assert not set("<>${}`\\\"'\0") & set(shown)
        shown.encode()


class Visitor:
    """A browser window on the page."""

    def __init__(self, browser: Any, url: str, width: int = 1280) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        self.expect = expect
        self.page = browser.new_page(viewport={"width": width, "height": 860})
        self.page.set_default_timeout(PATIENCE)
        self.asked_for: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.goto(url)

    def bar(self, name: str) -> Any:
        return self.page.get_by_role("progressbar", name=name)

    def sideways(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def asked_elsewhere(self) -> list[str]:
        return [url for url in self.asked_for if not url.startswith(("http://127.0.0.1", "data:"))]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Each batch of answers waits until it is let through."""
    semaphore, real = threading.Semaphore(0), answers_module.generate

    def waiting(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in real(*args, **kwargs):
            assert semaphore.acquire(timeout=120)
            yield batch

    monkeypatch.setattr(answers_module, "generate", waiting)
    yield semaphore
    semaphore.release(1000)


def test_a_page_beside_a_comparison(browser: Any, gate: threading.Semaphore, tmp_path: Path) -> None:
    for seed, name in enumerate(("sft", "dpo")):
        tiny_policy(tmp_path / name, seed=seed)
    write_jsonl(
        tmp_path / "prompts.jsonl", [Prompt(f"p{n}", [{"role": "user", "content": f"Hello {n}"}]) for n in range(8)]
    )
    policies, out = [str(tmp_path / "sft"), str(tmp_path / "dpo")], tmp_path / "out"
    settings = CompareConfig(
        policies, str(tmp_path / "prompts.jsonl"), str(out), max_new_tokens=6, batch_size=2, num_bootstrap=200
    )
    failed: list[BaseException] = []

    def compare() -> None:
        try:
            run(Config(settings), {"gold": vowels})
        except BaseException as error:
            failed.append(error)

    gate.release(5)  # all of sft, two prompts of dpo
    thread = threading.Thread(target=compare)
    thread.start()
    _until(lambda: (out / "responses.dpo.part").exists() or failed)
    with watching(out) as url:
        first, second = Visitor(browser, url), Visitor(browser, url, width=390)
        for visitor in (first, second):
            visitor.expect(visitor.bar("Answers of sft")).to_have_attribute("aria-valuenow", "8")
            visitor.expect(visitor.bar("Answers of dpo")).to_have_attribute("aria-valuenow", "2")
            visitor.expect(visitor.page.locator(".live-rate")).to_contain_text("n = 2")
            visitor.expect(visitor.page.locator(".live-example")).to_have_count(2)
            visitor.expect(visitor.page.get_by_text("anytime-valid")).to_be_visible()
            assert visitor.sideways() <= 0
        gate.release(1)
        for visitor in (first, second):
            visitor.expect(visitor.bar("Answers of dpo")).to_have_attribute("aria-valuenow", "4")
            visitor.expect(visitor.page.locator(".live-rate")).to_contain_text("n = 4")
        before = first.page.locator(".live-rate").inner_text()
        first.page.reload()
        first.expect(first.page.locator(".live-rate")).to_contain_text("n = 4")
        assert first.page.locator(".live-rate").inner_text() == before
        gate.release(2)
        thread.join(120)
        assert not failed and not list(out.glob("*.part"))
        for visitor in (first, second):
            visitor.expect(visitor.page.locator(".live-state")).to_have_text("Done")
            frame = visitor.page.frame_locator(".live-report")
            visitor.expect(frame.get_by_role("heading", level=1)).to_contain_text("by gold")
            visitor.expect(visitor.page.locator(".live-example")).to_have_count(0)
            assert visitor.sideways() <= 0
            assert visitor.asked_elsewhere() == []
        assert first.page.locator("iframe.live-report").get_attribute("sandbox") == "allow-scripts allow-downloads"
        with first.page.expect_download() as download:
            first.page.get_by_role("link", name="report.json").click()
        assert Path(download.value.path()).read_bytes() == (out / "report.json").read_bytes()
        assert first.page.request.get(f"{url}/files/run.json").status == 404
        assert first.page.request.get(f"{url}/files/..%2Frun.json").status == 404
        (out / "run.json").unlink()
        first.page.reload()
        first.expect(first.page.get_by_role("alert")).to_contain_text("is not a run folder")
        for visitor in (first, second):
            visitor.page.close()


def test_hostile_texts_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    texts = [text for _, text in HOSTILE if len(text) <= 500 and "\0" not in text and text.strip()]
    size = 40  # answers to each of the four prompts that are shown
    texts = [text.encode("utf-8", "replace").decode() for text in texts][: 4 * size]
    folder = a_run(tmp_path / "run", policies=["sft"], num_responses=size)
    with PartFile(folder / "responses.sft.part") as part:
        rows = [{"prompt_index": at // size, "index": at % size, "text": text} for at, text in enumerate(texts)]
        part.add(0, rows)
    with watching(folder) as url:
        visitor = Visitor(browser, url)
        visitor.expect(visitor.page.locator(".live-example")).to_have_count(4)
        shown = visitor.page.locator(".live-answer .live-text").evaluate_all("all => all.map(one => one.textContent)")
        rows = [texts[start : start + size] for start in range(0, len(texts), size)]
        expected = [text for row in reversed(rows) for text in row]
        normal = [text.replace("\r\n", "\n").replace("\r", "\n") for text in expected]
        assert [text.replace("\r\n", "\n").replace("\r", "\n") for text in shown] == normal
        alive = "script, img, iframe, style, b, u, svg, math, form, [onerror], [href]"
        visitor.expect(visitor.page.locator(".live-answer").locator(alive)).to_have_count(0)
        assert visitor.dialogs == [] and visitor.asked_elsewhere() == [] and visitor.sideways() <= 0
        visitor.page.close()


def test_compare_shows_the_page_itself_until_ctrl_c(tmp_path: Path) -> None:
    tiny_policy(tmp_path / "sft")
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt("p0", [{"role": "user", "content": "Hello"}])])
    flags = {
        "policies": tmp_path / "sft",
        "prompts": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path / "out",
        "gold": "tests.test_compare_run:vowels",
        "max_new_tokens": 4,
        "live": "true",
        "port": 0,
    }
    (tmp_path / "compare.yaml").write_text("{}\n")
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "rlhf", "compare", "--config", str(tmp_path / "compare.yaml"), *words]

    def hear() -> None:
        """A shell's background job has SIGINT ignored, and hands that on."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=hear, **output) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("done; the live view stays"):
                process.send_signal(signal.SIGINT)
                break
        lines += process.stdout
        assert process.wait(60) == 0
    assert any(line.startswith("live view at http://127.0.0.1:") for line in lines)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["finished"] and not {"live", "port"} & set(record["config"])


def test_the_config_is_that_of_the_flags() -> None:
    flags = ["--run", "out", "--config", "configs/watch.yaml"]
    assert parse(page.Config, flags, None) == parse(page.Config, flags[:2], None)


def test_a_port_in_use_shows_before_the_run(tmp_path: Path) -> None:
    import socket

    write_jsonl(tmp_path / "prompts.jsonl", [Prompt("p0", [{"role": "user", "content": "Hello"}])])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = CompareConfig(["sft"], str(tmp_path / "prompts.jsonl"), str(tmp_path / "out"), live=True, port=port)
        with pytest.raises(UserError, match=rf"^port: {port} on 127.0.0.1 cannot be used"):
            run(Config(settings), {"gold": vowels})
    assert not (tmp_path / "out").exists()


def _until(true: Any) -> None:
    """Wait for a file that another thread writes."""
    waiting = threading.Event()
    for _ in range(1200):
        if true():
            return
        waiting.wait(0.1)
    raise AssertionError("nothing came in two minutes")
