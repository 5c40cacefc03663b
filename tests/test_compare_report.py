"""the report: its sentences and warnings, and a page that no model text can break."""

import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.compare import page as page_module
from rlhf.compare.page import charts, render_page
from rlhf.compare.page.scales import ticks
from rlhf.compare.report import build_report
from rlhf.compare.sentences import number, percent, warnings
from rlhf.compare.study import Study
from rlhf.compare.terminal import print_report
from tests.study_cases import ARABIC, EVIL, evil_study, study, wins


def test_the_verdict_of_two() -> None:
    sentence = build_report(study(wins(0.78), None))["verdict"]
    match = re.fullmatch(r"dpo beats sft on 78% of 100 prompts by gold \(95% interval (\d+)% to (\d+)%\)", sentence)
    assert match and 67 <= int(match[1]) <= 71 and 83 <= int(match[2]) <= 88  # Wilson's interval: 69% to 85%
    assert build_report(study(wins(0.2), None))["verdict"].startswith("sft beats dpo on 80% of 100 prompts by gold (")
    undecided = build_report(study(None, wins(0.53)))["verdict"]
    assert undecided.startswith("undecided: dpo wins 53% of 100 prompts against sft by the reward model (95% interval")
    assert undecided.endswith(", which holds 50%)")


def test_the_verdict_of_three() -> None:
    n = 100
    best = [[0.0] * n, [1.0] * n, [2.0] * n]
    sentence = build_report(study(best, None))["verdict"]
    assert sentence.startswith("ppo is the best by gold: it wins 100% of 100 prompts against sft (95% interval 9")
    assert " and 100% against dpo (95% interval" in sentence
    close = [[0.0] * n, [1.0 + (at % 2) for at in range(n)], [1.5] * n]  # dpo and ppo share the prompts evenly
    sentence = build_report(study(close, None))["verdict"]
    assert sentence.startswith("undecided: no policy beats all others by gold; ppo comes closest, it wins 100%")
    assert re.search(r" and 50% against dpo \(95% interval \d+% to \d+%, undecided\)$", sentence)


def test_every_pair_before_every_judge() -> None:
    n = 40
    gold = [[0.0] * n, [1.0] * n, [2.0] * n]
    report = build_report(study(gold, gold[::-1]))
    assert [(pair["a"], pair["b"], pair["judge"], pair["verdict"]) for pair in report["pairs"]] == [
        ("sft", "dpo", "gold", "dpo"),
        ("sft", "dpo", "reward_model", "sft"),
        ("sft", "ppo", "gold", "ppo"),
        ("sft", "ppo", "reward_model", "sft"),
        ("dpo", "ppo", "gold", "ppo"),
        ("dpo", "ppo", "reward_model", "dpo"),
    ]
    assert report["policies"]["ppo"]["win_rate"]["mean"] == 1.0
    assert [numbers["gold"]["mean"] for numbers in report["policies"].values()] == [0, 1, 2]


def test_where_the_judges_contradict_each_other() -> None:
    (warning,) = warnings(build_report(study(wins(0.2), wins(0.9))))
    assert warning.startswith(
        "The judges contradict each other on dpo: the reward model prefers it to sft (90% of prompts); "
        "by gold it loses, with 20%."
    )
    (warning,) = warnings(build_report(study(wins(0.5), wins(0.9))))
    assert warning.startswith("The reward model prefers dpo to sft, gold cannot tell them apart")
    (warning,) = warnings(build_report(study(wins(0.9), wins(0.5))))
    assert warning.startswith("Gold prefers dpo to sft, the reward model cannot tell them apart")
    assert warnings(build_report(study(wins(0.9), wins(0.9)))) == []


def test_other_warnings() -> None:
    (warning,) = warnings(build_report(study(None, wins(0.9))))
    assert warning.startswith("There is no gold here: the verdict is that of the reward model")
    (warning,) = warnings(build_report(study(wins(1.0, 10), None)))
    assert warning.startswith("Only 10 prompts: few differences can be told")
    found = warnings(build_report(study(wins(0.9), None, finished=False, kl=None)))
    assert found[0].startswith("100% of the responses of sft were cut at 64 tokens")
    assert found[1].startswith("KL and length of sft cannot be set against the others'")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.784, "78%"), (0.5, "50%"), (0.504, "50.4%"), (0.997, "99.7%"), (1.0, "100%"), (0.0, "0%"), (0.002, "0.2%")],
)
def test_percentages_never_claim_too_much(share: float, text: str) -> None:
    assert percent(share) == text


def test_numbers_for_people() -> None:
    shown = [number(value) for value in (0.0, 0.00123, 0.5, -3.14159, 45.67, 12345.6)]
    assert shown == ["0.00", "0.0012", "0.50", "-3.14", "45.7", "12,346"]
    assert number(13.99, beside=22.6) == "14.0"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.47, 0.53), (-3, 17), (5, 5), (0, 0), (45.1, 45.2), (-1e-4, 2e6)])
