"""The ranking widget with more than two responses: letters, clicks, the buttons of the ladder, dragging."""

from typing import Any

import pytest

from tests.label_stub import Stub, task

pytest_plugins = ("tests.label_desk",)

FOUR = ("<p>apple</p>", "<p>banana</p>", "<p>cherry</p>", "<p>damson</p>")


def ranks(stub: Stub, lease: str) -> list[int]:
    return stub.answers[lease]["ranks"]


def order(visitor: Any) -> Any:
    return visitor.page.locator(".order")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("cabd", [2, 3, 1, 4]),
        ("CA=BD", [2, 2, 1, 3]),
        ("c=a=b=d", [1, 1, 1, 1]),
        ("dcba=", [3, 3, 2, 1]),  # with all in place, the last ties with the one before
        ("ac=" + "=" + "bd", [1, 3, 2, 4]),  # `=` twice is none
        ("aacbbd", [1, 3, 2, 4]),  # what has its place keeps it
    ],
)
def test_an_order_by_letters(visit, stub, keys, expected):
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit()
    visitor.shows("k1")
    visitor.press(*keys, "Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert ranks(stub, "k1") == expected
    assert stub.answers["k1"]["strength"] is None


def test_backspace_takes_the_last_step_back(visit, stub):
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit()
    visitor.shows("k1")
    visitor.press("b", "c", "=")
    visitor.expect(order(visitor)).to_have_text("B > C = …")
    visitor.press("Backspace")
    visitor.expect(order(visitor)).to_have_text("B > C")
    visitor.press("Backspace")
    visitor.said("Response C is taken back")
    visitor.expect(order(visitor)).to_have_text("B")
    visitor.press("0")
    visitor.expect(order(visitor)).to_have_text("All are bad")
    visitor.press("Backspace")
    visitor.expect(order(visitor)).to_have_text("B")
    visitor.press("Backspace", "Backspace")
    visitor.expect(order(visitor)).to_have_text("")
    visitor.press("0", "Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert (ranks(stub, "k1"), stub.answers["k1"]["both_bad"]) == ([1, 1, 1, 1], True)


def test_an_order_by_clicks_and_the_ladder_s_buttons(visit, stub):
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit()
    visitor.shows("k1")
    for letter, text in zip("ABCD", ("apple", "banana", "cherry", "damson"), strict=True):
        visitor.card(letter).get_by_text(text).click()
    visitor.expect(order(visitor)).to_have_text("A > B > C > D")
    steps = [
        ("Move Response D up", "A > B > D > C"),
        ("Move Response D up", "A > D > B > C"),
        ("Tie Response B with the one above", "A > D = B > C"),
        ("Move Response D down", "A > B > D > C"),  # out of the tie first
        ("Tie Response C with the one above", "A > B > D = C"),
        ("Tie Response C with the one above", "A > B > D > C"),
        ("Move Response A up", "A > B > D > C"),
        ("Take Response B out", "A > D > C"),
    ]
    for name, expected in steps:
        visitor.button(name).click()
        visitor.expect(order(visitor)).to_have_text(expected)
    visitor.button("Take out: Response D").click()
    visitor.expect(order(visitor)).to_have_text("A > C")
    visitor.expect(visitor.card("B").get_by_role("button", name="Place 3rd: Response B")).to_be_visible()
    visitor.press("d", "b")
    visitor.button("Submit").click()
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert ranks(stub, "k1") == [1, 4, 2, 3]


def test_the_ladder_s_buttons_keep_the_focus(visit, stub):
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit()
    visitor.shows("k1")
    visitor.press(*"abcd")
    up = visitor.button("Move Response D up")
    up.focus()
    visitor.press("Enter", "Enter", "Enter")
    visitor.expect(order(visitor)).to_have_text("D > A > B > C")
    visitor.expect(up).to_be_focused()
    visitor.press("Enter")
    visitor.said("Response D is at the top")
    visitor.expect(up).to_be_focused()
    assert stub.count("submit") == 0


def drag(visitor: Any, letter: str, other: str, part: float) -> None:
    """Drag a rung of the ladder onto another's height, `part` of it from its top."""
    rungs = visitor.page.locator(".rung")
    from_box = rungs.filter(has=visitor.page.locator(".letter", has_text=letter)).locator(".grip").bounding_box()
    to_box = rungs.filter(has=visitor.page.locator(".letter", has_text=other)).bounding_box()
    mouse = visitor.page.mouse
    mouse.move(from_box["x"] + 8, from_box["y"] + from_box["height"] / 2)
    mouse.down()
    mouse.move(to_box["x"] + 12, to_box["y"] + to_box["height"] * part, steps=5)
    mouse.up()


def test_dragging_moves_and_ties(visit, stub):
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit()
    visitor.shows("k1")
    visitor.press(*"abcd")
    drag(visitor, "D", "A", 0.1)
    visitor.expect(order(visitor)).to_have_text("D > A > B > C")
    drag(visitor, "C", "A", 0.5)
    visitor.expect(order(visitor)).to_have_text("D > A = C > B")
    drag(visitor, "D", "B", 0.95)
    visitor.expect(order(visitor)).to_have_text("A = C > B > D")
    drag(visitor, "D", "C", 0.1)  # between two that are tied: it joins them
    visitor.expect(order(visitor)).to_have_text("A = D = C > B")
    drag(visitor, "A", "A", 0.6)  # back where it was
    visitor.expect(order(visitor)).to_have_text("A = D = C > B")
    visitor.press("Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert ranks(stub, "k1") == [1, 2, 1, 1]


def test_dragging_with_a_finger(visit, stub):
    """Real touch events, by the browser's own protocol: playwright can only tap."""
    stub.tasks = [task("k1", *FOUR)]
    visitor = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    visitor.shows("k1")
    visitor.press(*"abcd")
    grips = visitor.page.locator(".grip")
    grips.nth(1).scroll_into_view_if_needed()
    visitor.page.locator(".rungs").evaluate("rungs => rungs.scrollIntoView({block: 'center'})")
    first, last = (grips.nth(at).bounding_box() for at in (0, 3))
    protocol = visitor.context.new_cdp_session(visitor.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    x = first["x"] + 10
    touch("touchStart", (x, last["y"] + 20))
    for y in (last["y"], first["y"] + 60, first["y"] - 8, first["y"] - 10):
        touch("touchMove", (x, y))
    touch("touchEnd")
    visitor.expect(order(visitor)).to_have_text("D > A > B > C")
