"""A compare run as blind tasks: every two policies that differ, nothing that tells whose a text is, nothing twice."""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from labeling_app.blind import Leak, comparison_tasks, leaks_sentence, read_votes
from labeling_app.handout import Rules, next_turn
from labeling_app.loading import SetRules, load_tasks
from labeling_app.store import Store
from rlhf.errors import UserError
from rlhf.records import Prompt, Response, Task, write_jsonl
from rlhf.runs import open_run
from tests.stored_cases import START, memory, person
from tests.stored_cases import load as load_rows

Texts = dict[str, list[list[str]]]  # by policy, by prompt: the responses
_folders = count()


def compare_run(place: Path, texts: Texts, finish: bool = True, **config: Any) -> str:
    """A run folder as `rlhf compare` leaves it, from texts by hand."""
    root = place / f"place{next(_folders)}"
    out = root / "compare"
    num = len(next(iter(texts.values())))
    prompts = [Prompt(f"p{n}", [{"role": "user", "content": f"Question {n}"}], {"n": n}) for n in range(num)]
    write_jsonl(root / "prompts.jsonl", prompts)
    values = {"prompts": str(root / "prompts.jsonl"), "policies": list(texts), "num_prompts": None}
    with open_run("compare", out, values | config, {"prompts": root / "prompts.jsonl"}) as run:
        for name, rows in texts.items():
            write_jsonl(
                out / f"responses.{name}.jsonl",
                [
                    Response(f"{name}{n}.{at}", f"p{n}", text, f"run-{name}-77")
                    for n, row in enumerate(rows)
                    for at, text in enumerate(row)
                ],
            )
        (out / "report.json").write_text(json.dumps({"settings": {"policies": list(texts)}}))
        if finish:
            run.finish()
    return str(out)


def asked(tasks: list[Task]) -> list[tuple[str, str, str]]:
    return [(task.prompt.id, *(response.id for response in task.responses)) for task in tasks]  # type: ignore[misc]


def test_every_prompt_and_every_two_policies_that_differ(tmp_path: Path) -> None:
    texts = {
        "start": [["yes", "other"], ["same", "x"]],
        "one": [["no", "other"], ["same", "y"]],  # at p1 only second responses differ, which are not asked
        "two": [["yes", "other"], ["good", "z"]],
    }
    tasks, leaks = comparison_tasks(compare_run(tmp_path, texts))
    assert leaks == [] and leaks_sentence(leaks) is None
    assert asked(tasks) == [
        ("p0", "start0.0", "one0.0"),
        ("p0", "one0.0", "two0.0"),
        ("p1", "start1.0", "two1.0"),
        ("p1", "one1.0", "two1.0"),
    ]
    assert tasks[0].responses[0] == Response("start0.0", "p0", "yes", "run-start-77")
    assert tasks[0].prompt == Prompt("p0", [{"role": "user", "content": "Question 0"}], {"n": 0})
    assert len({task.id for task in tasks}) == 4


def test_loading_a_run_twice_adds_nothing_and_a_changed_text_is_a_new_task(tmp_path: Path) -> None:
    texts = {"start": [["yes"], ["well"]], "one": [["no"], ["bad"]]}
    folder = compare_run(tmp_path, texts)
    rules = SetRules(kind="comparison")
    with memory() as connection:
        for expected in ((2, 0), (0, 2)):
            assert load_tasks(connection, folder, comparison_tasks(folder)[0], "task", rules, START) == expected
        changed = comparison_tasks(compare_run(tmp_path, texts | {"one": [["no"], ["worse"]]}))[0]
        assert load_tasks(connection, folder, changed, "task", rules, START) == (1, 1)


def test_a_browser_gets_texts_in_either_order_and_no_name(tmp_path: Path) -> None:
    texts = {"start": [["yes"]], "one": [["no"]]}
    folder = compare_run(tmp_path, texts)
    firsts = []
    with memory() as connection:
        load_rows(connection, folder, comparison_tasks(folder)[0], of="comparison", overlap=40)
        for number in range(40):
            turn = next_turn(connection, person(connection, f"ann {number}"), Rules(), START)
            assert turn is not None
            shown = repr(turn)
            assert not [word for word in ("start", "one0", "run-", "cmp-") if word in shown]
            firsts.append(turn.responses[0])
    assert 8 <= firsts.count("yes") <= 32  # of fair coins, beyond it once in 10,000; the seed is fixed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("As policy A, I would wait.", ["As policy A"]),
        ("as the model 2 I would", ["as the model 2"]),
        ("Ask model B about it", ["model B"]),
        ("I am the DPO model.", ["I am the DPO model"]),
        ("Well, I\u2019m a PPO-trained assistant", ["I\u2019m a PPO-trained assistant"]),
        ("as your fine-tuned language model", ["as your fine-tuned language model"]),
        ("I was trained with RLHF to help", ["I was trained with RLHF"]),
        ("I've been fine-tuned using DPO", ["I've been fine-tuned using DPO"]),
        ("Greetings from TUNED_v2!", ["TUNED_v2"]),
        ("Greetings from tuned v2-final", ["tuned v2"]),
        ("\uff34uned-v2 says hi", ["Tuned-v2"]),  # full-width T
        ("the start-er is tuned_v3, run-tuned_v2-778", ["start", "tuned_v2"]),
        ("see run-tuned_v2-77", ["run-tuned_v2-77"]),
        ("loaded /models/exp9/step_5 now", ["/models/exp9/step_5"]),
        ("I am, by exp8, it", ["exp8"]),
    ],
)
def test_a_text_that_tells_whose_it_is_is_a_leak(tmp_path: Path, text: str, words: list[str]) -> None:
    texts = {"start": [["fine"], ["good"]], "tuned_v2": [[text], ["bad"]]}
    folder = compare_run(tmp_path, texts, policies=["start=runs/exp8/checkpoint-10", "tuned_v2=/models/exp9/step_5"])
    tasks, leaks = comparison_tasks(folder)
    assert [(leak.policy, leak.words) for leak in leaks] == [("tuned_v2", words)]
    assert asked(tasks) == [("p1", "start1.0", "tuned_v21.0")]
    assert leaks[0].task_id not in {task.id for task in tasks}


