"""the page in a real browser: downloads, the browser of texts, three widths, paper; nothing asks a network."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.page import render_page
from rlhf.compare.report import build_report
from rlhf.compare.study import Study
from rlhf.records import Prompt
from tests.hostile import HOSTILE
from tests.study_cases import evil_study, study, wins
from tests.test_compare_page_frontier import best_of_n, curve, frontier_study


@contextmanager
def opened(
    browser: Any, folder: Path, one: Study, width: int = 1280, hash: str = "", report: Any = None, **how: Any
) -> Iterator[Any]:
    """A study's page; fails where it says anything on the console or asks for anything."""
    path = folder / "report.html"
    path.write_text(render_page(one, report or build_report(one)), encoding="utf-8", errors="backslashreplace")
    page = browser.new_page(viewport={"width": width, "height": 900}, **how)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "blob:")) else trouble.append(asked.url))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.goto(f"file://{path}{hash}")
    yield page
    assert trouble == []
    page.close()


def whole() -> Study:
    """Three policies, one of them with a dangerous name, and a frontier."""
    curves = {"dpo": curve("dpo", (1, 1), (3, 2), steps=[5, None]), "=1+1": curve("p", (2, 1.5), (4, 1.5))}
    return frontier_study(curves | {"best-of-n": best_of_n()}, ["sft", "dpo", "=1+1"])


def saved(page: Any, label: str) -> tuple[str, str]:
    """What a download button gives: the file's name and its text."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    with page.expect_download() as waiting:
        page.get_by_label(f"Download {label}", exact=True).click()
    path = waiting.value.path()
    return waiting.value.suggested_filename, Path(path).read_text(encoding="utf-8")


def test_every_table_comes_as_csv(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, whole()) as page:
        tables = page.locator("main table").count()
        assert tables == page.locator("main button.download", has_text="CSV").count() >= 5
        name, text = saved(page, "Policies as CSV")
        rows = list(csv.reader(io.StringIO(text)))
        assert name == "policies.csv" and rows[0][:3] == ["Policy", "Win rate against sft", "Gold"]
        assert [row[0] for row in rows[1:]] == ["sft baseline reference", "dpo", "'=1+1"]
        assert rows[2][1].startswith("100% 9")
        title = "Who beats whom, and how sure that is, By gold, Tests, and win rates at equal length"
        name, _ = saved(page, f"{title} as CSV")
        assert name == "who-beats-whom-and-how-sure-that-is-by-gold-tests-and-win-rates-at-equal-length.csv"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_comes_as_svg_on_white(scheme: str, browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, whole(), color_scheme=scheme) as page:
        assert page.locator("main figure").count() == page.locator("main button.download", has_text="SVG").count() == 6
        name, text = saved(page, "Reward against KL, gold against KL as SVG")
        assert name == "reward-against-kl-gold-against-kl.svg"
        drawn = ElementTree.fromstring(text)
        assert (drawn.get("width"), drawn[0].get("fill")) == ("720.0", "#ffffff") and "class=" not in text
        paths = {node.get("fill") for node in drawn.iter("{http://www.w3.org/2000/svg}path")}
        assert {"rgb(0, 114, 178)", "rgb(213, 94, 0)"} <= paths  # Okabe and Ito's blue and vermilion
        assert page.evaluate("document.documentElement.className") == ""
        name, text = saved(page, "The measures, Gold as SVG")
        drawn = ElementTree.fromstring(text)
        words = ["".join(node.itertext()) for node in drawn.findall("{http://www.w3.org/2000/svg}text")]
        assert name == "the-measures-gold.svg" and words[:2] == ["Gold", "sft"] and words[3] == "dpo"
        assert len(drawn.findall("{http://www.w3.org/2000/svg}svg")) == 4  # three strips and the scale


# ---- The browser of texts


def position(page: Any) -> tuple[str, str]:
    """Which prompt is shown, and where among those found."""
    return page.locator(".card h3 span").first.text_content(), page.locator(".status").first.text_content()


def judged() -> Study:
    """25 prompts of two policies: judges disagree on 8 and 10, one response of 4 is cut, 21's is the longest."""
    gold, score = wins(0.2, 25), wins(0.2, 25)
    gold[1][7], score[1][7] = 5.0, -1.0
    gold[1][9], score[1][9] = 0.5, -0.5
    one = study(gold, score)
    rows = one.answers[1].responses
    for at, changes in ((3, {"finished": False}), (20, {"num_tokens": 400})):
        rows[at] = [dataclasses.replace(rows[at][0], sampling=rows[at][0].sampling | changes)]
    return one


