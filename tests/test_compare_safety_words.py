"""safety in the report: figures, changes, warnings and words by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.safety.measuring import (
    REFERENCE,
    GroupTable,
    Measured,
    RefusalTable,
    StereotypeTable,
    ToxicityTable,
)
from rlhf.compare.safety.stereotypes import SentencePair
from rlhf.compare.safety.words import points, sentences, view, warnings
from tests.study_cases import study


def _column(flags: str) -> np.ndarray:
    """One response a prompt: `1` where it is flagged."""
    return np.array([[float(flag)] for flag in flags])


def _made(names: list[str], num_prompts: int, **parts: Any) -> tuple[Any, dict[str, Any]]:
    made = study([[float(at)] * num_prompts for at in range(len(names))], None, names)
    nothing = ToxicityTable({name: np.zeros((num_prompts, 1)) for name in names}, None)
    measured = Measured(**({"reference": names[0], "toxicity": nothing, "refusals": None} | parts))
    made = dataclasses.replace(made, measured={"safety": measured})
    return made, build_report(made)


def _refused(**flags: str) -> RefusalTable:
    """Refusals of the first half of the prompts, that are harmful, and of the others."""
    size = len(next(iter(flags.values())))
    rows = {name.replace("reference", REFERENCE): _column(one) for name, one in flags.items()}
    return RefusalTable(np.arange(size) < size // 2, rows, [str(at) for at in range(size)], "harmful.jsonl")


def test_refusals_by_hand() -> None:
    """Of 20 harmful prompts sft refuses 15 and dpo 5, of 20 harmless ones 1 and 11: both moved the wrong way."""
    table = _refused(sft="1" * 15 + "0" * 5 + "1" + "0" * 19, dpo="1" * 5 + "0" * 15 + "1" * 11 + "0" * 9)
    made, report = _made(["sft", "dpo"], 10, refusals=table)
    part = report["safety"]["refusals"]
    figures = {name: [one[kind]["mean"] for kind in ("wanted", "unwanted")] for name, one in part["policies"].items()}
    assert figures == {"sft": [0.75, 0.05], "dpo": [0.25, 0.55]}
    assert [part["from_baseline"]["dpo"][kind]["mean"] for kind in ("wanted", "unwanted")] == [-0.5, 0.5]
    fewer, more = warnings(report)
    assert fewer.startswith("dpo refuses fewer of the harmful prompts than sft: -50.0 points (95% interval -")
    assert more.startswith("dpo refuses more of the harmless prompts than sft: +50.0 points (95% interval +")
    assert fewer.endswith("; n = 20).") and more.endswith("; n = 20).")
    first, second = sentences(report)
    assert first.startswith("harmful prompts refused: sft 75% (") and "; harmless prompts refused: sft 5% (" in first
    assert "dpo 55% (" in first and first.endswith("), n = 20")
    assert second.startswith("toxic replies by the lexicon: sft 0% (0% to ") and second.endswith("), n = 10")
    page = render_page(made, report)
    assert 'data-label="change from sft"><b>+50.0</b>' in page and "n = 20" in page


def test_right_moves_are_no_warnings() -> None:
    table = _refused(sft="0" * 20 + "1" * 20, dpo="1" * 20 + "0" * 20)
    _, report = _made(["sft", "dpo"], 10, refusals=table)
    assert warnings(report) == []


def test_what_moved_from_the_reference_only() -> None:
    """The baseline, dpo, refuses as much of the harmless as ppo does; the reference refused nothing."""
    flags = "1" * 20 + "1" * 15 + "0" * 5
    table = _refused(dpo=flags, ppo=flags, reference="1" * 20 + "0" * 20)
    _, report = _made(["dpo", "ppo"], 10, refusals=table, reference=REFERENCE)
    report["settings"]["reference"] = "sft"
    assert report["safety"]["refusals"]["reference"]["unwanted"]["mean"] == 0
    assert [line[: line.index(":")] for line in warnings(report)] == [
        "dpo refuses more of the harmless prompts than sft",
        "ppo refuses more of the harmless prompts than sft",
    ]


def test_harmless_prompts_alone_have_no_column_of_harmful_ones() -> None:
    rows = {name: _column("0110") for name in ("sft", "dpo")}
    table = RefusalTable(np.zeros(4, dtype=bool), rows, list("abcd"), None)
    _, report = _made(["sft", "dpo"], 4, refusals=table)
    assert report["safety"]["refusals"]["policies"]["sft"]["wanted"] is None
    assert [table.title for table in view(report)["parts"][0]["tables"]] == [
        "Harmless prompts: a refusal is not wanted"
    ]
    assert view(report)["parts"][0]["about"].startswith("Of the compared prompts that say whether they are harmful:")
    assert sentences(report)[0].startswith("harmless prompts refused: sft 50% (")


def test_toxicity_by_hand() -> None:
    flagged = {"sft": _column("0" * 20), "dpo": _column("1" * 10 + "0" * 10)}
    made, report = _made(["sft", "dpo"], 20, toxicity=ToxicityTable(flagged, None))
    part = report["safety"]["toxicity"]
    assert part["policies"]["dpo"]["flagged"]["mean"] == 0.5 and part["from_baseline"]["dpo"]["flagged"]["mean"] == 0.5
    (line,) = warnings(report)
    assert line.startswith("dpo writes more toxic replies than sft by the lexicon: +50.0 points (95% interval +")
    (sentence,) = sentences(report)
    assert sentence.startswith("toxic replies by the lexicon: sft 0% (0% to ")
    assert view(report)["parts"][0]["about"].startswith("The share of replies to the compared prompts with a word of")
    assert 'data-label="Flagged"><b>50%</b>' in render_page(made, report)


def test_one_flagged_reply_is_shown_and_no_warning() -> None:
    flagged = {"sft": _column("0" * 20), "dpo": _column("1" + "0" * 19)}
    _, report = _made(["sft", "dpo"], 20, toxicity=ToxicityTable(flagged, None))
    assert list(report["safety"]) == ["toxicity", "flags"] and warnings(report) == []
    (flag,) = report["safety"]["flags"]  # marked in the browser of texts
    assert (flag["policy"], flag["why"]) == ("dpo", "toxic by the lexicon")
    assert "safety" not in _made(["sft", "dpo"], 20)[1]


def _pairs(**wins: str) -> StereotypeTable:
    """The first half of the pairs is of age, the other of gender."""
    size = len(next(iter(wins.values())))
    kinds = ["age"] * (size // 2) + ["gender"] * (size - size // 2)
    pairs = [SentencePair(f"p{at}", f"more {at}", f"less {at}", kind, f"p{at}") for at, kind in enumerate(kinds)]
    rows = {name.replace("reference", REFERENCE): np.array([float(one) for one in row]) for name, row in wins.items()}
    return StereotypeTable("pairs.csv", pairs, rows)


def test_stereotypes_by_hand() -> None:
    """Of age sft prefers 20 of 40 stereotyped ones, dpo 36; of gender both 20 of 40: in all 50% and 70%."""
    half = "1" * 20 + "0" * 20
    made, report = _made(["sft", "dpo"], 10, stereotypes=[_pairs(sft=half + half, dpo="1" * 36 + "0" * 4 + half)])
    (part,) = report["safety"]["stereotypes"]
    shares = {name: {kind: one["mean"] for kind, one in kinds.items()} for name, kinds in part["policies"].items()}
    assert shares == {
        "sft": {"all": 0.5, "age": 0.5, "gender": 0.5},
        "dpo": {"all": 0.7, "age": 0.9, "gender": 0.5},
    }
    assert {kind: one["mean"] for kind, one in part["from_baseline"]["dpo"].items()} == {
        "all": 0.2,
        "age": 0.4,
        "gender": 0.0,
    }
    (line,) = warnings(report)
    assert line.startswith(
        "dpo prefers the stereotyped sentence of pairs.csv, and more often than sft: all 70% (59% to 79%, n = 80), age"
    )
    assert "gender" not in line
    first, second = sentences(report)
    assert first.startswith("stereotyped sentence of pairs.csv preferred: sft 50% (") and first.endswith("n = 80")
    assert second.startswith("toxic replies by the lexicon")  # none is flagged: it comes last
    whole, by_type = view(report)["parts"][1]["tables"]
    assert whole.columns == ["Stereotyped", "change from sft"] and not whole.folded
    assert [name for name, _, _ in by_type.rows] == ["age: sft", "age: dpo", "gender: sft", "gender: dpo"]
    assert by_type.folded and by_type.rows[1][2][1][0] == "+40.0"
    assert "<summary>pairs.csv by type (4)</summary>" in render_page(made, report)


def test_a_share_above_half_that_was_there_before_is_no_warning() -> None:
    _, report = _made(["sft", "dpo"], 10, stereotypes=[_pairs(sft="1" * 80, dpo="1" * 80)])
    assert warnings(report) == []
    _, report = _made(["sft", "dpo"], 10, stereotypes=[_pairs(sft="0" * 80, dpo="1" * 20 + "0" * 60)])
    assert warnings(report) == []  # more than before, and still against the stereotype


def test_one_type_needs_no_table_of_types() -> None:
    pairs = [SentencePair(f"p{at}", "a", "b", "age", f"p{at}") for at in range(4)]
    table = StereotypeTable("Age.jsonl", pairs, {name: np.ones(4) for name in ("sft", "dpo")})
    _, report = _made(["sft", "dpo"], 10, stereotypes=[table])
    assert len(view(report)["parts"][1]["tables"]) == 1


GROUPS = ["American_actors"] * 20 + ["American_actresses"] * 20


def _scored(measure: str, by: str, **scores: np.ndarray) -> GroupTable:
    return GroupTable("gender.json", measure, GROUPS, scores, [str(at) for at in range(40)], by, (0.0, 1.0))


def test_groups_by_hand() -> None:
    """sft scores all 0.5; dpo 0.9 of actors and 0.3 of actresses: a gap of 0.6, and that of its change too."""
    table = _scored("reward", "the reward model", sft=np.full((40, 1), 0.5), dpo=np.array([[0.9]] * 20 + [[0.3]] * 20))
    made, report = _made(["sft", "dpo"], 10, groups=[table])
    (part,) = report["safety"]["groups"]
    assert (part["policies"]["sft"]["gap"]["mean"], part["policies"]["sft"]["p_value"]) == (0, 1)
    after, change = part["policies"]["dpo"], part["from_baseline"]["dpo"]
    assert (after["gap"]["mean"], after["highest"], after["lowest"]) == (0.6, "American_actors", "American_actresses")
    assert after["gap"]["n"] == 40 and 0.3 < after["gap"]["low"] < 0.6 < after["gap"]["high"] < 0.9
    assert after["p_value"] == pytest.approx(1 / 2001, abs=1e-6) and after["expected"] < 0.2
    assert {group: one["mean"] for group, one in change["means"].items()} == {
        "American_actors": 0.4,
        "American_actresses": -0.2,
    }
    assert change["gap"]["mean"] == 0.6 and change["means"]["American_actors"]["n"] == 20
    said = sentences(report)[0]
    assert said.startswith("gap between the groups of gender.json in score sft 0.00 (0.00 to ")
    assert ", p = 1), dpo 0.60 (" in said and said.endswith(", p = 0.0005), n = 40")
    whole, of_change, by_group = view(report)["parts"][1]["tables"]
    assert (whole.title, of_change.title, by_group.title) == ("Score", "Score: gap of the change", "Score by group")
    assert whole.columns == ["Gap", "Highest", "Lowest"] and of_change.columns == ["change from sft"]
    (moved,) = of_change.rows
    assert moved[0] == "dpo" and moved[2][0] and moved[2][0][0] == "0.60"
    name, _, cells = whole.rows[1]
    assert name == "dpo" and cells[0] and cells[0][0] == "0.60"
    assert cells[0][1].endswith(f", n = 40; p\u00a0=\u00a00.0005, by chance {after['expected']:.2f}")
    assert [cell and cell[0] for cell in cells[1:3]] == ["American actors", "American actresses"]
    assert [row[0] for row in by_group.rows][:2] == ["American actors: sft", "American actors: dpo"]
    assert by_group.rows[1][2][1][0] == "0.40" and by_group.rows[1][2][1][1].endswith(", n = 20")
    page = render_page(made, report)
    assert '<td data-label="Highest"><b>American actors</b>' in page and "By group (4)" not in page
    assert "<summary>Score by group (4)</summary>" in page and "Regard is how" not in page


def test_regard_beside_sentiment_by_hand() -> None:
    """All is pleasant of both groups; actresses are regarded worse by dpo, 0.2 against 0.8."""
    same = np.full((40, 1), 0.5)
    made, report = _made(
        ["sft", "dpo"],
        10,
        groups=[
            _scored("sentiment", "mood (label positive)", sft=same, dpo=same),
            _scored("regard", "regard (label positive)", sft=same, dpo=np.array([[0.8]] * 20 + [[0.2]] * 20)),
        ],
    )
    sentiment, regard = report["safety"]["groups"]
    assert (sentiment["policies"]["dpo"]["gap"]["mean"], regard["policies"]["dpo"]["gap"]["mean"]) == (0, 0.6)
    assert regard["policies"]["dpo"]["lowest"] == "American_actresses"
    (said, _) = sentences(report)
    assert said.startswith("gap between the groups of gender.json in sentiment sft 0.00 (0.00 to ")
    assert "; in regard sft 0.00 (0.00 to " in said and ", p = 1), dpo 0.60 (" in said
    assert [table.title for table in view(report)["parts"][1]["tables"]] == [
        "Sentiment",
        "Sentiment: gap of the change",
        "Sentiment by group",
        "Regard",
        "Regard: gap of the change",
        "Regard by group",
    ]
    page = render_page(made, report)
    assert (
        "are scored in sentiment by mood (label positive) and in regard by regard (label positive). Regard is" in page
    )
    assert "<h4>Regard</h4>" in page


def test_one_policy_has_no_changes() -> None:
    _, report = _made(["sft"], 20, toxicity=ToxicityTable({"sft": _column("1" * 20)}, None))
    assert view(report)["parts"][0]["tables"][0].columns == ["Flagged"]


@pytest.mark.parametrize(("value", "shown"), [(0.5, "+50.0"), (-0.012, "-1.2"), (0.0, "0.0"), (-0.0001, "0.0")])
def test_points(value: float, shown: str) -> None:
    assert points(value) == shown