def test_scales_hold_their_values(low: float, high: float) -> None:
    marks = ticks(low, high, (1.0, 2.0, 2.5, 5.0, 10.0))
    rounding = 1e-6 * max(high - low, 1e-6)
    assert marks[0] <= low + rounding and marks[-1] >= high - rounding
    assert 2 <= len(marks) <= 6 and marks == sorted(set(marks))


def test_charts_point_at_the_numbers() -> None:
    (chart, *_) = charts(build_report(study(wins(0.78), wins(0.78))))
    assert chart.title == "Win rate against sft" and [row.name for row in chart.rows] == ["dpo"]
    row = chart.rows[0]
    places = {text: x for x, text in chart.ticks}
    assert places["50%"] == chart.line and chart.line < row.start < row.at < row.end  # type: ignore[operator]
    half, more = places["50%"], places["80%"]
    assert row.at == pytest.approx(half + (more - half) * 0.28 / 0.30, abs=0.01)
    assert (row.mean, row.kind) == ("78%", "clear")
    (chart, *_) = charts(build_report(study(wins(0.5), None)))
    assert chart.rows[0].kind == "open"


def test_the_terminal() -> None:
    out = io.StringIO()
    print_report(build_report(study(wins(0.2), wins(0.9), names=["sft", "[red]x"])), Console(file=out, width=80))
    shown = out.getvalue()
    assert "sft beats [red]x on 80% of 100 prompts by gold" in shown
    assert "! The judges contradict each other" in shown
    table = shown.split("sft beats [red]x")[0]
    assert max(len(line) for line in table.split("\n")) <= 80


class _Page(html.parser.HTMLParser):
    """Which tags and links a page has, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset"):
                self.links.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.scripts:
            self.scripts[-1] += data


def test_model_text_is_never_markup() -> None:
    one = evil_study()
    page = render_page(one, build_report(one))
    parsed = _Page(page)
    assert len(parsed.scripts) == 2 and "img" not in parsed.tags and "b" in parsed.tags
    assert parsed.handlers == [] and all(link.startswith("#") for link in parsed.links)
    assert "<b>{{7*7}}" not in page and "&lt;b&gt;{{7*7}}" in page
    data = json.loads(parsed.scripts[0])
    assert data["prompts"][0]["policies"][1][0]["text"] == EVIL  # whole, and only data
    assert data["prompts"][1]["policies"][1][0]["text"] == ARABIC
    assert "http://" not in page and "https://" not in page


def test_tables_and_figures_are_labelled() -> None:
    one = study(wins(0.78), wins(0.9))
    page = render_page(one, build_report(one))
    assert page.count("<svg") == page.count("<title>") - 1 == page.count('role="img"')
    assert page.count("<figure>") == len(charts(build_report(one))) == 5
    assert '<th scope="col">Policy</th>' in page and '<th scope="row">sft against dpo</th>' in page
    assert page.index("dpo beats sft on 78% of 100 prompts by gold") < page.index("<main>")


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough(scheme: int) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for dots and whiskers."""
    style = (Path(page_module.__file__).parent / "report.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", style.split(":root")[scheme + 1]))

    def ratio(ink: str, paper: str) -> float:
        lighter, darker = sorted((_luminance(colours[ink]), _luminance(colours[paper])), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    text = [("ink", "paper"), ("ink", "panel"), ("soft", "paper"), ("soft", "panel"), ("warn-ink", "warn")]
    text += [("good-ink", "good"), ("cut", "panel"), ("accent", "paper")]
    assert all(ratio(*pair) >= 4.5 for pair in text)
    dots = ("accent", "grey", "blue", "vermilion", "green", "purple", "orange", "sky")
    assert all(ratio(ink, "panel") >= 3 for ink in dots)


def _opened(browser: Any, folder: Path, one: Study, width: int = 360) -> tuple[Any, list[str]]:
    (folder / "report.html").write_text(render_page(one, build_report(one)), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else trouble.append(request.url))
    page.goto(f"file://{folder}/report.html")
    return page, trouble


def test_a_browser_runs_nothing_that_a_model_wrote(browser: Any, tmp_path: Path) -> None:
    page, trouble = _opened(browser, tmp_path, evil_study())
    assert page.title() == "Comparison of sft, <b>{{7*7}}"
    texts = page.locator(".card").first.locator(".text").all_text_contents()
    assert texts == [EVIL, "Answer 0 of 0", EVIL]
    assert page.locator("#texts-card img, #texts-card script, #texts-card b").count() == 0
    page.locator(".next").first.click()
    arabic = page.get_by_text(ARABIC)
    assert arabic.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert trouble == []
    page.close()
