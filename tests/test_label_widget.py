"""The ranking widget: ranking by keyboard, mouse and touch, and what reaches the server."""

import pytest

from tests.label_stub import FORM, Stub, task

pytest_plugins = ("tests.label_desk",)

FOUR = ("<p>apple</p>", "<p>banana</p>", "<p>cherry</p>", "<p>damson</p>")


def ranks(stub: Stub, lease: str) -> list[int]:
    return stub.answers[lease]["ranks"]


# ---- Pairs


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("1", "A much better", ([1, 2], 3, False)),
        ("2", "A better", ([1, 2], 2, False)),
        ("3", "A slightly better", ([1, 2], 1, False)),
        ("4", "Tie", ([1, 1], 0, False)),
        ("5", "B slightly better", ([2, 1], 1, False)),
        ("6", "B better", ([2, 1], 2, False)),
        ("7", "B much better", ([2, 1], 3, False)),
        ("0", "Both bad", ([1, 1], 0, True)),
    ],
)
def test_each_step_of_a_pair_means_what_it_says(visit, stub, key, name, expected):
    """By its key, and by a click on it."""
    visitor = visit()
    visitor.shows("t1")
    visitor.press(key)
    visitor.expect(visitor.radio(name)).to_be_checked()
    visitor.press("Enter")
    visitor.shows("t2")
    visitor.radio(name).click()
    visitor.expect(visitor.radio(name)).to_be_checked()
    visitor.button("Submit").click()
    visitor.shows("t3")
    for lease in ("t1", "t2"):
        answer = stub.answers[lease]
        assert (answer["ranks"], answer["strength"], answer["both_bad"]) == expected
    assert stub.stored[0] | {"seconds": 0} == {
        "submission": stub.stored[0]["submission"],
        "lease": "t1",
        "answer": {
            "ranks": expected[0],
            "strength": expected[1],
            "both_bad": expected[2],
            "flags": [[], []],
            "ratings": [{}, {}],
            "reason": "",
            "better_answer": "",
        },
        "seconds": 0,
        "edit": False,
    }
    assert len({item["submission"] for item in stub.stored}) == 2
    assert visitor.errors == []


