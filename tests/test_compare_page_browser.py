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
from rlhf.records import Prompt, Response
from tests.hostile import HOSTILE
from tests.test_compare_page_frontier import best_of_n, curve, frontier_study
from tests.test_compare_report import evil_study, study, wins


@contextmanager
def opened(browser: Any, folder: Path, one: Study, width: int = 1280, hash: str = "", **how: Any) -> Iterator[Any]:
    """A study's page; fails where it says anything on the console or asks for anything."""
    path = folder / "report.html"
    path.write_text(render_page(one, build_report(one)), encoding="utf-8", errors="backslashreplace")
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
