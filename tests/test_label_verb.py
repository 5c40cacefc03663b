"""`rlhf label` and what tends its store from the command line: what is loaded, what is printed, every refusal."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app.label import LabelConfig, _counted, _first_admin, opened
from labeling_app.people import accept_invitation
from labeling_app.store import Store
from labeling_app.store.schema import sets, tasks
from labeling_app.tend import main as tend
from rlhf import cli
from rlhf.errors import UserError
from rlhf.records import write_jsonl
from tests.label_cases import known, task


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "tasks.jsonl", [task(f"t{number}") for number in range(5)])
    for kind in ("practice", "gold"):
        (tmp_path / f"{kind}.jsonl").write_text(json.dumps(asdict(known(f"{kind}-1"))) + "\n")
    return tmp_path


def settings(files: Path, **changes: object) -> LabelConfig:
    return LabelConfig(**{"store": str(files / "labels.db"), "tasks": [str(files / "tasks.jsonl")], **changes})  # type: ignore[arg-type]


def test_tasks_practice_and_gold_are_loaded_once(files: Path) -> None:
    both = settings(files, practice=str(files / "practice.jsonl"), gold=str(files / "gold.jsonl"), overlap=3)
    for _ in range(2):
        with opened(both) as store:
            assert _counted(store) == "5 tasks (1 practice, 1 gold beside them)"
            kinds = store.read(
                lambda connection: dict(connection.execute(select(sets.c.name, sets.c.overlap)).tuples().all())
            )
            assert kinds == {str(files / f"{name}.jsonl"): 3 for name in ("tasks", "practice", "gold")}


def test_the_first_admin_is_invited_once(files: Path) -> None:
    with opened(settings(files)) as store:
        secret = _first_admin(store)
        assert secret is not None and _first_admin(store) not in (None, secret)  # nobody has come yet: a new link
        store.write(lambda connection: accept_invitation(connection, secret, "Lea", "hash", 0.0))
        assert _first_admin(store) is None


def test_an_empty_store_says_what_it_needs(files: Path) -> None:
    with opened(settings(files, tasks=[])) as store, pytest.raises(UserError, match=r"tasks: the store holds none yet"):
        _counted(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gold_share": 0.6, "gold": "g"}, "gold_share is 0.6, should be from 0 to 0.5"),
        ({"repeat_share": -1}, "repeat_share is -1, should be from 0 to 0.5"),
        ({"lease_minutes": 0}, "lease_minutes is 0, should be over 0"),
        ({"gold_share": 0.1}, "gold_share is set, but no file of gold tasks"),
    ],
)
def test_settings_that_cannot_be(files: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(files, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["nowhere.jsonl"]}, "nowhere.jsonl: no such file"),
        ({"form": "nowhere.yaml"}, "nowhere.yaml: "),
        ({"order": "best"}, "order: is 'best', should be file or random"),
        ({"overlap": 0}, "overlap: is 0, should be at least 1"),
        ({"comparison": "nowhere"}, "nowhere"),
    ],
)
def test_a_refusal_leaves_no_store(files: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message), opened(settings(files, **changes)):
        pass
    assert not (files / "labels.db").exists()


def test_the_command_line_invites_backs_up_and_restores(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    with opened(settings(files)):
        pass
    cli.main(["label", "invite", "--num", "2", "--address", "https://labels.example/"])
    links = capsys.readouterr().out.split()
    assert len(set(links)) == 2 and all(link.startswith("https://labels.example/join/") for link in links)
    cli.main(["label", "backup", "saved.db"])
    cli.main(["label", "restore", "saved.db", "--store", "again.db"])
    assert capsys.readouterr().out == "labels.db: backed up to saved.db\nsaved.db: restored into again.db\n"
    store = Store("again.db")
    assert store.read(lambda connection: connection.execute(select(func.count()).select_from(tasks)).scalar()) == 5
    store.close()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["invit"], "label: unknown task `invit`, did you mean `invite`"),
        (["invite"], "labels.db: no such label store; `rlhf label --tasks FILE` makes one"),
        (["backup", "x"], "labels.db: no such label store"),
        (["invite", "--num", "0"], "label invite: --num and --days should be over 0"),
    ],
)
def test_what_cannot_be_tended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        tend(argv)
    assert list(tmp_path.iterdir()) == []
