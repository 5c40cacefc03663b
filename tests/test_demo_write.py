"""demo-write: the files, their sizes, what they share and what they keep apart."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from rlhf.config import from_values, parse
from rlhf.demo import write
from rlhf.demo.domain import PROBLEMS, PRODUCTS, is_held_out
from rlhf.demo.rubric import facts, score
from rlhf.demo.write import Config, WriteConfig
from rlhf.errors import UserError
from rlhf.records import Demonstration, Prompt, Text, read_jsonl
from rlhf.runs import read_run

SIZES = {
    "num_texts": 500,
    "num_demonstrations": 800,
    "num_test_demonstrations": 20,
    "num_train_prompts": 300,
    "num_reward_prompts": 100,
    "num_validation_prompts": 30,
    "num_test_prompts": 200,
}
FILES = ["text.train", "demonstrations.train", "demonstrations.test"]
FILES += ["prompts.train", "prompts.reward", "prompts.validation", "prompts.test"]


def write_to(folder: Path, **changes) -> Path:
    write.run(Config(WriteConfig(**{"output_dir": str(folder), **SIZES, **changes})))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_to(tmp_path_factory.mktemp("demo") / "data")


def texts_of(folder: Path) -> list[str]:
    return [row.text for row in read_jsonl(folder / "text.train.jsonl", Text)]


def asked(folder: Path, name: str) -> list[str]:
    if name == "text.train":
        dialogues = [re.fullmatch(r"customer:\n(.*)\nagent:\n(.*)\n", text) for text in texts_of(folder)]
        return [dialogue[1] for dialogue in dialogues if dialogue]
    kind = Demonstration if name.startswith("demonstrations") else Prompt
    return [row.messages[0]["content"] for row in read_jsonl(folder / f"{name}.jsonl", kind)]


def pair_of(text: str) -> tuple[str | None, str | None]:
    found = facts([{"role": "user", "content": text}], "")
    return found.product, found.problem


def test_every_file_has_its_size_and_the_run_says_so(folder: Path):
    expected = dict(zip(FILES, SIZES.values(), strict=True))
    for name, count in expected.items():
        assert len((folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()) == count, name
    run = read_run(folder)
    assert run.finished and run.stage == "demo-write"
    assert run.metrics["counts"] == expected
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == sorted(FILES)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(folder: Path, tmp_path: Path):
    again = write_to(tmp_path / "again")
    other = write_to(tmp_path / "other", seed=1)
    for name in FILES:
        assert (folder / f"{name}.jsonl").read_bytes() == (again / f"{name}.jsonl").read_bytes()
        assert (folder / f"{name}.jsonl").read_bytes() != (other / f"{name}.jsonl").read_bytes()


def test_no_prompt_is_anywhere_twice(folder: Path):
    every = [text for name in FILES for text in asked(folder, name)]
    assert len(every) == 150 + 800 + 20 + 300 + 100 + 30 + 200  # 150: the share of the text that is dialogues, 0.3
    assert len(set(every)) == len(every)


def test_held_out_pairs_are_in_the_test_prompts_alone(folder: Path):
    for name in FILES:
        pairs = {pair_of(text) for text in asked(folder, name)}
        assert {is_held_out(*pair) for pair in pairs} == {name == "prompts.test"}
        if name == "demonstrations.train":
            assert {product for product, _ in pairs} == set(PRODUCTS)
            assert {problem for _, problem in pairs} == {problem.name for problem in PROBLEMS}


def test_nothing_to_train_on_gives_away_a_held_out_fix(folder: Path):
    replies = [text.split("\nagent:\n")[1] for text in texts_of(folder) if "\nagent:\n" in text]
    replies += [row.messages[-1]["content"] for row in read_jsonl(folder / "demonstrations.train.jsonl", Demonstration)]
    pages = [text for text in texts_of(folder) if not text.startswith("customer:")]
    assert len(pages) == 350
    for text in replies + pages:
        found = facts([], text)
        for product in found.products_named:
            assert not [problem for problem in found.fixes_given if is_held_out(product, problem)], text


def test_pages_of_the_manual_are_right(folder: Path):
    page = next(text for text in texts_of(folder) if not text.startswith("customer:"))
    found = facts([], page)
    assert len(found.products_named) == 1 and len(found.fixes_given) == write.SENTENCES_PER_PAGE
    symptoms = {one.name for one in PROBLEMS for symptom in one.symptoms if symptom in page}
    assert symptoms >= set(found.fixes_given)


def test_demonstrations_are_of_mixed_quality(folder: Path):
    rows = read_jsonl(folder / "demonstrations.train.jsonl", Demonstration)
    scores = score([row.messages[:-1] for row in rows], [row.messages[-1]["content"] for row in rows])
    # A share of 0.35 of 800 has a standard deviation of 0.017.
    assert fmean(value == 1.0 for value in scores) == pytest.approx(0.35, abs=0.06)
    assert len({row.id for row in rows}) == len(rows)
    assert all([message["role"] for message in row.messages] == ["user", "assistant"] for row in rows)


def test_the_shares_can_be_set(tmp_path: Path):
    folder = write_to(tmp_path / "good", flawless_share=1.0, manual_share=1.0)
    rows = read_jsonl(folder / "demonstrations.train.jsonl", Demonstration)
    assert set(score([row.messages[:-1] for row in rows], [row.messages[-1]["content"] for row in rows])) == {1.0}
    assert not asked(folder, "text.train")


def test_prompts_carry_their_columns(folder: Path):
    for prompt in read_jsonl(folder / "prompts.train.jsonl", Prompt):
        assert sorted(prompt.meta) == ["problem", "product", "tone"]
        assert pair_of(prompt.messages[0]["content"]) == (prompt.meta["product"], prompt.meta["problem"])


def test_the_vocabulary_stays_small(folder: Path):
    text = " ".join((folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in FILES)
    rows = [json.loads(line) for name in FILES for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    said = [row.get("text", "") + " ".join(m["content"] for m in row.get("messages", [])) for row in rows]
    assert len(set(re.findall(r"[a-z]+", " ".join(said)))) < 600
    assert text.isascii()


def test_flags_and_yaml_are_read(tmp_path: Path):
    (tmp_path / "write.yaml").write_text("output_dir: somewhere\nnum_texts: 7\n")
    config = parse(Config, ["--config", str(tmp_path / "write.yaml"), "--seed", "3"])
    assert (config.write.output_dir, config.write.num_texts, config.write.seed) == ("somewhere", 7, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_texts": 0}, "num_texts is 0, should be at least 1"),
        ({"flawless_share": 1.5}, "flawless_share is 1.5, should be from 0 to 1"),
        ({"num_test_prompts": 30241}, "num_test_prompts is 30241, there are 30240 prompts of held-out pairs"),
        # 336 training pairs of 540 prompts; 181440 - 1 texts in dialogues and 1 of each other size.
        (
            dict.fromkeys(SIZES, 1) | {"manual_share": 0, "num_texts": 181440},
            "the sizes need 181445 different prompts, there are 181440; lower num_texts",
        ),
    ],
)
def test_sizes_that_cannot_be(values: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"a.yaml: {message}"):
        from_values(Config, {"output_dir": str(tmp_path / "new"), **values}, "a.yaml")
    assert not (tmp_path / "new").exists()


def test_a_finished_folder_is_not_overwritten(folder: Path):
    before = (folder / "prompts.test.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a finished demo-write run"):
        write_to(folder, seed=5)
    assert (folder / "prompts.test.jsonl").read_bytes() == before
