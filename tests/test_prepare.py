"""The whole stage: files in, records out, and nothing written where the input is bad."""

import csv
import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import parse
from rlhf.data.prepare import Config, run
from rlhf.data.split import check_splits, prompt_key
from rlhf.errors import UserError
from rlhf.records import Demonstration, Preference, Prompt, Ranking, Run, Task, Tie, read_jsonl
from rlhf.runs import read_run

SHARED = Path(__file__).parents[2] / "shared"
CONFIG = Path(__file__).parents[1] / "configs" / "prepare.yaml"


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., tuple[Run, Path]]:
    """Run the stage with the shipped config and these flags."""

    def call(*flags: object) -> tuple[Run, Path]:
        out = tmp_path / "out"
        argv = ["--config", str(CONFIG), "--output_dir", str(out), *map(str, flags)]
        return run(parse(Config, argv)), out

    return call


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}?", "chosen": f"good {n}", "rejected": "bad", "topic": n} for n in range(num)]


def read_all(folder: Path, kind: str, record: type) -> list[Any]:
    return [row for path in sorted(folder.glob(f"{kind}.*.jsonl")) for row in read_jsonl(path, record)]


def test_several_inputs_of_several_formats(prepare: Any, tmp_path: Path) -> None:
    first = write_rows(
        tmp_path / "pairs.jsonl", [*pairs(60), pairs(60)[0], {"prompt": "q", "chosen": "", "rejected": "x"}]
    )
    second = tmp_path / "chats.json"
    second.write_text(
        json.dumps([{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}])
    )
    third = tmp_path / "text.txt"
    third.write_text("One.\n\nTwo.")
    record, out = prepare("--input", first, second, third)
    preferences = read_all(out, "preferences", Preference)
    prompts = read_all(out, "prompts", Prompt)
    assert len(preferences) == 60 and len(prompts) == 61 and len(read_all(out, "demonstrations", Demonstration)) == 1
    assert {p.group_id for p in preferences} < {p.id for p in prompts}
    assert sorted(p.meta["topic"] for p in prompts if p.meta) == list(range(60))
    texts = [json.loads(line) for path in out.glob("text.*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(text["text"] for text in texts) == ["One.", "Two."]

    assert record.finished and record == read_run(out)
    assert [(each["format"], each["rows"]) for each in record.metrics["inputs"]] == [
        ("preference", 62),
        ("messages", 1),
        ("text", 2),
    ]
    dropped = {step["step"]: step["dropped"] for step in record.metrics["steps"] if step["dropped"]}
    assert dropped == {"drop what is empty": {"empty reply": 1}, "drop exact duplicates": {"exact duplicate": 1}}
    assert sum(split.get("preferences", 0) for split in record.metrics["splits"].values()) == 60
    assert set(record.data_sha256) == {str(first), str(second), str(third)}


def test_the_splits_hold_what_the_shares_say_and_no_prompt_twice(prepare: Any, tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"] + extra} for row in pairs(300) for extra in ("", "!")]
    shares = ["--train_share", 0.5, "--validation_share", 0.25, "--test_share", 0.25]
    record, out = prepare("--input", write_rows(tmp_path / "a.jsonl", rows), *shares)
    assert set(record.metrics["splits"]) == {"train", "validation", "test"}
    check_splits([out / f"preferences.{split}.jsonl" for split in ("train", "validation", "test")])
    for split in ("train", "validation", "test"):
        preferences = read_jsonl(out / f"preferences.{split}.jsonl", Preference)
        prompts = read_jsonl(out / f"prompts.{split}.jsonl", Prompt)
        assert {p.group_id for p in preferences} == {p.id for p in prompts} and len(preferences) == 2 * len(prompts)
        check_splits([out / f"preferences.{split}.jsonl"])


def test_given_splits_are_kept(prepare: Any, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.jsonl", pairs(5))
    test = write_rows(tmp_path / "b.jsonl", pairs(8)[5:])
    _, out = prepare("--train", train, "--test", test)
    assert len(read_jsonl(out / "preferences.train.jsonl", Preference)) == 5
    assert len(read_jsonl(out / "preferences.test.jsonl", Preference)) == 3


def test_the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", pairs(50))

    def files(name: str, *flags: str) -> dict[str, bytes]:
        argv = ["--output_dir", str(tmp_path / name), "--input", str(source), *flags]
        run(parse(Config, argv))
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.jsonl")}

    assert files("one") == files("two")
    assert files("one again", "--seed", "1") != files("two again")


def test_demonstrations_from_chosen(prepare: Any, tmp_path: Path) -> None:
    _, out = prepare("--input", write_rows(tmp_path / "a.jsonl", pairs(20)), "--demonstrations_from", "chosen")
    replies = [row.messages[-1]["content"] for row in read_all(out, "demonstrations", Demonstration)]
    assert sorted(replies) == sorted(f"good {n}" for n in range(20))


def test_broken_characters_never_reach_a_file(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a\\ud800b", "chosen": "c\\u0000", "rejected": "d", "m\\ud800": "\\udfff"}\n'
    )
    _, out = prepare("--input", tmp_path / "a.jsonl")
    (prompt,) = read_all(out, "prompts", Prompt)
    assert prompt.messages[0]["content"] == "ab" and prompt.meta == {"m": ""}


def test_the_tables_and_an_empty_split_are_shown(prepare: Any, tmp_path: Path, capsys: Any) -> None:
    prepare("--input", write_rows(tmp_path / "a.jsonl", [*pairs(1), *pairs(1)]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "exact duplicate" in shown and "a.jsonl, row 2" in shown
    assert re.search(r"preferences\.(train|test)\.jsonl", shown)
    assert re.search(r"the (train|test) split is empty", shown)


def test_brackets_in_names_and_reasons_are_shown_as_they_are(prepare: Any, tmp_path: Path, capsys: Any) -> None:
    prepare(
        "--input",
        write_rows(tmp_path / "[bold]x.jsonl", [*pairs(1), {"prompt": ["x"], "chosen": "a", "rejected": "b"}]),
    )
    shown = capsys.readouterr().out
    assert "[bold]x.jsonl" in shown and "[role," in shown


def test_resume_goes_on_and_a_finished_run_is_never_overwritten(prepare: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", pairs(3))
    _, out = prepare("--input", source)
    with pytest.raises(UserError, match="holds a finished prepare run"):
        prepare("--input", source, "--resume", "true")
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "finished": False, "metrics": {}}))
    assert prepare("--input", source, "--resume", "true")[0].finished


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "input: is missing; name files or Hub data sets"),
        (["--input", "A", "--train", "B"], "input and train: give inputs to split, or inputs that are split already"),
        (["--input", "A", "A"], "input: names the same input twice; name each once"),
        (["--input", "A", "--max_rows", 0], "max_rows: is 0, should be at least 1, or left out to keep all"),
        (["--input", "A", "--format", "hh", "--text_column", "x"], "format: is hh, but columns are named too"),
        (["--input", "A", "--format", "csv"], "the command line: format: invalid choice: 'csv'"),
        (["--input", "A", "--test_share", 0.2], "train_share .* = 1.1, should be 1"),
        (["--input", "A", "--chosen_column", "x"], "chosen_column and rejected_column: name both or none"),
        (["--input", "A", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--input", "BROKEN"], "broken.jsonl, line 2: broken JSON"),
        (
            ["--input", "A", "--prompt_column", "promt"],
            "a.jsonl: there is no column `promt`; .*, did you mean `prompt`",
        ),
        (["--input", "EMPTY"], r"none of the 2 rows can be used: empty reply \(2, first .*empty.jsonl, row 1\)"),
        (
            ["--train", "A", "--test", "B"],
            "a prompt in two splits: 'question 2.' is in .*a.jsonl, row 3 and in .*b.jsonl",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(prepare: Any, tmp_path: Path, flags: list, message: str) -> None:
    files = {
        "A": write_rows(tmp_path / "a.jsonl", pairs(3)),
        "B": write_rows(tmp_path / "b.jsonl", pairs(4)[2:]),
        "EMPTY": write_rows(tmp_path / "empty.jsonl", [{"prompt": f"q {n}", "completion": " "} for n in range(2)]),
        "BROKEN": tmp_path / "broken.jsonl",
    }
    files["BROKEN"].write_text('{"prompt": "x"}\n{"prompt"\n')
    with pytest.raises(UserError, match=message) as caught:
        prepare(*[files.get(flag, flag) for flag in flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_here_imports_torch_or_transformers() -> None:
    modules = [path.stem for path in (Path(__file__).parents[1] / "rlhf" / "data").glob("[!_]*.py")]
    code = f"import sys; import {', '.join('rlhf.data.' + name for name in modules)}; "
    code += "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Real data, with counts that a few lines find on their own.


def shared(path: str) -> Path:
    found = SHARED / "data" / path
    if not found.exists():
        pytest.skip(f"{found} is absent: this test counts real data that is not part of the repository")
    return found


def unpack(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in unpack(path).splitlines()]


def test_hh(prepare: Any) -> None:
    source = shared("hh-rlhf/harmless-base.test.jsonl.gz")
    mark = "\n\nAssistant:"
    sides = [(row["chosen"].rpartition(mark), row["rejected"].rpartition(mark)) for row in lines_of(source)]
    assert len(sides) == 2312
    same = [(c, r) for c, r in sides if c[0] == r[0]]
    full = [(c, r) for c, r in same if c[2].strip() and r[2].strip()]
    assert (len(same), len(full)) == (2307, 2303)

    record, out = prepare("--input", source, "--demonstrations_from", "chosen")
    assert record.metrics["inputs"][0]["format"] == "hh"
    reasons = {why: count for step in record.metrics["steps"] for why, count in step["dropped"].items()}
    assert reasons == {"the two sides do not share their prompt": 5, "empty reply": 4}
    preferences = read_all(out, "preferences", Preference)
    assert len(preferences) == 2303
    squeeze = lambda text: re.sub(r"\W+", "", text)  # noqa: E731
    written = {(squeeze(p.chosen[0]["content"]), squeeze(p.rejected[0]["content"])) for p in preferences}
    assert written == {(squeeze(c[2]), squeeze(r[2])) for c, r in full}
    assert len(read_all(out, "prompts", Prompt)) == len({squeeze(c[0]) for c, _ in full})
    assert all(p.prompt[-1]["role"] == "user" and p.prompt[0]["role"] == "user" for p in preferences)
    # No test prompt is the start of a training conversation.
    splits = [
        {p.prompt[0]["content"] for p in read_jsonl(out / f"preferences.{s}.jsonl", Preference)}
        for s in ("train", "test")
    ]
    assert not splits[0] & splits[1] and 150 < len(splits[1]) < 290


def test_qa_feedback(prepare: Any) -> None:
    source = shared("qa-feedback/dev_feedback.json.gz")
    rows = json.loads(unpack(source))
    verdicts = [verdict for row in rows for verdict in row["preference"]]

    def has_order(row: dict[str, Any]) -> bool:
        results = list(zip(itertools.combinations(range(4), 2), row["preference"], strict=True))
        return any(
            all({0: r[a] == r[b], 1: r[a] < r[b], 2: r[a] > r[b]}[verdict] for (a, b), verdict in results)
            for r in itertools.product(range(4), repeat=4)
        )

    num_ordered = sum(map(has_order, rows))
    assert (len(rows), len(verdicts), verdicts.count(0), num_ordered) == (500, 3000, 384, 478)

    names = [f"prediction {n}" for n in range(1, 5)]
    flags = ["--prompt_column", "question", "--response_columns", *names, "--pairwise_column", "preference"]
    record, out = prepare("--input", source, *flags)
    preferences, ties = read_all(out, "preferences", Preference), read_all(out, "ties", Tie)
    assert (len(preferences), len(ties)) == (2616, 384)
    assert len(read_all(out, "tasks", Task)) == 500
    rankings = read_all(out, "rankings", Ranking)
    assert len(rankings) == num_ordered == 500 - record.metrics["num_rankings_without_order"]
    first = next(p for p in preferences if p.prompt[0]["content"] == rows[0]["question"])
    assert rows[0]["preference"][:2] == [0, 1]  # the first strict verdict of the first question: 1 beats 3
    assert [first.chosen[0]["content"], first.rejected[0]["content"]] == [
        rows[0]["prediction 1"],
        rows[0]["prediction 3"],
    ]


def test_gsm8k_comes_with_its_splits(prepare: Any) -> None:
    train, test = shared("gsm8k/train.jsonl.gz"), shared("gsm8k/test.jsonl.gz")
    flags = ["--prompt_column", "question", "--response_column", "answer"]
    _, out = prepare("--train", train, "--test", test, *flags)
    for name, source, count in [("train", train, 7473), ("test", test, 1319)]:
        assert len(lines_of(source)) == count
        assert len(read_jsonl(out / f"demonstrations.{name}.jsonl", Demonstration)) == count
    assert read_jsonl(out / "demonstrations.train.jsonl", Demonstration)[0].messages[1]["content"].endswith("#### 72")


def test_gsm8k_solutions_are_ranked_by_scores(prepare: Any) -> None:
    source = shared("gsm8k/example_model_solutions.jsonl.gz")
    models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    pairs_there = set()
    votes = 0
    for row in lines_of(source):
        good = [row[model]["solution"].strip() for model in models if row[model]["is_correct"]]
        bad = [row[model]["solution"].strip() for model in models if not row[model]["is_correct"]]
        votes += len(good) * len(bad)
        pairs_there |= {(row["question"], g, b) for g in good for b in bad}
    responses = [f"{model}.solution" for model in models]
    scores = [f"{model}.is_correct" for model in models]
    _, out = prepare(
        "--input", source, "--prompt_column", "question", "--response_columns", *responses, "--score_columns", *scores
    )
    preferences = read_all(out, "preferences", Preference)
    assert sum(p.votes["for"] for p in preferences) == votes == 2429
    assert len(preferences) == len(pairs_there)


def test_customer_queries_in_csv(prepare: Any) -> None:
    source = shared("bitext-customer-service/train.csv")
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6480
    _, out = prepare("--input", source, "--prompt_column", "utterance")
    prompts = read_all(out, "prompts", Prompt)
    assert {(p.messages[0]["content"], p.meta["intent"]) for p in prompts} == {
        (" ".join(row["utterance"].split(" ")).strip(), row["intent"]) for row in rows
    }
    assert len(prompts) == 6480


def test_customer_queries_share_prompts_between_their_own_splits(prepare: Any) -> None:
    sources = [shared(f"bitext-customer-service/{name}.csv") for name in ("train", "test")]
    with sources[0].open(newline="") as train, sources[1].open(newline="") as test:
        keys = [
            {prompt_key([{"role": "user", "content": r["utterance"]}]) for r in csv.DictReader(f)}
            for f in (train, test)
        ]
    with pytest.raises(
        UserError, match=rf"a prompt in two splits: .*train\.csv.*test\.csv.*\({len(keys[0] & keys[1])} such"
    ):
        prepare("--train", sources[0], "--test", sources[1], "--prompt_column", "utterance")


def test_task_dialogues(prepare: Any) -> None:
    source = shared("sgd-dialogues/train_sample2000_seed0.text.jsonl.gz")
    rows = lines_of(source)
    flags = ["--messages_column", "turns", "--user_role", "USER", "--assistant_role", "SYSTEM"]
    _, out = prepare("--input", source, *flags)
    demonstrations = read_all(out, "demonstrations", Demonstration)
    assert len(demonstrations) == len({json.dumps(row["turns"]) for row in rows}) == 2000
    assert sum(len(d.messages) for d in demonstrations) == sum(len(row["turns"]) for row in rows)


def test_judged_answers_in_words(prepare: Any) -> None:
    source = shared("mtbench-human/gallery_with_text.json")
    rows = json.loads(source.read_text())
    flags = ["--prompt_column", "question", "--response_columns", "answer_a", "answer_b", "--pairwise_column", "human"]
    _, out = prepare("--input", source, *flags)
    distinct = {(r["question"], r["answer_a"], r["answer_b"], r["human"]) for r in rows}
    assert len(read_all(out, "rankings", Ranking)) == len(distinct) == 48


def test_plain_text(prepare: Any) -> None:
    source = shared("tinyshakespeare/input.txt")
    parts = [part.strip() for part in source.read_text().split("\n\n") if part.strip()]
    record, _ = prepare("--input", source)
    assert record.metrics["inputs"][0]["rows"] == len(parts) == 7222
    assert sum(split["text"] for split in record.metrics["splits"].values()) == len(set(parts))
