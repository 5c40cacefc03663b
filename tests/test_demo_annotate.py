"""demo-rank with a person: the real stage in a process of its own, a real browser, Ctrl-C."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from rlhf.demo.annotate import NUM_PRACTICE, practice_tasks
from rlhf.demo.rank import Config, RankConfig, read_tasks
from rlhf.records import Ranking, Task, read_jsonl, write_jsonl
from rlhf.runs import read_run
from tests.test_demo_rank import PROMPTS, responses_to

PATIENCE = 60_000  # milliseconds an expectation may take on a busy machine
STAGE = """
import sys
from rlhf.demo import annotate
from rlhf.demo.rank import RankConfig
from rlhf.errors import UserError
folder = sys.argv[1]
files = {"prompts": [f"{folder}/prompts.jsonl"], "responses": [f"{folder}/responses.jsonl"]}
try:
    annotate.run(annotate.Config(RankConfig(**files, output_dir=f"{folder}/ranked", port=0, resume=True)))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    write_jsonl(tmp_path / "responses.jsonl", responses_to(PROMPTS, 4))
    return tmp_path


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    yield opened
    opened.close()


def start(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    """The stage, and the link that it prints."""
    log = folder / "stage.log"
    with log.open("w") as out:
        stage = subprocess.Popen([sys.executable, "-c", STAGE, str(folder)], stdout=out, stderr=out, text=True)
    deadline = time.monotonic() + 120
    while not ((found := re.search(r"http\S+/join/\S+(?=\n)", log.read_text())) and answers(found.group())):
        assert stage.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"no link in two minutes\n{log.read_text()}"
        time.sleep(0.1)
    return stage, found.group()


def answers(link: str) -> bool:
    """Whether the app is up: before that, Ctrl-C ends the stage as it does anything."""
    try:
        with urlopen(f"{link.split('/join/')[0]}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def stop(stage: "subprocess.Popen[str]") -> int:
    """Ctrl-C, and the exit code."""
    stage.send_signal(signal.SIGINT)
    return stage.wait(60)


def test_a_person_ranks_in_the_annotators_place_and_the_stage_goes_on(inputs: Path, page: Any) -> None:
    stage, link = start(inputs)
    page.goto(link)
    page.get_by_label("Name").fill("Lea")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Join").click()
    page.goto(f"{link.split('/join/')[0]}/rank")
    page.get_by_role("button", name="I have read them").click()
    for number in range(NUM_PRACTICE + 2):
        page.get_by_text("Start with the best response").wait_for()
        for key in ("d", "b", "=", "a", "c", "Enter"):
            page.keyboard.press(key)
        if number < NUM_PRACTICE:
            page.get_by_role("button", name="Next").click()
    page.get_by_text("2 in all").wait_for()
    assert stop(stage) == 0, (inputs / "stage.log").read_text()

    tasks = {task.id: task for task in read_jsonl(inputs / "ranked" / "tasks.jsonl", Task)}
    rankings = read_jsonl(inputs / "ranked" / "rankings.jsonl", Ranking)
    assert len(tasks) == len(PROMPTS) and len(rankings) == 2
    for ranking in rankings:
        # d first, b and a tied behind it, c last, in the order that was on screen
        assert [ranking.ranks[id] for id in ranking.shown] == [2, 2, 3, 1]
        assert set(ranking.ranks) == {response.id for response in tasks[ranking.task_id].responses}
        assert ranking.annotator == "Lea"
    run = read_run(str(inputs / "ranked"))
    assert run.finished and run.metrics["num_rankings"] == 2 and run.metrics["num_annotators"] == 1


def test_with_nothing_ranked_it_says_so_and_can_go_on(inputs: Path) -> None:
    for _ in range(2):  # the second time in the same folder, with the same store
        stage, _ = start(inputs)
        assert stop(stage) == 1
        assert (
            "nothing is ranked yet; the same command again opens the app where it was"
            in (inputs / "stage.log").read_text()
        )
    assert (inputs / "ranked" / "labels.db").is_file()
    assert not read_run(str(inputs / "ranked")).finished


def test_practice_is_what_the_rubric_tells_apart_most_clearly(inputs: Path) -> None:
    files = {"prompts": [str(inputs / "prompts.jsonl")], "responses": [str(inputs / "responses.jsonl")]}
    _, tasks = read_tasks(Config(RankConfig(**files, output_dir="unused")).rank)  # type: ignore[arg-type]
    rows = practice_tasks(tasks, NUM_PRACTICE)
    assert len(rows) == NUM_PRACTICE
    for row in rows:
        assert '"id": "practice-' in row and '"explanation": "The best one earns' in row
