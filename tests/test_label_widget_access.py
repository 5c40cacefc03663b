"""The ranking widget for everybody: names, focus, contrast, sizes, narrow and dark windows, texts of any kind."""

from typing import Any

import pytest

from tests.label_stub import FORM, Stub, task

pytest_plugins = ("tests.label_desk",)

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
FORM_OF_ALL = {
    "attributes": [{"id": "helpful", "label": "Helpful"}],
    "flags": [*FORM["flags"], {"id": "broken", "label": "Cut off, repeated or garbled"}],
}
FOUR = ("<p>apple</p>", "<p>banana</p>", "<p>cherry</p>", "<p>damson</p>")
CONTROLS = ("button", "link", "radio", "checkbox", "textbox", "progressbar", "dialog", "DisclosureTriangle")


def everything(stub: Stub) -> None:
    """A form that asks for all there is; a pair, then four, one of them practice."""
    stub.form |= FORM_OF_ALL
    stub.tasks = [task("t1"), task("k1", *FOUR), task("p1", kind="practice")]
    stub.known = {"p1": {"is_right": False, "ranks": [2, 1], "explanation_html": "<p>Because.</p>"}}


def screens(visitor: Any) -> Any:
    """Each screen and dialog in turn, by name."""
    visitor.shows("t1")
    visitor.press("3")
    yield "pair"
    for key, name in (("?", "Keys"), ("s", "Skip this task")):
        visitor.press(key)
        visitor.expect(visitor.page.get_by_role("dialog", name=name)).to_be_visible()
        yield name
        visitor.press("Escape")
    visitor.button("Guidelines").click()
    yield "guidelines"
    visitor.press("Escape")
    visitor.page.locator("h1").focus()
    visitor.press("Enter")
    visitor.shows("k1")
    yield "toast"
    visitor.press("d", "a", "=", "b")
    yield "ladder"
    visitor.button("My answers").click()
    visitor.expect(visitor.page.get_by_role("dialog").get_by_role("listitem")).to_have_count(1)
    yield "history"
    visitor.press("Escape", "c")
    visitor.page.locator("h1").focus()
    visitor.press("Enter")
    visitor.shows("p1")
    visitor.press("1", "Enter")
    visitor.expect(visitor.button("Next")).to_be_enabled()
    yield "feedback"
    visitor.press("Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    yield "done"


def spoken(visitor: Any) -> list[tuple[str, str]]:
    """Role and name of all that the browser's accessibility tree holds."""
    protocol = visitor.context.new_cdp_session(visitor.page)
    nodes = protocol.send("Accessibility.getFullAXTree")["nodes"]
    protocol.detach()
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node
    ]


def test_every_control_has_a_name_of_its_own(visit, stub):
    everything(stub)
    visitor = visit()
    seen = []
    for screen in screens(visitor):
        seen.append(screen)
        controls = [(role, name) for role, name in spoken(visitor) if role in CONTROLS]
        assert [role for role, name in controls if not name.strip()] == [], screen
        radios = [name for role, name in controls if role == "radio" and not name.isdigit()]
        buttons = [name for role, name in controls if role == "button"]
        flags = {flag["label"] for flag in stub.form["flags"]}  # their group names the response
        for names in (radios, [name for name in buttons if name not in flags]):
            assert sorted(set(names)) == sorted(names), screen
    assert len(seen) == 9
    assert visitor.errors == []


def test_responses_are_regions_and_headings_lead_through_the_page(visit, stub):
    everything(stub)
    visitor = visit()
    visitor.shows("t1")
    tree = spoken(visitor)
    assert {name for role, name in tree if role == "region"} == {
        "The conversation", "Two responses", "Response A", "Response B", "In your own words",
    }  # fmt: skip
    assert visitor.page.get_by_role("heading").evaluate_all("all => all.map((h) => h.tagName + h.textContent)") == [
        "H1Which answer is better?", "H2The conversation", "H3Person",
        "H2Two responses", "H3Response A", "H3Response B",
    ]  # fmt: skip
    groups = [name for role, name in tree if role in ("group", "radiogroup")]
    assert "Which response is better?" in groups
    assert "Problems of Response A" in groups
    assert "Helpful, Response B: 0 is lowest, 4 is highest" in groups