def test_texts_are_filtered_searched_and_ordered(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, judged()) as page:
        assert position(page) == ("Prompt 1", "1 of 25") and page.locator(".card").count() == 1
        page.select_option("#texts-show", label="where judges disagree (2)")
        assert position(page) == ("Prompt 8", "1 of 2")
        marks = page.locator(".mark").all_text_contents()
        assert marks == ["judges disagree", "best by the reward model", "best by gold"]
        page.select_option("#texts-show", label="with an unfinished response (1)")
        assert position(page) == ("Prompt 4", "1 of 1") and page.locator(".cut").count() == 1
        page.select_option("#texts-show", label="every prompt (25)")
        page.fill("#texts-search", "QUESTION 12")
        assert position(page) == ("Prompt 13", "1 of 1")
        page.fill("#texts-search", "nothing like it")
        assert page.locator(".status").first.text_content() == "No prompt matches"
        assert page.locator(".card").count() == 0 and page.locator(".next").first.is_disabled()
        page.fill("#texts-search", "")
        for order, first in (("difference", "Prompt 8"), ("contradiction", "Prompt 8"), ("longest", "Prompt 21")):
            page.select_option("#texts-order", order)
            assert position(page) == (first, "1 of 25")


def test_buttons_and_arrow_keys_turn(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, judged()) as page:
        page.keyboard.press("ArrowRight")
        assert position(page) == ("Prompt 1", "1 of 25")  # the texts are not on the screen
        page.locator("#texts").scroll_into_view_if_needed()
        page.locator(".next").first.click()
        page.keyboard.press("ArrowRight")
        assert position(page) == ("Prompt 3", "3 of 25")
        page.keyboard.press("ArrowLeft")
        page.locator(".previous").last.click()
        assert position(page) == ("Prompt 1", "1 of 25") and page.locator(".previous").first.is_disabled()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Control+ArrowRight")
        page.focus("#texts-search")
        page.keyboard.press("ArrowRight")
        assert position(page) == ("Prompt 1", "1 of 25")


def test_the_address_leads_back(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, judged()) as page:
        assert page.evaluate("location.hash") == ""
        page.select_option("#texts-show", "disagree")
        page.select_option("#texts-order", "contradiction")
        page.locator(".next").first.click()
        address = page.evaluate("location.hash")
        assert address == "#texts?prompt=10&show=disagree&order=contradiction"
        page.locator(".contents a").first.click()
        assert page.evaluate("location.hash") == "#warnings" and position(page) == ("Prompt 10", "2 of 2")
        page.fill("#texts-search", "a & b=c")
        assert page.evaluate("location.hash") == "#texts?show=disagree&order=contradiction&search=a+%26+b%3Dc"
        page.evaluate("location.hash = '#texts?prompt=2&show=best%3Agold%3A1'")
        page.locator(".card h3 span", has_text="Prompt 2").first.wait_for()
    with opened(browser, tmp_path, judged(), hash=address) as page:
        assert position(page) == ("Prompt 10", "2 of 2")
        assert page.input_value("#texts-order") == "contradiction"
        assert abs(page.locator("#texts").bounding_box()["y"]) < 900
    with opened(browser, tmp_path, judged(), hash='#texts?prompt=x&show=<b>&order="]&search=%00') as page:
        assert page.locator(".status").first.text_content() == "No prompt matches"


def test_what_sections_flag(browser: Any, tmp_path: Path) -> None:
    one = judged()
    report = build_report(one)
    report["standing"]["flags"] = [
        {"prompt": "p4", "policy": "dpo", "why": "refuses"},
        {"prompt": "p4", "policy": "dpo", "why": "<i>loops</i>"},
        {"prompt": "p6", "policy": "sft", "why": "refuses"},
    ]
    with opened(browser, tmp_path, one, report=report) as page:
        page.select_option("#texts-show", label="flagged (2)")
        assert position(page) == ("Prompt 5", "1 of 2")
        assert page.locator(".flag").all_text_contents() == ["refuses", "<i>loops</i>"]
        page.select_option("#texts-show", label="flagged: refuses (2)")
        page.locator(".next").first.click()
        assert position(page) == ("Prompt 7", "2 of 2")
        assert page.locator(".answer").first.locator(".flag").count() == 1
        page.select_option("#texts-show", label="flagged: <i>loops</i> (1)")
        assert position(page) == ("Prompt 5", "1 of 1")


