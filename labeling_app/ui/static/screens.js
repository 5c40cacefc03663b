// The screens that hold no task, and what is said above one.

import { verdictInWords } from "./answer.js";
import { icon, make, prose } from "./dom.js";

const button = (kind, words, act) => make("button", { type: "button", class: kind, onclick: act }, words);

/** The guidelines, and a button to say that one has read them; `again`: they have changed. */
export function showGuidelines(frame, form, again, onRead) {
  const read = button("primary", "I have read them", () => {
    read.disabled = true;
    onRead();
  });
  const words = again
    ? "Please read them again: they have changed since you last worked here."
    : "Please read this first. You can open it again at any time.";
  frame.show(
    make(
      "div",
      { class: "plain guidelines" },
      make("h1", { tabindex: "-1" }, again ? "The guidelines have changed" : "Before you start"),
      make("p", { class: "faint" }, words),
      prose(form.guidelines_html, "the guidelines"),
      make("div", { class: "buttons" }, read),
    ),
  );
}

/** @param on `{next(), undo() or null}` */
export function showDone(frame, { done, today }, on) {
  const buttons = [button("primary", "Look again", on.next)];
  if (on.undo) buttons.push(button("quiet", "Undo", on.undo));
  const thanks = `You have answered ${done} ${done === 1 ? "task" : "tasks"}, ${today} of them today. Thank you!`;
  const words = [done ? thanks : "Come back later.", "New tasks appear here by themselves."];
  frame.showPlain("check", "Nothing left for now", words, ...buttons);
}

export function showPaused(frame, reason, onAgain) {
  const words = [reason, "The lead of the project has paused your work. What you have done is kept."].filter(Boolean);
  frame.showPlain("pause", "Your work is paused", words, button("primary", "Look again", onAgain));
}

export function showTrouble(frame, message) {
  const again = button("primary", "Reload the page", () => location.reload());
  frame.showPlain("warning", "This did not work", [message], again);
}

/** What the person is told about the connection; null: all is well. */
export function showConnection(frame, failure, loginAddress, isLasting) {
  if (failure === null) frame.clearNotice();
  else if (failure.kind === "signed out") {
    const link = make("a", { class: "primary", href: loginAddress }, "Log in again");
    const words = "Your session has ended. Your work is kept here and will be sent when you have logged in.";
    frame.showNotice(words, link);
  } else if (failure.kind === "paused") {
    frame.showNotice(`Your work is paused: ${failure.message} What you have done is kept.`);
  } else if (failure.kind === "unreachable") {
    const words = "No connection: your work is kept here and will be sent.";
    frame.showNotice(isLasting ? words : `${words} Leave this page open: your browser keeps nothing for us.`);
  }
}

/** After a practice task: whether it was right, the right order, and why. `said`: their own answer in words. */
export function feedback(known, said) {
  const title = known.is_right ? "That is right" : "Not quite";
  const right = verdictInWords(known.ranks);
  return make(
    "section",
    { class: `feedback ${known.is_right ? "right" : "wrong"}`, "aria-label": "How you did" },
    make("h2", { tabindex: "-1" }, icon(known.is_right ? "check" : "warning"), title),
    make("p", {}, known.ranks.length > 2 ? "The right order: " : "", make("b", {}, right), "."),
    known.is_right ? "" : make("p", {}, `You said: ${said}.`),
    prose(known.explanation_html, "the explanation"),
  );
}
