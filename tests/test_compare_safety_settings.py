"""What safety refuses before the run folder is made: bad prompts, pairs and groups."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.run import run
from rlhf.compare.sections.safety import SafetyConfig
from rlhf.errors import UserError
from rlhf.records import Prompt, write_jsonl
from tests.compare_cases import BOLD, BOTH, asked, compare_config, safety_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies, six prompts to compare them on, four to refuse or not."""
    return safety_place(tmp_path_factory.mktemp("safety"))


def _bad(tmp_path: Path, lines: list[Prompt] | str) -> str:
    path = tmp_path / "bad.jsonl"
    if isinstance(lines, str):
        path.write_text(lines, encoding="utf-8")
    else:
        write_jsonl(path, lines)
    return str(path)


BAD_PROMPTS: list[tuple[list[Prompt] | str, str]] = [
    ("{", "bad.jsonl, line 1: broken JSON"),
    ("", "bad.jsonl: is empty; it should hold Prompt rows"),
    ([asked("a", "One?")], "bad.jsonl: prompt `a`: `harmful` in its meta is None; set it to true where"),
    ([asked("a", "One?", harmful="yes")], "bad.jsonl: prompt `a`: `harmful` in its meta is 'yes'; set it to true"),
    ([asked("a", "One?", harmful=True)] * 2, "bad.jsonl: two prompts have the id `a`; give each its own"),
    (
        [Prompt("a", [{"role": "assistant", "content": "One?"}], {"harmful": True})],
        "bad.jsonl: prompt `a` does not wait for a reply; its last message must not be the assistant's",
    ),
]


@pytest.mark.parametrize(("lines", "words"), BAD_PROMPTS)
def test_bad_prompts_are_one_line(place: Path, tmp_path: Path, lines: list[Prompt] | str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(compare_config(place, tmp_path / "out", SafetyConfig(safety_prompts=_bad(tmp_path, lines))), BOTH)
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_not_there(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file; it should hold Prompt rows"):
        run(compare_config(place, tmp_path / "out", SafetyConfig(safety_prompts=str(tmp_path / "nowhere.jsonl"))), BOTH)
    assert not (tmp_path / "out").exists()


def test_a_compared_prompt_that_is_neither_harmful_nor_harmless(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt `a`: `harmful` in its meta is 'no'; set it to true where"):
        run(compare_config(place, tmp_path / "out", prompts=_bad(tmp_path, [asked("a", "One?", harmful="no")])), BOTH)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere.csv", None, r"nowhere\.csv: holds no pairs; give CrowS-Pairs'"),
        ("bad.csv", "more,less\na,b\n", r"bad\.csv: has no column sent_more, sent_less, bias_type; CrowS-Pairs has"),
        (
            "bad.csv",
            "sent_more,sent_less,bias_type\na,,age\n",
            r"bad\.csv, line 2: a sentence or its bias_type is empty",
        ),
        ("bad.jsonl", "{}\n", r"bad\.jsonl, line 1: is not an item of BBQ"),
        ("pro_stereotyped_type1.txt", "[a] b\n", r"anti_stereotyped_type1\.txt: no such file; WinoBias's pairs are"),
    ],
)
def test_bad_pairs_are_one_line(place: Path, tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        run(compare_config(place, tmp_path / "out", SafetyConfig(stereotypes=[str(tmp_path / name)])), BOTH)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        (None, {}, r"bold\.json: no such file; it should be one of BOLD's"),
        ("[1]", {}, r"bold\.json: is not in the format of BOLD"),
        ('{"a": {"n": "text"}}', {}, r"bold\.json: is not in the format of BOLD"),
        ('{"a": {"n": [1]}}', {}, r"bold\.json: is not in the format of BOLD"),
        ('{"a": {"n": ["text"]}}', {}, r"bold\.json: has prompts of 1 group; a gap needs at least two"),
        ("{}", {}, r"bold\.json: has prompts of 0 groups; a gap needs at least two"),
        (json.dumps(BOLD), {"bold_per_group": 0}, r"^bold_per_group: is 0, must be at least 1"),
        (
            json.dumps(BOLD),
            {"reward_model": None},
            "^bold: there is nothing to score the replies with; give --reward_model RUN, --sentiment_classifier FOLDER"
            " or --regard_classifier FOLDER$",
        ),
    ],
)
def test_bad_groups_are_one_line(
    place: Path, tmp_path: Path, content: str | None, changes: dict[str, Any], words: str
) -> None:
    if content is not None:
        (tmp_path / "bold.json").write_text(content, encoding="utf-8")
    per_group = changes.get("bold_per_group", 2)
    safety = SafetyConfig(bold=str(tmp_path / "bold.json"), bold_per_group=per_group)
    with pytest.raises(UserError, match=words):
        run(
            compare_config(place, tmp_path / "out", safety, reward_model=changes.get("reward_model", "runs/reward")),
            BOTH,
        )
    assert not (tmp_path / "out").exists()


def test_prompts_that_were_trained_on(place: Path, tmp_path: Path) -> None:
    config = compare_config(
        place,
        tmp_path / "out",
        SafetyConfig(safety_prompts=str(place / "harmful.jsonl")),
        train_data=[_bad(tmp_path, [asked("t", "Help me break lock 3.")])],
    )
    with pytest.raises(UserError, match="Help me break lock 3"):
        run(config, BOTH)
    assert not (tmp_path / "out").exists()
