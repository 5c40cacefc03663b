"""the page: its table of contents, and that it stays one file that nothing can break."""

import html.parser

from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.study import Study
from tests.test_compare_report import study, wins


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
        self.sections += [given.get("id") or ""] if tag == "section" else []


def page_of(one: Study) -> str:
    """A study's page."""
    return render_page(one, build_report(one))


def test_the_contents_lead_to_every_section_in_order() -> None:
    page = Page(page_of(study(wins(0.2), wins(0.9))))
    assert page.links[0] == "#texts" and [link.removeprefix("#") for link in page.links[1:]] == page.sections
    assert page.sections == [
        *("warnings", "verdicts", "measures", "policies", "pairs"),
        *("standing", "agreement", "texts", "how"),
    ]
    assert len(page.ids) == len(set(page.ids))


def test_what_a_report_has_not_is_not_in_its_contents() -> None:
    alone = Page(page_of(study([[0.0] * 40], None)))
    assert "pairs" not in alone.sections and "standing" not in alone.sections
    assert [link.removeprefix("#") for link in alone.links[1:]] == alone.sections