def test_the_tab_key_goes_through_all_in_reading_order(visit, stub):
    stub.form |= FORM_OF_ALL
    visitor = visit()
    visitor.shows("t1")
    visitor.press("1")
    expected = [
        "SUMMARY Problems of Response A", "BUTTON Says something false", "BUTTON Harmful or unsafe",
        "BUTTON Cut off, repeated or garbled", "INPUT 0",
        "SUMMARY Problems of Response B", "BUTTON Says something false", "BUTTON Harmful or unsafe",
        "BUTTON Cut off, repeated or garbled", "INPUT 0",
        "TEXTAREA reason", "SUMMARY Write a better response (optional)",
        "INPUT A much better", "BUTTON Skip", "BUTTON Submit", "BUTTON Log out",
    ]  # fmt: skip
    visitor.button("Stack them").focus()
    found = []
    for _ in expected:
        visitor.press("Tab")
        found.append(
            visitor.page.evaluate(
                """() => {
                    const element = document.querySelector("ranking-desk").shadowRoot.activeElement;
                    const words = element.getAttribute("aria-label") || element.closest("label")?.innerText
                        || element.textContent.replace(/[↵S]$/, "") || element.id;
                    return `${element.tagName} ${words.trim()}`;
                }"""
            )
        )
    assert found == expected


def test_the_focus_goes_to_the_new_task_and_is_never_lost(visit, stub):
    everything(stub)
    visitor = visit()
    visitor.shows("t1")
    assert visitor.focused() == "H1: Which answer is better?"
    visitor.press("1")
    visitor.button("Submit").click()
    visitor.shows("k1")
    assert visitor.focused() == "H1: Which answer is better?"
    for letter in "ABCD":
        chip = visitor.button(f"Place response {letter} next")
        chip.focus()
        visitor.press("Enter")
        visitor.said(f"Response {letter} is")
    assert visitor.focused() == "P: All in place. Move them until it is right."
    take = visitor.button("Take Response C out")
    take.focus()
    visitor.press("Enter")
    visitor.said("Response C is taken out of the order")
    assert visitor.focused().startswith("BUTTON")
    visitor.press("c")
    box = visitor.page.get_by_role("textbox", name="Why?")
    box.fill("so")
    stub.failures = {"submit": [400]}
    box.press("Control+Enter")
    visitor.notice("The switch says 400.")
    visitor.expect(box).to_be_focused()


