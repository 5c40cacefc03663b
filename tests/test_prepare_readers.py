"""Every file kind is read to the same rows, and every broken one is one line that says where."""

import gzip
import json
from pathlib import Path

import pytest

from rlhf.data.readers import read_rows
from rlhf.errors import UserError

ROWS = [{"prompt": "Où?", "n": "1"}, {"prompt": 'say "hi",\nthen go', "n": "2"}]
CSV = 'prompt,n\nOù?,1\n"say ""hi"",\nthen go",2\n'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", JSONL),  # many data sets name JSONL so
        ("a.jsonl", JSONL),
        ("a.jsonl", "\ufeff" + JSONL.replace("\n", "\r\n\r\n")),
        ("a.csv", CSV),
        ("a.csv", "\ufeff" + CSV),
        ("A.TSV", CSV.replace("prompt,n", "prompt\tn").replace("?,1", "?\t1").replace('",2', '"\t2')),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, text: str, packed: str) -> None:
    assert read_rows(write(tmp_path / (name + packed), text)) == ROWS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_rows(str(tmp_path / "a.parquet")) == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_paragraph_of_plain_text_is_a_document(tmp_path: Path, name: str) -> None:
    text = "\n\nOne\r\n  two\r\n \t\r\n\r\nThree\n"
    assert read_rows(write(tmp_path / name, text)) == [{"text": "One\n  two"}, {"text": "Three"}]


def test_a_csv_cell_may_be_longer_than_the_default_limit(tmp_path: Path) -> None:
    long = "x" * 200_000  # csv's own limit is 131,072
    assert read_rows(write(tmp_path / "a.csv", f"prompt\n{long}\n")) == [{"prompt": long}]


def test_a_hub_data_set_is_read_where_no_such_path_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        assert (name, config, split) == ("org/name", "en", "test")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("org/name", "en", "test") == ROWS


def test_a_hub_data_set_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"org/name: is no file here, .*`train`.*\(ConnectionError: no route\).*network"
    ):
        read_rows("org/name")


def test_an_existing_path_is_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="org/name: is a folder; name the files in it"):
        read_rows("org/name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: is empty; it should hold at least one row"),
        ("a.json", " \n", "a.json: is empty"),
        ("a.json", "[]", "a.json: is empty"),
        ("a.csv", "prompt\n", "a.csv: is empty"),
        ("a.csv", "", "a.csv: is empty"),
        ("a.txt", "\n \n", "a.txt: is empty"),
        ("a.xlsx", "x", "a.xlsx: unknown extension; name it one of .json .jsonl .csv .tsv .parquet .txt"),
        ("a.parquet.gz", "x", "a.parquet.gz: unknown extension"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: broken JSON (.*); mend or remove the line"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: is a list, should be a JSON object"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "a.jsonl, line 2: broken JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, after line .: is not UTF-8 text .*iconv"),
        ("a.json", '[{"a": 1},\n{"a": }]', "a.json, line 2: broken JSON (Expecting value, column 7); mend the file"),
        ("a.json", "[" * 100_000, "a.json: broken JSON (nested too deep)"),
        ("a.json", '{"a": [], "b": []}', "a.json: is an object with 2 lists (a, b); it should be a list of rows"),
        ("a.json", '{"a": 1}', "a.json: is an object with 0 lists (none)"),
        ("a.json", "3", "a.json: is a int, should be a list of objects"),
        ("a.json", '[{"a": 1}, "x"]', "a.json, row 2: is a str, should be an object"),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv, line 1: column `a` is there twice; rename one"),
        ("a.csv", 'a,b\n1,2\n"x\ny",2,3\n', "a.csv, line 4: has 3 cells, the header has 2; quote cells"),
        ("a.csv", 'a,b\n1,"2" x\n', "a.csv, line 2: broken CSV (.*); mend the line"),
        ("a.parquet", b"PAR1 no", "a.parquet: broken Parquet file (.*); fetch or write it again"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    pattern = message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")
    with pytest.raises(UserError, match=pattern) as caught:
        read_rows(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["no gzip", "cut", "damaged"])
def test_broken_gzip(tmp_path: Path, kind: str) -> None:
    packed = gzip.compress((JSONL * 100).encode())
    content = {"no gzip": b"plain", "cut": packed[:-20], "damaged": packed[:40] + b"\xff\xff" + packed[42:]}[kind]
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz(, after line \d+)?: (broken gzip file|is not UTF-8)"):
        read_rows(str(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.csv.gz", "a folder/or file"])
def test_a_missing_file(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: no such file; check the path"):
        read_rows(name)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.jsonl", JSONL)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        read_rows(path)


def test_a_name_that_no_disk_takes_is_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be read|no such file"):
        read_rows("x" * 5000 + ".jsonl")