@pytest.mark.parametrize(
    "text",
    [
        "As the assistant I can help; the model I use is a model a friend has.",
        "We restarted. The starter is untuned v2x.",
        "I am the shop's assistant, as a policy we take returns, and I was trained with care.",
        "The A model is sold, policy number 12 covers it. 1 a b",
    ],
)
def test_what_tells_nothing_is_no_leak(tmp_path: Path, text: str) -> None:
    texts = {"start": [["fine"]], "tuned_v2": [[text]], "a": [["well"]], "1": [["so"]]}
    tasks, leaks = comparison_tasks(compare_run(tmp_path, texts))
    assert leaks == [] and len(tasks) == 6


def test_a_leak_takes_its_tasks_out_and_they_are_counted(tmp_path: Path) -> None:
    texts = {"start": [["I am no dpo"], ["b"]], "dpo": [["I am dpo"], ["b"]], "best": [["c"], ["d"]]}
    tasks, leaks = comparison_tasks(compare_run(tmp_path, texts))
    assert asked(tasks) == [("p1", "start1.0", "best1.0"), ("p1", "dpo1.0", "best1.0")]
    assert [(leak.policy, leak.words) for leak in leaks] == [
        ("start", ["dpo"]),
        ("dpo", ["dpo"]),
        ("start", ["dpo"]),
        ("dpo", ["dpo"]),
    ]
    assert leaks[0].task_id == leaks[1].task_id
    assert leaks_sentence(leaks) == "3 comparisons are left out: a response says whose it is (start: 'dpo')"
    one = [Leak("t", "dpo", ["as policy A", "dpo"])]
    assert leaks_sentence(one) == "1 comparison is left out: a response says whose it is (dpo: 'as policy A', 'dpo')"


def test_folders_that_are_no_finished_comparison(tmp_path: Path) -> None:
    texts = {"start": [["a"], ["b"]], "one": [["c"], ["d"]]}

    def refused(words: str, folder: str | Path) -> None:
        with pytest.raises(UserError, match=words):
            comparison_tasks(str(folder))

    refused(r"nowhere: is not a run folder \(no run.json\); give the output_dir", tmp_path / "nowhere")
    with open_run("sft", tmp_path / "sft", {}, {}) as run:
        run.finish()
    refused("sft: is a sft run; give the output_dir of `rlhf compare`", tmp_path / "sft")
    refused("is not finished; go on with `rlhf compare ... --resume true` first", compare_run(tmp_path, texts, False))
    refused("compares 1 policy; give a run of two or more", compare_run(tmp_path, {"start": [["a"]]}))
    same = {"start": [["a"], ["b"]], "one": [["a"], ["I am one"]]}
    refused(
        "leaves nothing to judge: 1 pairs of responses say whose they are, the others read the same; compare other",
        compare_run(tmp_path, same),
    )

    for content in (None, "{", "[]", '{"settings": {"policies": [1]}}', '{"settings": {"policies": "ab"}}'):
        report = Path(folder := compare_run(tmp_path, texts)) / "report.json"
        report.unlink() if content is None else report.write_text(content)
        refused("report.json: is missing or names no policies; run compare again into another folder", folder)

    (Path(folder := compare_run(tmp_path, texts)) / "responses.one.jsonl").unlink()
    refused("responses.one.jsonl: no such file", folder)
    path = Path(folder := compare_run(tmp_path, texts)) / "responses.one.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    refused("responses.one.jsonl: does not fit the prompts, prompt `p1` is in one of them only; run compare", folder)
    prompts = Path(folder := compare_run(tmp_path, texts)).parent / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("Question 0", "Question 9"))
    refused("its prompts .*prompts.jsonl have changed since; put them back, or run compare again", folder)
    prompts.unlink()
    refused("its prompts .*prompts.jsonl are not there; put them back, or start from the folder where", folder)


def test_only_the_prompts_that_were_compared(tmp_path: Path) -> None:
    """compare's num_prompts takes the first so many of the file."""
    folder = compare_run(tmp_path, {"start": [["a"], ["b"]], "one": [["c"], ["d"]]}, num_prompts=1)
    for name in ("start", "one"):
        path = Path(folder) / f"responses.{name}.jsonl"
        path.write_text(path.read_text().splitlines()[0])
    assert [task.prompt.id for task in comparison_tasks(folder)[0]] == ["p0"]


def test_votes_are_read_from_comparisons_only(tmp_path: Path) -> None:
    folder = compare_run(tmp_path, {"start": [["a"]], "one": [["c"]]})
    url = str(tmp_path / "labels.db")
    with pytest.raises(UserError, match=r"labels.db: no such label store; `rlhf label --comparison RUN` makes one"):
        read_votes(url)
    tasks = comparison_tasks(folder)[0]
    store = Store(url)
    store.write(lambda connection: load_rows(connection, folder, tasks, of="comparison"))
    store.write(lambda connection: load_rows(connection, "other", [Task("t", tasks[0].prompt, tasks[0].responses)]))
    store.close()
    assert read_votes(url) == (tasks, [])
    shutil.rmtree(folder)  # the store stands on its own
    assert read_votes(url) == (tasks, [])