CONTRAST = """() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const pen = canvas.getContext("2d", {willReadFrequently: true});
    const channels = (...colors) => {
        pen.clearRect(0, 0, 1, 1);
        for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (channels) => {
        const linear = channels.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const ratio = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const grounds = (element) => {
        const found = [];
        for (let at = element; at; at = at.parentElement) found.unshift(getComputedStyle(at).backgroundColor);
        return ["white", ...found];
    };
    const root = document.querySelector("ranking-desk").shadowRoot;
    const within = root.querySelector("dialog") ?? root;
    const poor = [];
    const check = (element, color, least, what, ground = element) => {
        const behind = grounds(ground);
        const found = ratio(channels(...behind, color), channels(...behind));
        if (found < least) poor.push(`${what}: ${found.toFixed(2)}`);
    };
    let num = 0;
    const walker = document.createTreeWalker(within, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const words = walker.currentNode.textContent.trim();
        const isSeen = element.checkVisibility({visibilityProperty: true}) && !element.closest(".hidden");
        if (!words || !isSeen) continue;
        num += 1;
        check(element, getComputedStyle(element).color, 4.5, words);
    }
    for (const element of within.querySelectorAll("textarea, .step, .dot span, .chip, .place")) {
        if (!element.checkVisibility()) continue;
        const {borderTopColor} = getComputedStyle(element);
        check(element, borderTopColor, 3, `border of ${element.className}`, element.parentElement);
    }
    return [num, poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, stub, scheme):
    """WCAG 2.2, 1.4.3 (texts 4.5:1) and 1.4.11 (borders of controls 3:1), from computed styles."""
    everything(stub)
    visitor = visit(color_scheme=scheme, reduced_motion="reduce")
    for screen in screens(visitor):
        visitor.page.mouse.move(0, 0)
        num, poor = visitor.page.evaluate(CONTRAST)
        assert num >= 5
        assert poor == [], (screen, scheme)


SMALL = """() => {
    const root = document.querySelector("ranking-desk").shadowRoot;
    const within = root.querySelector("dialog") ?? root;
    const found = [];
    for (const element of within.querySelectorAll("button, summary, textarea, a.primary, label:has(input)")) {
        if (!element.checkVisibility({visibilityProperty: true})) continue;
        const {width, height} = element.getBoundingClientRect();
        if (width < 24 || height < 24) found.push(`${element.tagName} ${element.innerText}: ${width} x ${height}`);
    }
    return found;
}"""


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_targets_are_big_enough_and_nothing_scrolls_sideways(visit, stub, options):
    everything(stub)
    visitor = visit(**options)
    for screen in screens(visitor):
        assert visitor.page.evaluate(SMALL) == [], screen
        assert visitor.sideways() <= 0, screen


WIDE = (
    "<p>" + "w" * 400 + "</p><pre><code>" + "a long line of code " * 30 + "</code></pre>"
    "<table><tr><th>" + "h" * 90 + "</th><th>b</th></tr><tr><td>" + "x" * 200 + "</td><td>y</td></tr></table>"
    '<p><a href="https://example.org/' + "p" * 300 + '">https://example.org/' + "p" * 300 + "</a></p>"
    '<math display="block"><mrow>' + "<mi>x</mi><mo>+</mo>" * 80 + "<mi>y</mi></mrow></math>"
)


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("width", [360, 640, 768, 1280])
def test_wide_texts_scroll_within_themselves(visit, stub, width, num):
    stub.form |= {"title": "T" * 200, "flags": [{"id": "long", "label": "L" * 120}], "skip_reasons": ["R" * 200]}
    stub.form |= {"attributes": [{"id": "long", "label": "M" * 100}], "guidelines_html": WIDE}
    stub.tasks = [task("t1", *[WIDE] * num, prompt="<p>Question of t1</p>" + WIDE)]
    visitor = visit(viewport={"width": width, "height": 700})
    visitor.shows("t1")
    assert visitor.sideways() <= 0
    visitor.press(*"ab") if num > 2 else visitor.press("1")
    boxes = visitor.page.evaluate(
        """() => [...document.querySelector("ranking-desk").shadowRoot.querySelectorAll("button, article, .dock, pre")]
            .filter((element) => element.checkVisibility()).map((element) => element.getBoundingClientRect())
            .map(({left, right}) => [left, right])"""
    )
    assert all(left >= -1 and right <= width + 1 for left, right in boxes)
    for name in ("Skip", "Guidelines"):
        visitor.button(name).click()
        assert visitor.page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth - dialog.clientWidth") <= 0
        visitor.press("Escape")
    code = visitor.card("A").get_by_role("group", name="Code in Response A")
    assert code.evaluate("code => code.scrollWidth > code.clientWidth && code.tabIndex === 0")


def test_zoomed_to_200_percent_nothing_is_covered(visit, stub):
    """At 200 % a window of 1280 x 860 has 640 x 430 CSS pixels. Every control can be reached and seen."""
    everything(stub)
    for size in ({"width": 640, "height": 430}, {"width": 1280, "height": 600}, {"width": 360, "height": 640}):
        visitor = visit(viewport=size)
        visitor.shows("t1")
        covered, seen = [], set()
        for _ in range(60):
            visitor.press("Tab")
            found = visitor.page.evaluate(
                """() => {
                    const root = document.querySelector("ranking-desk").shadowRoot;
                    const element = root.activeElement;
                    if (!element) return ["", true, true];
                    const target = element.closest("label") ?? element;
                    const {left, top, width, height} = target.getBoundingClientRect();
                    const there = root.elementFromPoint(left + width / 2, top + height / 2);
                    const card = target.closest("article")?.innerText[0];
                    const words = `${element.tagName} ${element.ariaLabel ?? target.innerText} ${card}`;
                    const outline = getComputedStyle(target).outlineStyle;
                    return [words, target.contains(there), outline !== "none"];
                }"""
            )
            seen.add(found[0])
            if not (found[1] and found[2]):
                covered.append(found)
        assert covered == []
        assert len(seen) > 12


def test_what_is_being_written_stays_in_sight(visit, stub):
    visitor = visit(viewport={"width": 1280, "height": 600})
    visitor.shows("t1")
    box = visitor.page.get_by_role("textbox", name="Why?")
    box.focus()
    for _ in range(30):
        visitor.press("a", "Enter")
    end, dock = (visitor.page.locator(place).bounding_box() for place in ("#reason", ".dock"))
    assert end["height"] > 600
    assert end["y"] + end["height"] < dock["y"]


# ---- Light and dark, motion


def paper(visitor: Any) -> int:
    """How light the page's ground is, 0 to 255."""
    color = visitor.page.locator(".theme").evaluate("theme => getComputedStyle(theme).backgroundColor")
    return int(color.split("(")[1].split(",")[0])


