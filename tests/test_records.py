"""Records: written whole or not at all, read with errors that name file, line and column."""

import json
import subprocess
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.records import Preference, Prompt, Ranking, Response, make_id, read_jsonl, write_jsonl, write_whole

PROMPT = Prompt("p1", [{"role": "user", "content": "héllo\u2028\n"}], {"k": 1})


def test_records_survive_a_round_trip(tmp_path: Path) -> None:
    preference = Preference("f1", "p1", PROMPT.messages, [{"role": "assistant", "content": "a"}], [])
    ranking = Ranking("t1", "ann", {"r1": 1, "r2": 1}, flags={"r1": ["harmful"]}, shown=["r2", "r1"], seconds=3.5)
    for record in (PROMPT, preference, ranking):
        assert write_jsonl(tmp_path / "x.jsonl", [record]) == 1
        assert read_jsonl(tmp_path / "x.jsonl", type(record)) == [record]


def test_preferences_load_straight_into_trl(tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    chosen = [{"role": "assistant", "content": "a"}]
    write_jsonl(tmp_path / "x.jsonl", [Preference("f1", "p1", PROMPT.messages, chosen, chosen)])
    rows = load_dataset("json", data_files=str(tmp_path / "x.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert is_conversational(rows[0])
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)


def test_ids_come_from_content() -> None:
    assert make_id("prm", {"a": 1, "b": 2}) == make_id("prm", {"b": 2, "a": 1})
    assert make_id("prm", "a") != make_id("prm", "b")
    # sha256 of '["a"]', computed by coreutils
    digest = subprocess.run(["sha256sum"], input=b'["a"]', capture_output=True, check=True).stdout.decode()[:12]
    assert make_id("prm", "a") == f"prm-{digest}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "p", "messages": []}\n{"id": ', r"x.jsonl, line 2: broken JSON"),
        ("[1, 2]\n", r"line 1: is a list, should be a JSON object"),
        ('{"id": "p", "prompt": "hi"}\n', r"column `messages` of Prompt is missing; there are: id, prompt"),
        ('{"id": "p", "messages": "hi"}\n', r"column `messages` of Prompt: .*list"),
        ("\n\n", r"is empty; it should hold Prompt rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "x.jsonl", Prompt)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl", Prompt)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_whole(path, ["old\n"])

    def breaks():
        yield "new\n"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_whole(path, breaks())
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, full_disk: Path) -> None:
    path = full_disk / "x.jsonl"
    write_whole(path, ["old\n"])
    with pytest.raises(UserError, match="no space left on the disk; nothing was written"):
        write_whole(path, [json.dumps("x" * 1000)] * 2000)
    assert path.read_text() == "old\n"
    assert [p.name for p in full_disk.iterdir()] == ["x.jsonl"]


def test_text_that_utf8_cannot_hold_comes_back(tmp_path: Path) -> None:
    """Lone surrogates come out of browsers and models; JSON has an escape for them, UTF-8 has no bytes."""
    text = "null \0 lone \ud800 bidi \u202e astral \U0001f642 \\ud800 \udfff"
    response = Response("r", "p", text, "run", {"note": text})
    write_jsonl(tmp_path / "x.jsonl", [response])
    assert read_jsonl(tmp_path / "x.jsonl", Response) == [response]
    line = (tmp_path / "x.jsonl").read_text(encoding="utf-8")  # valid UTF-8, and readable where it can be
    assert "\U0001f642" in line
    assert json.loads(line)["text"] == text
    assert make_id("prm", text) != make_id("prm", "null")


def test_the_id_of_a_lone_surrogate_has_not_changed_others() -> None:
    # sha256 of '["é"]' in UTF-8, computed by coreutils
    digest = subprocess.run(["sha256sum"], input='["é"]'.encode(), capture_output=True, check=True).stdout.decode()
    assert make_id("prm", "é") == f"prm-{digest[:12]}"
