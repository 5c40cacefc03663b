"""Files and Hub data sets to rows: JSON, JSONL, CSV, TSV, Parquet and plain text, gzipped or not."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rlhf.errors import UserError

Row = dict[str, Any]

_MAX_FIELD = 2**31 - 1  # csv's own limit of 131,072 characters is less than a long document
_BAR_EVERY = 1024  # lines between two updates of the progress bar
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_rows(source: str, dataset_config: str | None = None, dataset_split: str = "train") -> list[Row]:
    """Every row of a file, or of a Hub data set where no such path exists.

    Args:
        source: a path that ends in one of `.json .jsonl .csv .tsv .parquet .txt` (all but Parquet also
            with `.gz`), or a Hub id `org/name`.
        dataset_config: the configuration of a Hub data set that has several.
        dataset_split: the split of a Hub data set, as `datasets.load_dataset` takes it.

    Raises:
        UserError: a missing, empty or broken file (with its line where there are lines), an unknown
            extension, rows that are not objects, or a Hub data set that cannot be reached.
    """
    path = Path(source).expanduser()
    try:
        if _kind(path) is None and _HUB_ID.fullmatch(source) and not path.exists():
            rows = _read_hub(source, dataset_config, dataset_split)
        else:
            rows = _read_file(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file ({error}); fetch or pack it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from None
    if not rows:
        raise UserError(f"{source}: is empty; it should hold at least one row")
    return rows


def _read_file(path: Path) -> list[Row]:
    kind = _kind(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the files in it")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path (a Hub data set is named `org/name`)")
    if kind is None:
        raise UserError(f"{path}: unknown extension; name it one of {' '.join(_READERS)}, or with .gz after it")
    return _READERS[kind](path)


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    kind = Path(name).suffix
    if kind == ".parquet" and name != path.name.lower():
        return None  # Parquet is compressed inside; nobody packs it again
    return kind if kind in _READERS else None


@contextmanager
def _open_text(path: Path, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a text file, with a progress bar over its bytes once the reading takes a second."""
    from tqdm import tqdm

    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, delay=1, leave=False) as bar,
    ):
        unpacked = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            for number, line in enumerate(io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=newline), 1):
                if number % _BAR_EVERY == 0:
                    bar.update(raw.tell() - bar.n)
                yield line

        try:
            yield lines()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, after line {number}: is not UTF-8 text ({error.reason}); convert it, for example with iconv"
            ) from None


def _read_jsonl(path: Path) -> list[Row]:
    with _open_text(path, newline="\n") as lines:
        return [_parse_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parse_line(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: broken JSON ({error}); mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: is a {type(row).__name__}, should be a JSON object")
    return row


def _read_json(path: Path) -> list[Row]:
    with _open_text(path, newline="") as lines:
        text = "".join(lines)
    if not text.strip():
        return []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values one after the other: JSONL under another name
            return _read_jsonl(path)
        raise UserError(
            f"{path}, line {error.lineno}: broken JSON ({error.msg}, column {error.colno}); mend the file"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: broken JSON (nested too deep); it should be a list of objects") from None
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(
                f"{path}: is an object with {len(lists)} lists ({', '.join(lists) or 'none'}); "
                "it should be a list of rows, or an object with one"
            )
        data = data[lists[0]]
    if not isinstance(data, list):
        raise UserError(f"{path}: is a {type(data).__name__}, should be a list of objects")
    for number, row in enumerate(data, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: is a {type(row).__name__}, should be an object")
    return data


def _read_csv(path: Path, delimiter: str = ",") -> list[Row]:
    csv.field_size_limit(_MAX_FIELD)
    rows: list[Row] = []
    with _open_text(path, newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise UserError(f"{path}, line 1: column `{twice[0]}` is there twice; rename one")
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: has {len(cells)} cells, the header has {len(header)}; "
                        "quote cells that hold a separator or a line break"
                    )
                if cells:
                    rows.append(dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: broken CSV ({error}); mend the line") from None
    return rows


def _read_tsv(path: Path) -> list[Row]:
    return _read_csv(path, delimiter="\t")


def _read_text(path: Path) -> list[Row]:
    """A document a paragraph: what stands between blank lines."""
    with _open_text(path, newline="") as lines:
        text = "".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    return [{"text": part.strip("\n")} for part in re.split(r"\n(?:[ \t]*\n)+", text) if part.strip()]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet
    from tqdm import tqdm

    rows: list[Row] = []
    try:
        file = pyarrow.parquet.ParquetFile(path)
        with tqdm(total=file.metadata.num_rows, unit=" rows", desc=path.name, delay=1, leave=False) as bar:
            for batch in file.iter_batches():
                rows += batch.to_pylist()
                bar.update(batch.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: broken Parquet file ({_first_line(error)}); fetch or write it again") from None
    return rows


def _read_hub(name: str, config: str | None, split: str) -> list[Row]:
    from tqdm import tqdm

    try:
        import datasets

        dataset = datasets.load_dataset(name, config, split=split)
        return [dict(row) for row in tqdm(dataset, unit=" rows", desc=name, delay=1, leave=False)]  # type: ignore  # a split names one Dataset
    except Exception as error:  # the Hub, the network and the data set's own files fail in many ways
        _refuse_hub(name, split, error)


def _refuse_hub(name: str, split: str, error: Exception) -> NoReturn:
    raise UserError(
        f"{name}: is no file here, and its split `{split}` could not be read from the Hugging Face Hub "
        f"({type(error).__name__}: {_first_line(error)}); check the name, --dataset_config, --dataset_split "
        "and the network"
    ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
