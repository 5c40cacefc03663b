"""Known answers and lm-evaluation-harness: how answers are checked, accuracies, and the words."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.compare.page import render_page
from rlhf.compare.quality.harness import Figure, Harness, _figures, check_harness, harness_figures, harness_id
from rlhf.compare.quality.measuring import Measured, Tasks
from rlhf.compare.quality.tasks import Answered, check_answers, how_checked, read_tasks
from rlhf.compare.quality.words import sentences, view
from rlhf.compare.report import build_report
from rlhf.compare.run import run
from rlhf.compare.sections.quality import QualityConfig
from rlhf.errors import UserError
from rlhf.generate import Sampling, generate
from rlhf.models import load_policy
from rlhf.records import Prompt, read_jsonl, write_jsonl
from tests.compare_cases import (
    GOLD,
    PLAIN,
    by_torch,
    compare_config,
    quality_place,
    report_of,
    run_twice,
    written,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny policies, one without a chat template, six prompts and a few demonstrations."""
    return quality_place(tmp_path_factory.mktemp("quality"))


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        ({"answer": 72}, "number"),
        ({"answer": 0.5}, "number"),
        ({"answer": "1,234"}, "number"),
        ({"answer": "$7"}, "number"),
        ({"answer": "-1e6"}, "number"),
        ({"answer": "Half of 144 is 72.\n#### 72"}, "number"),
        ({"answer": "\\frac{3}{4}"}, "number"),
        ({"answer": "72 apples"}, "text"),
        ({"answer": "Paris"}, "text"),
        ({"answer": ["4", "four"]}, "text"),
        ({"answer": True}, "text"),
        ({"answer": 4, "tests": "assert f(2) == 4"}, "code"),
    ],
)
def test_how_an_answer_is_checked(meta: dict[str, Any], kind: str) -> None:
    assert how_checked(Prompt("p", [], meta)) == kind


def test_answers_are_checked_each_in_its_way() -> None:
    metas = [{"answer": 72}, {"answer": "Paris"}, {"tests": "assert f(2) == 4"}, {"answer": 72}, {"tests": ["f(1)"]}]
    tasks = [Prompt(f"t{at}", [{"role": "user", "content": "?"}], meta) for at, meta in enumerate(metas)]
    code = "```python\ndef f(x):\n    return x * x\n```"
    assert check_answers(tasks, ["It is 72.", " paris.", code, "It is 27.", "no code"]) == [1, 1, 1, 0, 0]


def test_tasks_of_code_are_read_where_code_can_be_run(tmp_path: Path) -> None:
    rows = [Prompt("t0", [{"role": "user", "content": "Write f."}], {"tests": "assert f(2) == 4"})]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    assert read_tasks(str(tmp_path / "tasks.jsonl")) == rows


def _tasks(place: Path) -> str:
    """Six tasks, of which the first is the likeliest reply of `dpo`, and no other is anyone's."""
    policy = load_policy(str(place / "dpo"))
    batches = generate(policy, [[{"role": "user", "content": "Task 0"}]], 1, Sampling(0.0, 8), 1)
    said = next(batches)[1][0].text
    answers = [said, "nobody says this", 1, 2, 3, 4]
    rows = [
        Prompt(f"t{n}", [{"role": "user", "content": f"Task {n}"}], {"answer": answer if n else [answer]})
        for n, answer in enumerate(answers)
    ]
    write_jsonl(place / "tasks.jsonl", rows)
    return str(place / "tasks.jsonl")


def test_accuracy_on_tasks(place: Path, tmp_path: Path) -> None:
    quality = QualityConfig(tasks=_tasks(place))
    run_twice(compare_config(place, tmp_path / "out", quality), GOLD)
    part = report_of(tmp_path / "out")["quality"]["tasks"]
    assert (part["file"], part["num_tasks"], part["checks"]) == ("tasks.jsonl", 6, {"text": 2, "number": 4})
    dpo = part["policies"]["dpo"]
    assert dpo["by_check"]["text"]["mean"] == 0.5 and dpo["by_check"]["text"]["n"] == 2
    rows = read_jsonl(tmp_path / "out" / "tasks.dpo.jsonl", Answered)
    assert rows[0].correct == 1.0 and not rows[0].finished
    assert dpo["accuracy"]["mean"] == pytest.approx(np.mean([row.correct for row in rows]), abs=1e-6)
    others = read_jsonl(tmp_path / "out" / "tasks.sft.jsonl", Answered)
    less = np.mean([row.correct for row in rows]) - np.mean([row.correct for row in others])
    assert dpo["difference"]["mean"] == pytest.approx(less, abs=1e-6)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Known answers" in page and "Text, 2" in page and "Number, 4" in page


