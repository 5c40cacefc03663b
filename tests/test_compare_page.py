"""the page: its table of contents, and that it stays one file that nothing can break."""

import html.parser
import re

import numpy as np
import pytest

from rlhf.compare.page import examples, render_page
from rlhf.compare.page.flags import flags
from rlhf.compare.page.side_by_side import contradictions
from rlhf.compare.report import build_report
from rlhf.compare.study import Study
from tests.study_cases import study, wins


class Page(html.parser.HTMLParser):
    """The ids and the links within a page, and the titles of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sections: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.sections += [given["id"] or ""] if tag == "section" and "id" in given else []


def page_of(one: Study) -> str:
    """A study's page."""
    return render_page(one, build_report(one))


def test_the_contents_lead_to_every_section_in_order() -> None:
    page = Page(page_of(study(wins(0.2), wins(0.9))))
    assert page.links[0] == "#texts" and [link.removeprefix("#") for link in page.links[1:]] == page.sections
    assert page.sections == [
        *("warnings", "verdicts", "measures", "policies", "pairs"),
        *("standing", "agreement", "quality", "texts", "how"),
    ]
    assert len(page.ids) == len(set(page.ids))


def test_what_a_report_has_not_is_not_in_its_contents() -> None:
    alone = Page(page_of(study([[0.0] * 40], None)))
    assert "pairs" not in alone.sections and "standing" not in alone.sections
    assert [link.removeprefix("#") for link in alone.links[1:]] == alone.sections


def test_how_strongly_judges_contradict_each_other() -> None:
    """Margins of gold are 3, -1, 0, -1 (root mean square sqrt(11/4)), of the score -20, 20, 20, -20 (20)."""
    gold = np.array([[3.0, 0, 0, 0], [0, 1, 0, 1]])[:, :, None]
    score = np.array([[0.0, 20, 20, 0], [20, 0, 0, 20]])[:, :, None]
    unit = (11 / 4) ** 0.5
    # The less sure of two that differ: the score on the first prompt, gold on the second; a tie contradicts nobody.
    assert contradictions({"gold": gold, "score": score}) == pytest.approx([1.0, 1 / unit, 0, 0])
    assert contradictions({"gold": gold, "same": gold}) == pytest.approx([0, 0, 0, 0])
    assert contradictions({"gold": gold, "constant": np.zeros_like(gold)}) == pytest.approx([0, 0, 0, 0])
    assert contradictions({"gold": gold}).tolist() == [0, 0, 0, 0]
    assert contradictions({"gold": gold[:1], "score": score[:1]}).tolist() == [0, 0, 0, 0]


def test_flags_of_sections() -> None:
    report = {
        "verdict": "x",
        "pairs": [],
        "safety": {"flags": [{"prompt": "p1", "policy": "dpo", "why": "refuses"}] * 2},
        "quality": {"flags": [{"prompt": "p1", "policy": "dpo", "why": "repeats"}]},
        "standing": {"judges": {}},
    }
    assert flags(report) == {("p1", "dpo"): ["refuses", "repeats"]}
    one = study(wins(0.2, 2), None)
    shown = examples(one, report | {"settings": build_report(one)["settings"]})
    assert [prompt["flags"] for prompt in shown["prompts"]] == [[[], []], [[], ["refuses", "repeats"]]]
    assert [prompt["flags"] for prompt in examples(one)["prompts"]] == [[[], []], [[], []]]


def test_what_many_policies_make_long_is_folded() -> None:
    """Of six policies there are 15 pairs; of three, 3."""
    few = study([[float(at)] * 40 for at in range(3)], None)
    many = study([[float((at * 7 + n) % 5) for n in range(40)] for at in range(6)], None, [f"p{at}" for at in range(6)])
    assert "Every pair before every judge" not in page_of(few)
    page = page_of(many)
    assert page.count("<details>") == page.count("</details>")
    assert "<summary>Every pair before every judge (15)</summary>\n<table>" in page
    assert re.search(r"<summary>Undecided pairs \(\d+\)</summary>\n<ul>\n<li>If p\d goes on to win", page)