def test_without_strength_a_pair_has_three_steps(visit, stub):
    stub.form |= {"strength": False, "both_bad": False}
    visitor = visit()
    visitor.shows("t1")
    assert visitor.page.get_by_role("radio").count() == 3
    for key, lease in (("1", "t1"), ("2", "t2"), ("3", "t3")):
        visitor.shows(lease)
        visitor.press("0", "5", key, "Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert [stub.answers[lease]["ranks"] for lease in ("t1", "t2", "t3")] == [[1, 2], [1, 1], [2, 1]]
    assert {answer["strength"] for answer in stub.answers.values()} == {None}


def test_a_pair_by_the_tab_key_and_arrows_alone(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    for _ in range(30):
        visitor.press("Tab")
        if visitor.radio("A much better").evaluate("radio => radio.getRootNode().activeElement === radio"):
            break
    visitor.press("ArrowRight", "ArrowRight", "Enter")
    visitor.shows("t2")
    assert (ranks(stub, "t1"), stub.answers["t1"]["strength"]) == ([1, 2], 1)


def test_touch(visit, stub):
    stub.tasks = [task("t1"), task("k1", *FOUR)]
    visitor = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    visitor.shows("t1")
    visitor.radio("B much better").tap()
    visitor.button("Submit").tap()
    visitor.shows("k1")
    visitor.card("C").get_by_text("cherry").tap()  # the text of a response
    visitor.button("Place response A next").tap()  # beside the submit button
    visitor.button("Tie").tap()
    visitor.button("Place 2nd: Response B").tap()  # on the response
    visitor.button("Place response D next").tap()
    visitor.button("Submit").tap()
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert ranks(stub, "t1") == [2, 1]
    assert ranks(stub, "k1") == [2, 2, 1, 3]


def test_enter_submits_nothing_that_is_not_complete(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("Enter")
    visitor.expect(visitor.page.locator(".hint")).to_have_text("Choose which one is better")
    visitor.said("Choose which one is better")
    visitor.button("Submit").click(force=True)  # it says of itself that it is disabled
    assert stub.count("submit") == 0
    visitor.press("1")
    visitor.button("Submit").dblclick()
    visitor.shows("t2")
    visitor.press("2", "Enter", "Enter")
    visitor.shows("t3")
    assert [item["lease"] for item in stub.stored] == ["t1", "t2"]
    assert stub.count("submit") == 2


def test_nothing_changes_while_an_answer_is_on_its_way(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.hold.clear()
    visitor.press("1", "Enter")
    visitor.expect(visitor.button("Saving…")).to_be_visible()
    visitor.press("7", "s", "u", "Enter", "Control+Enter")
    visitor.expect(visitor.page.get_by_role("dialog")).to_have_count(0)
    visitor.expect(visitor.radio("A much better")).to_be_checked()
    stub.hold.set()
    visitor.shows("t2")
    assert [(route, body["lease"]) for route, body in stub.requests if route in ("submit", "open")] == [
        ("submit", "t1")
    ]
    assert ranks(stub, "t1") == [1, 2]


def test_keys_belong_to_a_text_while_one_writes(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("1")
    box = visitor.page.get_by_role("textbox", name="Why?")
    box.fill("")
    box.press_sequentially("5 u s 0?\n=")
    assert box.input_value() == "5 u s 0?\n="
    visitor.expect(visitor.radio("A much better")).to_be_checked()
    assert stub.count("submit") == 0
    box.press("Control+Enter")
    visitor.shows("t2")
    assert stub.answers["t1"]["reason"] == "5 u s 0?\n="


def test_single_keys_can_be_turned_off(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("?")
    visitor.page.get_by_role("checkbox", name="Use single keys").uncheck()
    visitor.press("Escape", "1", "?")
    visitor.expect(visitor.page.get_by_role("dialog")).to_have_count(0)
    visitor.expect(visitor.radio("A much better")).not_to_be_checked()
    visitor.page.reload()
    visitor.shows("t1")
    visitor.press("1")
    visitor.expect(visitor.radio("A much better")).not_to_be_checked()


# ---- Everything else that is asked


def test_flags_ratings_and_texts_arrive_in_the_order_on_screen(visit, stub):
    stub.form |= {"attributes": [{"id": "helpful", "label": "Helpful"}, {"id": "clear", "label": "Clear"}]}
    stub.tasks = [task("k1", *FOUR[:3]), task("t2")]
    visitor = visit()
    visitor.shows("k1")
    visitor.card("B").get_by_role("button", name="Harmful or unsafe").click()
    visitor.card("B").get_by_role("button", name="Says something false").click()
    visitor.card("C").get_by_role("button", name="Harmful or unsafe").click()
    visitor.card("C").get_by_role("button", name="Harmful or unsafe").click()  # and off again
    helpful = visitor.card("A").get_by_role("group", name="Helpful")
    helpful.get_by_role("radio", name="4").check()
    clear = visitor.card("C").get_by_role("group", name="Clear")
    clear.get_by_role("radio", name="0").check()
    helpful_c = visitor.card("C").get_by_role("group", name="Helpful")
    helpful_c.get_by_role("radio", name="2").check()
    helpful_c.get_by_role("button", name="Clear the rating").click()
    visitor.expect(helpful_c.get_by_role("radio", name="2")).not_to_be_checked()
    visitor.page.get_by_role("textbox", name="Why?").fill("B is wrong.\n<b>$${x}")
    visitor.page.get_by_text("Write a better response").click()
    visitor.page.get_by_role("textbox", name="A better response").fill("  An apple\n\nא \u200b ")
    visitor.page.locator("h1").click()
    visitor.press(*"acb", "Enter")
    visitor.shows("t2")
    assert stub.answers["k1"] == {
        "ranks": [1, 3, 2],
        "strength": None,
        "both_bad": False,
        "flags": [[], ["wrong_facts", "harmful"], []],
        "ratings": [{"helpful": 4}, {}, {"clear": 0}],
        "reason": "B is wrong.\n<b>$${x}",
        "better_answer": "  An apple\n\nא \u200b ",
    }
    # Nothing of it is left on the next one.
    visitor.press("1", "Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert stub.answers["t2"]["flags"] == [[], []]
    assert stub.answers["t2"]["reason"] == ""


def test_a_required_reason_is_asked_for(visit, stub):
    stub.form |= {"reason": "required", "better_answer": False, "flags": []}
    visitor = visit()
    visitor.shows("t1")
    visitor.press("1", "Enter")
    box = visitor.page.get_by_role("textbox", name="Why?")
    visitor.expect(box).to_be_focused()
    visitor.expect(box).to_have_accessible_description("Please say why, in a few words.")
    visitor.expect(box).to_have_attribute("aria-invalid", "true")
    visitor.expect(visitor.page.get_by_text("Please say why, in a few words.")).to_be_in_viewport(ratio=1)
    box.fill("x" * 50_001)
    visitor.expect(box).not_to_have_attribute("aria-invalid", "true")
    box.press("Control+Enter")
    visitor.said("The reason is too long: at most 50,000 characters can be kept.")
    assert stub.count("submit") == 0
    box.fill("Since it is.")
    box.press("Control+Enter")
    visitor.shows("t2")
    assert stub.answers["t1"]["reason"] == "Since it is."
    visitor.expect(visitor.page.get_by_text("Write a better response")).to_have_count(0)
    visitor.expect(visitor.page.get_by_text("Problems")).to_have_count(0)


def test_skip_asks_why(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("s")
    dialog = visitor.page.get_by_role("dialog", name="Skip this task")
    dialog.get_by_role("button", name="Skip this task").click()
    visitor.expect(dialog.get_by_role("alert")).to_have_text("Please choose a reason.")
    dialog.get_by_role("radio", name="It upsets me").check()
    dialog.get_by_role("textbox", name="A note").fill("Blood.")
    dialog.get_by_role("button", name="Skip this task").click()
    visitor.shows("t2")
    visitor.said("Skipped")
    visitor.button("Skip").click()
    visitor.button("Cancel").click()
    visitor.expect(dialog).to_have_count(0)
    visitor.expect(visitor.button("Skip")).to_be_focused()
    [skipped] = stub.skipped
    assert (skipped["lease"], skipped["reason"], skipped["note"]) == ("t1", "It upsets me", "Blood.")
    assert len(skipped["submission"]) == 36


def test_undo_reopens_the_last_answer(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.card("B").get_by_role("button", name="Harmful or unsafe").click()
    visitor.press("1")
    visitor.page.locator("h1").click()
    visitor.press("Enter")
    visitor.shows("t2")
    visitor.said("Saved")
    visitor.press("5")  # something begun on the next one is kept
    visitor.page.locator(".toast").get_by_role("button", name="Undo").click()
    visitor.shows("t1")
    visitor.expect(visitor.page.locator("h1")).to_contain_text("Changing an earlier answer")
    visitor.expect(visitor.radio("A much better")).to_be_checked()
    visitor.expect(visitor.card("B").get_by_role("button", name="Harmful or unsafe")).to_have_attribute(
        "aria-pressed", "true"
    )
    visitor.press("7")
    visitor.button("Save the change").click()
    visitor.shows("t2")
    visitor.expect(visitor.radio("B slightly better")).to_be_checked()
    assert [(item["lease"], item["edit"]) for item in stub.stored] == [("t1", False), ("t1", True)]
    assert stub.answers["t1"]["ranks"] == [2, 1]
    assert stub.answers["t1"]["flags"] == [[], ["harmful"]]
    visitor.page.reload()  # undo outlives the page
    visitor.shows("t2")
    visitor.press("u")
    visitor.shows("t1")


def test_an_earlier_answer_can_be_left_as_it_was(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("1", "Enter")
    visitor.shows("t2")
    visitor.press("Control+z")
    visitor.shows("t1")
    visitor.press("7")
    visitor.button("Leave as it was").click()
    visitor.shows("t2")
    visitor.button("My answers").click()
    visitor.button("Question of t1", exact=False).click()
    visitor.shows("t1")
    visitor.expect(visitor.radio("A much better")).to_be_checked()
    assert len(stub.stored) == 1


def test_my_answers_opens_an_earlier_one(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("1", "Enter")
    visitor.shows("t2")
    visitor.press("0", "Enter")
    visitor.shows("t3")
    visitor.button("My answers").click()
    dialog = visitor.page.get_by_role("dialog", name="My answers")
    rows = dialog.get_by_role("listitem")
    visitor.expect(rows).to_have_count(2)
    visitor.expect(rows.nth(0)).to_contain_text("Both are bad")
    visitor.expect(rows.nth(1)).to_contain_text("A is better")
    visitor.expect(rows.nth(1)).to_contain_text("Question of t1 <b>&amp;")  # text, not markup
    rows.nth(1).get_by_role("button").click()
    visitor.shows("t1")
    visitor.press("6", "Enter")
    visitor.shows("t3")
    assert stub.answers["t1"]["strength"] == 2
    visitor.button("My answers").click()
    visitor.expect(rows.nth(1)).to_contain_text("changed")


def test_progress_is_shown(visit, stub):
    visitor = visit()
    numbers = visitor.page.locator(".numbers")
    visitor.expect(numbers).to_have_text("0 today0 in all3 left")
    for at, lease in enumerate(("t1", "t2", "t3"), 1):
        visitor.shows(lease)
        visitor.press("1", "Enter")
        visitor.expect(numbers).to_contain_text(f"{at} today{at} in all{3 - at} left")
    visitor.expect(visitor.page.get_by_text("You have answered 3 tasks, 3 of them today.")).to_be_visible()
    visitor.page.reload()
    visitor.expect(numbers).to_have_text("3 today3 in all0 leftabout 42 s each")
    visitor.expect(visitor.button("Look again")).to_be_visible()
    stub.tasks.append(task("t4"))
    visitor.button("Look again").click()
    visitor.shows("t4")


# ---- Before the first task


def test_guidelines_come_first_and_again_when_they_change(visit, stub):
    stub.guidelines_read = False
    visitor = visit()
    heading = visitor.page.get_by_role("heading", level=1)
    visitor.expect(heading).to_have_text("Before you start")
    visitor.expect(visitor.page.get_by_text("Put the best first.")).to_be_visible()
    visitor.press("1", "Enter")
    visitor.button("I have read them").click()
    visitor.shows("t1")
    assert ("guidelines", {"sha256": FORM["guidelines_sha256"]}) in stub.requests
    visitor.press("1", "Enter")
    visitor.shows("t2")
    stub.guidelines_read = False
    stub.form |= {"guidelines_html": "<p>Now the worst first.</p>", "guidelines_sha256": "b" * 64}
    visitor.page.reload()
    visitor.expect(heading).to_have_text("The guidelines have changed")
    stub.form |= {"guidelines_html": "<p>No, the best.</p>", "guidelines_sha256": "c" * 64}
    visitor.button("I have read them").click()  # of those that were just replaced
    visitor.expect(visitor.page.get_by_text("No, the best.")).to_be_visible()
    visitor.button("I have read them").click()
    visitor.shows("t2")
    visitor.button("Guidelines").click()
    visitor.expect(visitor.page.get_by_role("dialog", name="Guidelines")).to_contain_text("No, the best.")
    visitor.press("Escape")
    visitor.expect(visitor.button("Guidelines")).to_be_focused()


def test_practice_says_what_was_right(visit, stub):
    stub.tasks = [task("p1", kind="practice"), task("p2", *FOUR[:3], kind="practice"), task("t1")]
    stub.known = {
        "p1": {"is_right": True, "ranks": [2, 1], "explanation_html": "<p>B is <em>true</em>.</p>"},
        "p2": {"is_right": False, "ranks": [2, 2, 1], "explanation_html": "<p>Cherries.</p>"},
    }
    visitor = visit()
    visitor.shows("p1")
    visitor.expect(visitor.page.locator("h1")).to_contain_text("Practice: it does not count")
    visitor.expect(visitor.page.locator(".numbers")).to_have_text("Practice: 2 left")
    visitor.expect(visitor.button("Skip")).to_have_count(0)
    visitor.press("6", "Enter")
    section = visitor.page.get_by_role("region", name="How you did")
    visitor.expect(section).to_contain_text("That is right")
    visitor.expect(section.locator("em")).to_have_text("true")
    visitor.expect(section.get_by_role("heading")).to_be_focused()
    visitor.expect(visitor.button("Next")).to_be_enabled()
    visitor.press("1", "Enter")
    visitor.shows("p2")
    visitor.press(*"abc", "Enter")
    visitor.expect(section).to_contain_text("Not quite")
    visitor.expect(section).to_contain_text("The right order: C, then A and B tied.")
    visitor.expect(section).to_contain_text("You said: A, then B, then C.")
    visitor.expect(visitor.card("C").locator(".badge")).to_have_text("1st")
    visitor.button("Next").click()
    visitor.shows("t1")
    visitor.expect(visitor.button("Undo")).to_have_count(0)
    assert stub.answers["p1"]["ranks"] == [2, 1]