def test_right_answers_in_words() -> None:
    answered = {
        name: [Answered(f"a{at}", "", True, float(at < num)) for at in range(40)]
        for name, num in (("sft", 10), ("dpo", 30))
    }
    tasks = Tasks("tasks.jsonl", "0", [str(at) for at in range(40)], ["number"] * 40, answered)
    report = build_report(written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}, Measured(tasks=tasks)))
    assert sentences(report)[1].startswith("right answers to 40 tasks beside sft: dpo +50.0 points (+3")
    assert view(report)["parts"][-1]["tables"][0]["columns"] == ["Right", "Less sft", "Finished"]


def test_a_harness_that_is_not_installed(place: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(UserError, match=r"^lm_eval: .* is not installed; pip install lm-eval, or leave"):
            run(compare_config(place, tmp_path / "out", QualityConfig(lm_eval=["arc_easy"])), GOLD)
    assert not (tmp_path / "out").exists()


def test_the_harness_contract(place: Path, tmp_path: Path) -> None:
    """A task of ours, from disk: its accuracy is that of likelihoods by torch alone."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install lm-eval")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    rows = [{"question": f"Question {n}:", "choices": [" yes", " no"], "answer": n % 2} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "ours.yaml").write_text(
        "task: ours\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    told = harness_figures(load_policy(str(place / "sft")), "lme-0", ["ours"], 4, manager)
    figure = next(one for one in told.figures if one.metric == "acc")
    right = []
    for row in rows:
        nlls = [by_torch(place / "sft", row["question"], choice)[0] for choice in row["choices"]]
        right.append(float(np.argmin(nlls) == row["answer"]))
    assert (figure.task, figure.n, figure.value) == ("ours", 8, pytest.approx(np.mean(right)))
    assert figure.stderr == pytest.approx(np.std(right, ddof=1) / math.sqrt(8))
    with pytest.raises(
        UserError, match=r"^lm_eval: the harness has no task `arc_eazy` \(.* lists them\), did you mean"
    ):
        check_harness(["arc_eazy"])
    assert harness_id("run-1", ["ours"]) == harness_id("run-1", ["ours"]) != harness_id("run-2", ["ours"])


def test_figures_of_the_harness_in_the_report(tmp_path: Path) -> None:
    found = {
        "results": {"ours": {"alias": "ours", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25}},
        "n-samples": {"ours": {"original": 20, "effective": 10}},
    }
    sft = _figures(found)
    assert sft == [Figure("ours", "acc", 0.5, 0.1, 10), Figure("ours", "f1, strict", 0.25, None, 10)]
    dpo = [dataclasses.replace(sft[0], value=0.75), sft[1]]
    harness = {"sft": Harness("a", "0.4", sft), "dpo": Harness("b", "0.4", dpo)}
    write_jsonl(tmp_path / "lm_eval.sft.jsonl", [harness["sft"]])
    assert read_jsonl(tmp_path / "lm_eval.sft.jsonl", Harness) == [harness["sft"]]  # as a resumed run has it
    made = written({"sft": [[PLAIN]] * 5, "dpo": [[PLAIN]] * 5}, Measured(harness=harness))
    report = build_report(made)
    acc, f1 = report["quality"]["lm_eval"]["policies"]["dpo"]
    assert acc["figure"] == {"mean": 0.75, "low": 0.554004, "high": 0.945996, "n": 10}  # 1.959964 errors
    assert acc["difference"]["low"] == pytest.approx(0.25 - 1.959964 * math.sqrt(2) * 0.1, abs=1e-6)
    assert f1["figure"]["low"] is None and f1["difference"]["high"] is None
    assert report["quality"]["lm_eval"]["policies"]["sft"][0]["difference"] is None
    page = render_page(made, report)
    assert "lm-evaluation-harness" in page and "ours, acc" in page and "interval unknown" in page