def test_dark_by_the_machine_and_by_gradio(visit, stub):
    visitor = visit(color_scheme="light")
    visitor.shows("t1")
    assert paper(visitor) > 240
    visitor.page.evaluate("document.body.classList.add('dark')")
    visitor.expect(visitor.page.locator(".theme")).to_have_attribute("data-theme", "dark")
    assert paper(visitor) < 40
    visitor.page.evaluate("document.body.classList.remove('dark')")
    visitor.expect(visitor.page.locator(".theme")).to_have_attribute("data-theme", "light")
    visitor.page.emulate_media(color_scheme="dark")
    visitor.expect(visitor.page.locator(".theme")).to_have_attribute("data-theme", "dark")
    visitor.page.goto(f"{visitor.url}?__theme=light")
    visitor.shows("t1")
    assert paper(visitor) > 240


def test_reduced_motion(visit, stub):
    visitor = visit(reduced_motion="reduce")
    visitor.shows("t1")
    visitor.press("1", "Enter")
    visitor.expect(visitor.page.locator(".toast p")).to_be_visible()
    assert visitor.page.locator(".toast").evaluate("toast => getComputedStyle(toast).animationName") == "none"


# ---- Side by side or stacked


def is_beside(visitor: Any) -> bool:
    first, second = (visitor.card(letter).bounding_box() for letter in "AB")
    assert first["x"] == second["x"] or first["y"] == second["y"]
    return first["y"] == second["y"]


def test_short_ones_stand_side_by_side_and_a_choice_is_remembered(visit, stub):
    long = f"<p>{'A long one. ' * 400}</p>"
    stub.tasks = [task("t1"), task("t2", long, "<p>short</p>"), task("t3")]
    visitor = visit()
    visitor.shows("t1")
    assert is_beside(visitor)
    visitor.press("1", "Enter")
    visitor.shows("t2")
    assert not is_beside(visitor)
    visitor.button("Put side by side").click()
    assert is_beside(visitor)
    visitor.button("Stack them").click()
    assert not is_beside(visitor)
    visitor.page.reload()
    visitor.shows("t2")
    visitor.press("1", "Enter")
    visitor.shows("t3")
    assert not is_beside(visitor)
    visitor.button("Put side by side").click()
    visitor.page.set_viewport_size({"width": 360, "height": 740})
    assert not is_beside(visitor)
    visitor.expect(visitor.button("Stack them")).to_be_hidden()


