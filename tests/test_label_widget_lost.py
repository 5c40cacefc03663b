"""The ranking widget where things fail: no connection, a server that is down, an ended session, two tabs."""

import pytest

from tests.label_stub import task

pytest_plugins = ("tests.label_desk",)

LOST = "No connection: your work is kept here and will be sent."


def test_offline_while_submitting_stores_it_once(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.context.set_offline(True)
    visitor.notice(LOST)
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    assert visitor.kept("outbox") == 1
    visitor.press("Enter")  # impatience changes nothing
    visitor.context.set_offline(False)
    visitor.shows("t2")
    visitor.no_notice()
    assert [(item["lease"], item["answer"]["strength"]) for item in stub.stored] == [("t1", 2)]
    assert visitor.kept("outbox") == 0
    assert visitor.kept("draft") == 0
    assert visitor.errors == []


def test_an_answer_kept_offline_survives_a_closed_tab(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.failures = {"submit": [503] * 99}
    visitor.press("2", "Enter")
    visitor.notice(LOST)
    visitor.page.close()
    visitor.page = visitor.open()  # the server is there, but takes nothing yet
    visitor.shows("t1")
    visitor.expect(visitor.radio("A better")).to_be_checked()
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    assert stub.stored == []
    visitor.page.close()
    stub.failures = {}
    visitor.page = visitor.open()
    visitor.shows("t2")
    visitor.said("An answer that was kept here is saved.")
    assert [item["lease"] for item in stub.stored] == ["t1"]
    ids = {body["submission"] for route, body in stub.requests if route == "submit"}
    assert len(ids) == 1


def test_an_answer_changed_while_it_waits_is_what_counts(visit, stub):
    stub.failures = {"submit": [503] * 99}
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    visitor.press("7")
    visitor.expect(visitor.button("Submit")).to_be_visible()
    visitor.press("2")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    visitor.press("7")
    stub.failures = {}
    visitor.press("Enter")
    visitor.shows("t2")
    assert stub.answers["t1"]["ranks"] == [2, 1]
    assert visitor.kept("outbox") == 0


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_three_times(visit, stub, status):
    stub.failures = {"submit": [status] * 3}
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.notice(LOST)
    visitor.shows("t2")
    visitor.no_notice()
    assert len(stub.stored) == 1
    assert stub.count("submit") == 4


def test_lost_acknowledgements_store_nothing_twice(visit, stub):
    stub.lost_replies = {"submit": 2, "skip": 1}
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.shows("t2")
    assert (len(stub.stored), stub.count("submit")) == (1, 3)
    visitor.press("s")
    visitor.page.get_by_role("radio", name="It upsets me").check()
    visitor.button("Skip this task").click()
    visitor.shows("t3")
    assert (len(stub.skipped), stub.count("skip")) == (1, 2)


def test_a_page_opened_without_a_server_waits_for_it(visit, stub):
    stub.failures = {"me": [503], "form": [503], "progress": [502], "next": [503]}
    visitor = visit()
    visitor.notice(LOST)
    visitor.shows("t1")
    visitor.no_notice()


def test_retry_after_is_honoured(visit, stub):
    stub.headers = {"Retry-After": "3600"}
    stub.failures = {"submit": [429]}
    visitor = visit()
    visitor.shows("t1")
    visitor.stop_clock()
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    visitor.page.clock.run_for(3_590_000)
    assert stub.count("submit") == 1
    visitor.page.clock.run_for(20_000)
    visitor.shows("t2")


# ---- Drafts


def fill(visitor) -> None:
    visitor.press("b", "d", "=", "a")
    visitor.card("D").get_by_role("button", name="Harmful or unsafe").click()
    visitor.page.get_by_role("textbox", name="Why?").fill("half a sen")


def is_filled(visitor) -> None:
    visitor.expect(visitor.page.locator(".order")).to_have_text("B > A = D")
    flag = visitor.card("D").get_by_role("button", name="Harmful or unsafe")
    visitor.expect(flag).to_have_attribute("aria-pressed", "true")
    visitor.expect(visitor.page.get_by_role("textbox", name="Why?")).to_have_value("half a sen")


def test_a_draft_survives_reload_and_another_browser(visit, stub):
    stub.tasks = [task("k1", "<p>a</p>", "<p>b</p>", "<p>c</p>", "<p>d</p>")]
    visitor = visit()
    visitor.shows("k1")
    fill(visitor)
    assert stub.has_drafted("half a sen")
    other = visit()  # nothing kept there: the server's
    other.shows("k1")
    is_filled(other)
    stub.failures = {"draft": [503] * 99}
    stub.drafts.clear()
    visitor.page.reload()  # nothing on the server: the browser's
    visitor.shows("k1")
    is_filled(visitor)


def test_the_newer_draft_wins(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    with visitor.page.expect_response("**/draft"):
        visitor.press("2")
    saved = stub.drafts["t1"]
    stub.drafts["t1"] = saved | {"ranks": [2, 1], "saved_at": saved["saved_at"] + 10}
    visitor.page.reload()
    visitor.expect(visitor.radio("B better")).to_be_checked()
    stub.drafts["t1"] = saved | {"ranks": [2, 1], "saved_at": saved["saved_at"] - 10}
    visitor.page.reload()
    visitor.expect(visitor.radio("A better")).to_be_checked()


def test_a_closing_page_sends_its_draft(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.stop_clock()  # hands never rest long enough for it to be sent
    visitor.press("2")
    assert stub.count("draft") == 0
    visitor.page.goto("about:blank")
    assert stub.has_come("draft")
    visitor.page.goto(visitor.url)
    visitor.shows("t1")
    assert stub.drafts["t1"]["ranks"] == [1, 2]


def no_draft_follows(visitor, stub) -> None:
    """With t2 on screen: a draft of t1 would have come before one of t2."""
    visitor.shows("t2")
    visitor.page.clock.run_for(1000)
    visitor.page.get_by_role("textbox", name="Why?").fill("of the next")
    visitor.page.clock.run_for(1000)
    assert stub.has_drafted("of the next")
    assert list(stub.drafts) == ["t2"]


def test_no_draft_follows_an_answer(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.stop_clock()
    visitor.press("2", "Enter")
    no_draft_follows(visitor, stub)


def test_an_answer_changed_while_the_first_is_on_its_way_again(visit, stub):
    stub.failures = {"submit": [503]}
    visitor = visit()
    visitor.shows("t1")
    visitor.stop_clock()
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    stub.hold.clear()
    visitor.page.clock.run_for(1000)
    assert stub.has_held(1)
    visitor.press("7", "Enter")
    stub.hold.set()
    no_draft_follows(visitor, stub)
    assert [(item["answer"]["ranks"], item["edit"]) for item in stub.stored] == [([1, 2], False), ([2, 1], True)]


def test_a_draft_that_fits_no_more_breaks_nothing(visit, stub):
    stub.tasks[0]["draft"] = {"ranks": [1, 2, 3], "flags": [["gone"], None], "ratings": "?", "strength": 9, "reason": 5}
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.shows("t2")
    assert stub.answers["t1"]["flags"] == [[], []]
    assert visitor.errors == []


# ---- What the server refuses


def test_an_ended_session_keeps_the_answer(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.is_out = True
    visitor.press("2", "Enter")
    visitor.notice("Your session has ended. Your work is kept here and will be sent when you have logged in.")
    path = visitor.url.split("/")[-1]
    link = visitor.page.get_by_role("link", name="Log in again")
    visitor.expect(link).to_have_attribute("href", f"/{path}/login?next=%2F{path}")
    link.click()
    visitor.expect(visitor.page.get_by_role("heading", name="Log in")).to_be_visible()
    assert visitor.kept("outbox") == 1
    stub.is_out, stub.csrf = False, "another token"
    visitor.page.goto(visitor.url)
    visitor.shows("t2")
    assert [item["lease"] for item in stub.stored] == ["t1"]


def test_logging_in_in_another_tab_is_enough(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.is_out = True
    visitor.press("2", "Enter")
    visitor.notice("Your session has ended.")
    stub.is_out, stub.csrf = False, "another token"
    visitor.page.evaluate("window.dispatchEvent(new Event('focus'))")
    visitor.shows("t2")
    visitor.no_notice()


def test_a_stale_token_is_renewed(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.csrf = "another token"
    visitor.press("2", "Enter")
    visitor.shows("t2")
    assert len(stub.stored) == 1


def test_nobody_s_answers_go_out_under_another_name(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.failures = {"submit": [503] * 99}
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    stub.name, stub.csrf, stub.failures = "Grace", "hers", {}
    visitor.page.evaluate("window.dispatchEvent(new Event('focus'))")
    visitor.expect(visitor.page.get_by_text("Logged in as Grace")).to_be_visible()
    visitor.shows("t1")
    visitor.expect(visitor.radio("A better")).not_to_be_checked()
    assert stub.stored == []
    assert visitor.kept("outbox") == 1  # Ada's, until she is back


def test_paused_says_so_with_the_reason(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.paused = "Please call Grace."
    visitor.press("2", "Enter")
    visitor.notice("Your work is paused: Please call Grace.")
    assert visitor.kept("outbox") == 1
    visitor.page.reload()
    visitor.expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Your work is paused")
    visitor.expect(visitor.page.get_by_text("Please call Grace.")).to_be_visible()
    stub.paused = None
    visitor.button("Look again").click()
    visitor.shows("t2")
    assert len(stub.stored) == 1


def test_answered_in_another_tab_is_explained(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.answers["t1"] = {"ranks": [1, 1], "both_bad": False}
    visitor.press("2", "Enter")
    visitor.shows("t2")
    visitor.said("You have answered this task already.")
    assert stub.stored == []
    assert visitor.kept("outbox") == 0


def test_two_tabs_do_not_fight(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    first = visitor.page
    visitor.page = visitor.open()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.shows("t2")
    visitor.page = first
    visitor.shows("t2")
    visitor.said("You have answered this task in another tab.")
    assert len(stub.stored) == 1


def test_what_the_server_cannot_take_stays_on_screen(visit, stub):
    stub.failures = {"submit": [400], "skip": [413]}
    visitor = visit()
    visitor.shows("t1")
    visitor.page.get_by_role("textbox", name="Why?").fill("long")
    visitor.page.locator("h1").click()
    visitor.press("2", "Enter")
    visitor.notice("The switch says 400.")
    visitor.expect(visitor.button("Submit")).to_be_enabled()
    visitor.expect(visitor.page.get_by_role("textbox", name="Why?")).to_have_value("long")
    assert (visitor.kept("outbox"), visitor.kept("draft")) == (0, 1)
    visitor.press("s")
    visitor.page.get_by_role("radio", name="It upsets me").check()
    visitor.button("Skip this task").click()
    visitor.notice("The switch says 413.")
    visitor.press("Enter")
    visitor.shows("t2")
    visitor.no_notice()


def test_an_answer_that_is_gone_says_so(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.shows("t2")
    stub.failures = {"open": [404], "history": [404]}
    visitor.press("u")
    visitor.notice("The switch says 404.")
    visitor.shows("t2")
    visitor.button("My answers").click()
    dialog = visitor.page.get_by_role("dialog")
    visitor.expect(dialog.get_by_role("alert")).to_have_text("They cannot be shown now. The switch says 404.")


def test_a_refusal_while_entering_shows_why(visit, stub):
    stub.failures = {"next": [404]}
    visitor = visit()
    visitor.expect(visitor.page.get_by_role("heading", level=1)).to_have_text("This did not work")
    visitor.expect(visitor.page.get_by_text("The switch says 404.")).to_be_visible()
    visitor.button("Reload the page").click()
    visitor.shows("t1")


def test_logging_out_with_answers_unsent_says_where_they_are(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    stub.failures = {"submit": [503] * 99}
    visitor.press("2", "Enter")
    visitor.expect(visitor.button("Waiting to be sent")).to_be_visible()
    visitor.button("Log out").click()
    dialog = visitor.page.get_by_role("dialog", name="Log out")
    visitor.expect(dialog).to_contain_text("One answer has not been sent yet.")
    dialog.get_by_role("button", name="Log out").click()
    visitor.expect(visitor.page.get_by_role("heading", name="Log in")).to_be_visible()
    assert stub.is_out
    assert visitor.kept("outbox") == 1


def test_without_storage_the_desk_still_works(visit, stub):
    visitor = visit()
    visitor.context.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); };")
    visitor.page.reload()
    visitor.shows("t1")
    stub.failures = {"submit": [503]}
    visitor.press("2", "Enter")
    visitor.notice(f"{LOST} Leave this page open: your browser keeps nothing for us.")
    visitor.shows("t2")
    assert len(stub.stored) == 1


def test_time_counts_while_somebody_is_there(visit, stub):
    visitor = visit()
    visitor.shows("t1")
    visitor.press("2", "Enter")
    visitor.shows("t2")
    visitor.stop_clock()
    visitor.press("2", "Enter")  # the clock starts with the next task, at a standing time
    visitor.shows("t3")
    visitor.page.clock.run_for(20_000)
    visitor.press("2")
    visitor.page.clock.run_for(300_000)  # away: the first minute counts
    visitor.press("3")
    visitor.page.clock.run_for(10_000)
    visitor.page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", {value: true, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    visitor.page.clock.run_for(40_000)  # hidden: does not count
    visitor.page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", {value: false, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    visitor.page.clock.run_for(5_000)
    visitor.press("Enter")
    visitor.expect(visitor.page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    assert stub.stored[2]["seconds"] == 20 + 60 + 10 + 5
