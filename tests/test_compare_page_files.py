"""policies.csv, pairs.csv and report.md: expectations by hand; no text of a policy's name runs or makes markup."""

import csv
import io
from typing import Any

import pytest
from markdown_it import MarkdownIt

from rlhf.compare.markdown import escaped, render_markdown
from rlhf.compare.report import build_report
from rlhf.compare.tables import guarded, pairs_csv, policies_csv
from tests.hostile import HOSTILE
from tests.study_cases import study
from tests.test_compare_page_frontier import curve, frontier_study

SHORT = [(kind, text) for kind, text in HOSTILE if len(text) < 3_000]


def interval(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    """An interval over 40 prompts, as report.json has it."""
    return {"mean": mean, "low": low, "high": high, "n": 40}


def by_hand(name: str = "dpo") -> dict[str, Any]:
    """A report of two policies before one judge, and people."""
    none = {"gold": None, "score": None, "kl": None}
    return {
        "policies": {
            "sft": none
            | {
                "win_rate": None,
                "kl": interval(0, 0, 0),
                "length": interval(10, 9.5, 11),
                "finished": interval(1, 0.9, 1),
            },
            name: none
            | {
                "win_rate": interval(0.75, 0.6, 0.875),
                "kl": interval(2.5, 2, None),
                "length": interval(12, 11, 13),
                "finished": interval(0.95, 0.85, 1),
            },
        },
        "pairs": [
            {
                "a": "sft",
                "b": name,
                "judge": "gold",
                "ties": 0.125,
                "verdict": name,
                "win_rate": interval(0.25, 0.125, 0.4),
            },
            {
                "a": "sft",
                "b": name,
                "judge": "people",
                "ties": None,
                "verdict": "undecided",
                "win_rate": interval(0.4, 0.2, 0.6),
                "num_votes": 20,
                "num_annotators": 3,
            },
        ],
        "settings": {
            "policies": ["sft", name],
            "baseline": "sft",
            "reference": "sft",
            "judges": ["gold"],
            "decided_by": "gold",
            "num_prompts": 40,
            "num_responses": 1,
            "temperature": 1.0,
            "max_new_tokens": 64,
            "seed": 0,
            "confidence": 0.95,
        },
        "people": {"num_elsewhere": 0},
        "verdict": f"{name} beats sft on 75% of 40 prompts by gold (95% interval 60% to 88%)",
    }


def test_policies_csv() -> None:
    assert policies_csv(by_hand()) == (
        "policy,win_rate_mean,win_rate_low,win_rate_high,win_rate_n,kl_mean,kl_low,kl_high,kl_n,"
        "length_mean,length_low,length_high,length_n,finished_mean,finished_low,finished_high,finished_n\r\n"
        "sft,,,,,0,0,0,40,10,9.5,11,40,1,0.9,1,40\r\n"
        "dpo,0.75,0.6,0.875,40,2.5,2,,40,12,11,13,40,0.95,0.85,1,40\r\n"
    )


def test_pairs_csv() -> None:
    assert pairs_csv(by_hand()) == (
        "a,b,judge,win_rate_mean,win_rate_low,win_rate_high,win_rate_n,ties,verdict,num_votes,num_annotators\r\n"
        "sft,dpo,gold,0.25,0.125,0.4,40,0.125,dpo,,\r\n"
        "sft,dpo,people,0.4,0.2,0.6,40,,undecided,20,3\r\n"
    )
    alone = build_report(study([[0.0] * 40], None))
    assert pairs_csv(alone).count("\n") == 1 and "num_votes" not in pairs_csv(alone)


@pytest.mark.parametrize("name", ['=cmd|"/c calc"!A1', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "  =1"])
def test_a_spreadsheet_runs_no_cell(name: str) -> None:
    rows = list(csv.reader(io.StringIO(policies_csv(by_hand(name)))))
    assert rows[2][0] == f"'{name}"
    assert [guarded(value) for value in (-1.5, 3, None, "-", "a=b")] == [-1.5, 3, None, "'-", "a=b"]


@pytest.mark.parametrize(("kind", "name"), SHORT, ids=[kind for kind, _ in SHORT])
def test_any_name_comes_back_from_csv(kind: str, name: str) -> None:
    rows = list(csv.reader(io.StringIO(pairs_csv(by_hand(name)), newline="")))
    assert rows[1][1] == guarded(name) and len(rows) == 3


def test_report_md() -> None:
    report = by_hand()
    assert render_markdown(report) == (
        "## Comparison of sft, dpo\n\n"
        "**dpo beats sft on 75% of 40 prompts by gold (95% interval 60% to 88%); people cannot tell them apart.**\n\n"
        "40 held-out prompts, 1 response each from every policy, temperature 1.0, at most 64 tokens, seed 0.\n\n"
        "### Before you rely on this\n\n"
        "- People cannot tell dpo and sft apart, gold prefers dpo.\n\n"
        "### Policies\n\n"
        "| Policy | Win rate against sft | KL, nats | Length, tokens | Finished |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| sft |  | **0.00** (0.00 to 0.00) | **10.00** (9.50 to 11.00) | **100%** (90% to 100%) |\n"
        "| dpo | **75%** (60% to 88%) | **2.50** (interval unknown) | **12.00** (11.00 to 13.00) | **95%** (85% to "
        "100%) |\n\n"
        "Each mean stands before its 95% interval.\n\n"
        "### Other judges\n\n"
        "- Undecided: dpo wins 60% of 40 prompts against sft by people (95% interval 40% to 80%, which holds 50%; 20 "
        "votes of 3 annotators).\n"
    )


def test_report_md_says_what_sections_say() -> None:
    one = frontier_study({"dpo": curve("dpo", (1, 1), (3, 2)), "ppo": curve("ppo", (2, 1.5), (4, 1.5))})
    text = render_markdown(build_report(one))
    assert "### Reward against KL\n\n- At equal KL (2.00 to 3.00 nats) dpo has 0.25 more gold than ppo (" in text
    assert "- ppo beats dpo, but it has moved further from sft" in text


PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tags(text: str) -> list[str]:
    """The types of all tokens that a CommonMark parser sees, those inside lines too."""
    found = [inner for token in PARSER.parse(text) for inner in [token, *(token.children or [])]]
    return [token.type for token in found if token.type != "text" or token.content]


@pytest.mark.parametrize(("kind", "name"), SHORT, ids=[kind for kind, _ in SHORT])
def test_no_name_makes_markup(kind: str, name: str) -> None:
    """The page is built as with a plain name; alone in a line, where lists, headings and rules begin, it is text."""
    if not escaped(name).strip():
        return
    assert tags(render_markdown(by_hand(name))) == tags(render_markdown(by_hand("dpo")))
    assert set(tags(escaped(name))) == {"paragraph_open", "inline", "text", "paragraph_close"}
    (line,) = (token for token in PARSER.parse(escaped(name)) if token.type == "inline")
    shown = "".join(part.content for part in line.children or [])
    assert "".join(filter(str.isalnum, shown)) == "".join(filter(str.isalnum, name))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@someone", "@\u2060someone"),
        ("see #12 and GH-3", "see \\#\u206012 and GH-\u20603"),
        ("https://evil.example", "https:\u2060//evil.example"),
        ("www.evil.example", "www\u2060.evil.example"),
        ("a:smile:", "a:\u2060smile:"),
        ("1. x", "1\\. x"),
        ("- x", "\\- x"),
        ("a_b*c", "a\\_b\\*c"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("right\u202eto left\nand on", "right\ufffdto left and on"),
        ("dpo-beta-0.1", "dpo-beta-0.1"),
    ],
)
def test_what_github_would_link(text: str, told: str) -> None:
    assert escaped(text) == told