def test_a_long_conversation_is_all_there_and_can_be_passed(visit, stub):
    turns = [{"role": "system", "html": "<p>Be kind.</p>"}]
    for number in range(30):
        turns.append({"role": "user", "html": f"<p>Question of t1, number {number}</p>"})
        turns.append({"role": "assistant", "html": "<p>Yes.</p>"})
    stub.tasks[0]["conversation"] = [*turns, {"role": "critic", "html": "<p>Hm.</p>"}]
    visitor = visit()
    visitor.shows("t1, number 29")
    headings = visitor.page.locator(".conversation h3").all_inner_texts()
    assert headings == ["Instructions to the assistant", *["Person", "Assistant"] * 30, "critic"]
    box = visitor.page.locator(".conversation").evaluate("box => box.scrollHeight - box.clientHeight")
    assert box <= 1
    visitor.button("To the responses").click()
    visitor.expect(visitor.card("A").get_by_role("heading")).to_be_focused()
    visitor.expect(visitor.card("A").get_by_role("heading")).to_be_in_viewport()


# ---- Texts of any kind


HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>${7*7}{{7*7}}<b>not bold</b>\u202eabc'


def test_plain_texts_are_shown_as_text(visit, stub):
    stub.name = HOSTILE
    choice = [{"id": "one", "label": HOSTILE}]
    stub.form |= {"title": HOSTILE, "flags": choice, "attributes": choice, "skip_reasons": [HOSTILE]}
    stub.tasks[0]["conversation"][0]["role"] = HOSTILE
    stub.tasks[0]["draft"] = {"ranks": [None, None], "reason": HOSTILE, "better_answer": HOSTILE}
    stub.answers["t9"] = {"ranks": [1, 2], "both_bad": False, "strength": 1}
    visitor = visit()
    visitor.shows("t1")
    root = visitor.page.locator("ranking-desk")
    for place in ("h1", ".conversation h3", ".flags .chip", ".rating legend", ".who b"):
        visitor.expect(root.locator(place).first).to_contain_text(HOSTILE)
    visitor.expect(visitor.page.get_by_role("textbox", name="Why?")).to_have_value(HOSTILE)
    visitor.press("s")
    visitor.expect(visitor.page.get_by_role("dialog").get_by_role("radio", name=HOSTILE)).to_be_visible()
    visitor.press("Escape")
    stub.paused = HOSTILE
    visitor.press("1", "Enter")
    visitor.notice(HOSTILE)
    visitor.page.reload()
    visitor.expect(visitor.page.get_by_text(HOSTILE).first).to_be_visible()
    stub.paused, stub.tasks = None, [task("p1", kind="practice")]
    visitor.button("Look again").click()
    visitor.shows("p1")
    visitor.expect(root.locator("img, script, b:not(.who b)")).to_have_count(0)
    assert visitor.page.evaluate("window.hacked") is None
    assert visitor.errors == []


def test_formatted_texts_are_readable(visit, stub):
    html = (
        '<h1>Big</h1><p>مرحبا بالعالم</p><p>Hello</p><pre><code>x = 1</code></pre><p><a href="https://example.org">a</a></p>'
        "<ol><li>واحد</li></ol><ul><li>one</li></ul>"
        "<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math><table><tr><td>1</td></tr></table>"
    )
    stub.tasks = [task("t1", html, "<p>b</p>")]
    visitor = visit()
    visitor.shows("t1")
    card = visitor.card("A")
    visitor.expect(card.get_by_role("heading", name="Big", level=4)).to_be_visible()
    link = card.get_by_role("link", name="a")
    visitor.expect(link).to_have_attribute("target", "_blank")
    visitor.expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    directions = card.locator(".prose p").evaluate_all("all => all.map((p) => getComputedStyle(p).direction)")
    assert directions == ["rtl", "ltr", "ltr"]
    item, end = card.locator("ol li").bounding_box(), card.locator(".prose").bounding_box()
    assert item["x"] + item["width"] < end["x"] + end["width"] - 10  # room for its number, at the right
    assert card.locator("ul li").bounding_box()["x"] > end["x"] + 10
    visitor.expect(card.get_by_role("group", name="Table in Response A")).to_be_visible()
    number, other = card.locator("math mn").evaluate_all("all => all.map((mn) => mn.getBoundingClientRect().top)")
    assert number < other  # one above the other: a fraction