def test_two_thousand_prompts(browser: Any, tmp_path: Path) -> None:
    """One prompt is in the document at a time, and a search over all of them ends within a frame or two."""
    num = 2_000
    one = study(wins(0.3, num), wins(0.6, num))
    for answer in one.answers:
        for at, row in enumerate(answer.responses):
            row[0] = dataclasses.replace(row[0], text=f"{row[0].text} " + "word " * 200)
            answer.responses[at] = row
    with opened(browser, tmp_path, one) as page:
        assert position(page) == ("Prompt 1", "1 of 2000")
        assert page.evaluate("document.querySelectorAll('#texts *').length") < 100
        took = page.evaluate(
            """() => {
              const field = document.getElementById("texts-search"), times = [];
              for (const words of ["answer 7", "word word", "answer 1999"]) {
                const start = performance.now();
                field.value = words;
                field.dispatchEvent(new Event("input"));
                times.push(performance.now() - start);
              }
              return times;
            }"""
        )
        assert max(took) < 2_000  # about 20 ms here; a machine that is busy may take long
        assert position(page) == ("Prompt 2000", "1 of 1")


def test_no_hostile_text_does_anything(browser: Any, tmp_path: Path) -> None:
    """Every hostile text of up to 100,000 characters as prompt, response and reason; all are shown as they are."""
    texts = [text for _, text in HOSTILE if len(text) <= 100_000]
    one = study([[0.0] * len(texts), [1.0] * len(texts)], None)
    prompts = [Prompt(f"{at} {text[:40]}", [{"role": "user", "content": text}]) for at, text in enumerate(texts)]
    for at, text in enumerate(texts):
        row = one.answers[1].responses[at]
        row[0] = dataclasses.replace(row[0], text=text)
    one = dataclasses.replace(one, prompts=prompts)
    report = build_report(one)
    report["standing"]["flags"] = [
        {"prompt": prompt.id, "policy": "dpo", "why": text[:200] or "-"}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    with opened(browser, tmp_path, one, 390, report=report) as page:
        shown = page.evaluate(
            """() => [...Array(Number(document.querySelector(".status").textContent.split(" ")[2]))].map(() => {
              const found = [...document.querySelectorAll(".card .text")].map((one) => one.textContent);
              document.querySelector(".next").click();
              return [found[0], found[2], document.querySelectorAll("#texts-card :is(script, img, svg, a, b)").length];
            })"""
        )
        assert shown == [[text or "(empty)", text or "(empty)", 0] for text in texts]
        assert page.title() == "Comparison of sft, dpo"


# ---- Widths


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_the_page_never_scrolls_sideways(width: int, browser: Any, tmp_path: Path) -> None:
    one = whole()
    long = "x" * 400
    row = one.answers[1].responses[0]
    row[0] = dataclasses.replace(row[0], text=long)
    with opened(browser, tmp_path, one, width) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("svg.frontier:visible").count() == 1
    with opened(browser, tmp_path, evil_study(), width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width


# ---- Paper


def test_paper_has_everything_opened_and_no_buttons(browser: Any, tmp_path: Path) -> None:
    """A4 less its margins is 182 mm, 688 pixels, wide: no table and no figure reaches further."""
    with opened(browser, tmp_path, whole(), 688, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details").count() == page.locator("details[open]").count() >= 4
        wide = "[...document.querySelectorAll('main :is(table, svg, figure, p, td, .card)')]"
        assert page.evaluate(f"{wide}.filter((one) => one.getBoundingClientRect().right > 688.5).length") == 0
        assert page.locator("button:visible, input:visible, select:visible, .contents:visible").count() == 0
        assert page.locator("table:visible").count() == page.locator("main table").count()
        assert page.locator(".paper-only").is_visible()
        assert {page.evaluate("getComputedStyle(document.querySelector('thead')).display")} == {"table-header-group"}
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0


def test_a_pdf_of_the_page(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, whole()) as page:
        page.evaluate("window.addEventListener('beforeprint', () => { document.documentElement.lang = 'printed'; })")
        made = page.pdf(format="A4")
        assert made.startswith(b"%PDF") and 4 <= made.count(b"/Type /Page\n") <= 14
        assert page.evaluate("document.documentElement.lang") == "printed"  # what is folded was opened for it
        assert page.locator("details[open]").count() == 0
