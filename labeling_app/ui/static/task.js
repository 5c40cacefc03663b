// The task on screen: conversation, responses, words of one's own, and the dock with the verdict.

import { Judgement, MAX_TEXT, numCharacters } from "./answer.js";
import { icon, keycap, make, prose, textBox } from "./dom.js";
import { Ladder } from "./ladder.js";
import { PairScale } from "./pair.js";
import { ResponseCard } from "./response.js";
import { feedback } from "./screens.js";
import { preferences } from "./storage.js";

const ROLES = { user: "Person", assistant: "Assistant", system: "Instructions to the assistant", tool: "Tool" };
const SHORT = 1500; // characters: up to here responses are compared side by side, unless somebody likes it otherwise
const PAUSE = 400; // ms in which the second half of a double click does not turn the feedback's page

export class TaskScreen {
  /**
   * @param turn as the server gives it
   * @param form GET /api/form
   * @param saved what it starts from: a draft, an earlier answer, or null
   * @param on `{changed(), say(words), submit(), skip(), undo(), cancel(), next()}`
   */
  constructor(turn, form, saved, on) {
    Object.assign(this, { turn, form, on });
    this.num = turn.responses.length;
    this.judgement = new Judgement(this.num, form, saved);
    this.isPractice = turn.kind === "practice";
    this.isReview = false; // the feedback on a practice task is on screen
    const changed = (words) => this.#changed(words);
    const pressed = this.num > 2 ? (position) => this.#press(position) : null;
    this.cards = turn.responses.map(
      (response, position) => new ResponseCard(response, position, this.judgement, form, { changed, pressed }),
    );
    this.control =
      this.num === 2
        ? new PairScale(this.judgement, changed)
        : new Ladder(
            this.judgement,
            this.cards.map((card) => card.excerpt),
            changed,
          );
    this.heading = make("h1", { tabindex: "-1" }, this.#eyebrow(), form.title);
    this.feedback = make("div");
    this.work = make("div", { class: "work" }, this.#responses(), this.#words());
    this.dock = this.#dock();
    this.element = make(
      "div",
      { class: `task ${this.num > 2 ? "many" : "pair"}` },
      make("div", { class: "title" }, this.heading, this.#conversationLink()),
      this.feedback,
      this.#conversation(),
      this.work,
      this.dock,
    );
    this.showState();
  }

  focus() {
    this.heading.focus({ preventScroll: true });
  }

  // ---- Parts

  #eyebrow() {
    const words = this.isPractice
      ? "Practice: it does not count"
      : this.turn.is_answered
        ? "Changing an earlier answer"
        : "";
    return words && make("span", { class: "eyebrow" }, words, make("span", { class: "hidden" }, ": "));
  }

  #conversationLink() {
    const jump = () => this.cards[0].element.querySelector("h3").focus();
    this.jump = make(
      "button",
      { type: "button", class: "quiet jump", onclick: jump },
      icon("down"),
      "To the responses",
    );
    return this.jump;
  }

  #conversation() {
    const messages = this.turn.conversation.map(({ role, html }) => {
      const name = ROLES[role] ?? role;
      return make(
        "div",
        { class: `message ${role === "user" ? "person" : ""}` },
        make("h3", {}, name),
        prose(html, name),
      );
    });
    this.conversation = make(
      "section",
      { class: "conversation", "aria-labelledby": "conversation-heading" },
      make("h2", { id: "conversation-heading", class: "hidden" }, "The conversation"),
      ...messages,
    );
    return this.conversation;
  }

  #responses() {
    this.toggle = make("button", {
      type: "button",
      class: "quiet toggle",
      onclick: () => this.#arrange(!this.isBeside),
    });
    const heading = make("h2", { id: "responses-heading" }, this.num === 2 ? "Two responses" : `${this.num} responses`);
    this.board = make("div", { class: "cards" }, ...this.cards.map((card) => card.element));
    const isShort = this.turn.responses.every((response) => response.length <= SHORT);
    this.#arrange(preferences.get("beside", null) ?? isShort, false);
    return make(
      "section",
      { class: "responses", "aria-labelledby": "responses-heading" },
      make("div", { class: "line" }, heading, this.toggle),
      make("div", { class: "board" }, this.board, this.num > 2 ? this.control.element : null),
    );
  }

  #arrange(isBeside, isChosen = true) {
    this.isBeside = isBeside;
    this.board.classList.toggle("beside", isBeside);
    this.toggle.replaceChildren(icon(isBeside ? "rows" : "columns"), isBeside ? "Stack them" : "Put side by side");
    if (isChosen) preferences.set("beside", isBeside);
  }

  #words() {
    const { form, judgement } = this;
    const parts = [];
    if (form.reason !== "off") {
      this.reason = textBox({ id: "reason", "aria-describedby": "reason-error" }, judgement.reason, (text) => {
        judgement.reason = text;
        this.#complain("");
        this.#changed("");
      });
      this.error = make("p", { id: "reason-error", class: "error", role: "alert" });
      const label = make("label", { for: "reason" }, "Why? ", make("span", { class: "faint" }, `(${form.reason})`));
      parts.push(make("div", { class: "field" }, label, this.reason, this.error));
    }
    if (form.better_answer) {
      const box = textBox({ id: "better", rows: 4 }, judgement.betterAnswer, (text) => {
        judgement.betterAnswer = text;
        this.#changed("");
      });
      const details = make(
        "details",
        { class: "better" },
        make(
          "summary",
          {},
          icon("pen"),
          make("span", {}, "Write a better response ", make("span", { class: "faint" }, "(optional)")),
        ),
        make("label", { for: "better", class: "hidden" }, "A better response"),
        box,
      );
      details.open = judgement.betterAnswer !== "";
      parts.push(details);
    }
    return parts.length ? make("section", { class: "own-words", "aria-label": "In your own words" }, ...parts) : "";
  }

  #dock() {
    const quiet = (drawing, words, act, key) =>
      make(
        "button",
        { type: "button", class: "quiet", onclick: act },
        icon(drawing),
        make("span", {}, words),
        key && keycap(key),
      );
    this.submitButton = make("button", { type: "button", class: "primary submit", onclick: () => this.on.submit() });
    this.hint = make("p", { class: "hint" });
    this.undo = quiet("undo", "Undo", () => this.on.undo(), "U");
    this.verdict = this.num === 2 ? this.control.element : this.control.dock;
    this.actions = make(
      "div",
      { class: "actions" },
      this.turn.is_answered ? quiet("close", "Leave as it was", () => this.on.cancel()) : this.undo,
      this.isPractice ? null : quiet("skip", "Skip", () => this.on.skip(), "S"),
      this.control.bad,
      this.hint,
      this.submitButton,
    );
    return make("div", { class: "dock", role: "group", "aria-label": "Your verdict" }, this.verdict, this.actions);
  }

  // ---- Changes

  #press(position) {
    if (this.judgement.rankOf(position) === null || this.judgement.bothBad) this.control.place(position);
    else this.control.take(position);
  }

  #changed(words) {
    for (const card of this.cards) card.show();
    if (words) this.on.say(words);
    this.on.changed();
    this.showState();
  }

  #complain(words) {
    if (!this.error) return;
    this.error.textContent = words;
    this.reason.toggleAttribute("aria-invalid", words !== "");
    if (words) this.reason.setAttribute("aria-invalid", "true");
  }

  /** What is missing before it can be sent, said to the person; true when nothing is. */
  check() {
    const { judgement, form } = this;
    const tooLong = [
      ["reason", judgement.reason],
      ["better response", judgement.betterAnswer],
    ].find(([, text]) => numCharacters(text) > MAX_TEXT);
    if (!judgement.isComplete) {
      this.on.say(this.control.hint);
      this.hint.classList.add("missing");
      this.hint.textContent = this.control.hint;
      return false;
    }
    if (form.reason === "required" && !judgement.reason.trim()) {
      this.#complain("Please say why, in a few words.");
      this.reason.focus();
      return false;
    }
    if (tooLong) {
      this.on.say(`The ${tooLong[0]} is too long: at most ${MAX_TEXT.toLocaleString("en")} characters can be kept.`);
      this.hint.textContent = `The ${tooLong[0]} is too long`;
      return false;
    }
    return true;
  }

  // ---- State: "open", "sending", "waiting" (kept here until there is a connection)

  showState(state = this.state ?? "open") {
    this.state = state;
    const label = {
      open: this.turn.is_answered ? "Save the change" : "Submit",
      sending: "Saving…",
      waiting: "Waiting to be sent",
    }[state];
    const ready = state === "open" && this.judgement.isComplete;
    this.submitButton.replaceChildren(label, state === "open" ? keycap("↵") : "");
    this.submitButton.setAttribute("aria-disabled", String(!ready));
    this.hint.classList.remove("missing");
    this.hint.textContent = this.judgement.isComplete ? this.judgement.words : this.control.hint;
    // Nothing can be changed while it is on its way; a practice answer not after it either.
    const isLocked = state === "sending" || (state === "waiting" && this.isPractice) || this.isReview;
    const root = this.element.getRootNode();
    if (isLocked) this.focused ??= root.activeElement;
    for (const part of [this.work, this.verdict, this.control.bad]) if (part) part.inert = isLocked;
    this.element.classList.toggle("sending", state === "sending");
    if (isLocked) return;
    if (!root.activeElement) this.focused?.focus();
    this.focused = null;
  }

  /** Whether the conversation is so long that a way past it is wanted; called when the screen is laid out. */
  showJump() {
    this.jump.hidden = this.conversation.offsetHeight < innerHeight * 0.8;
  }

  showUndo(isPossible) {
    this.undo.hidden = !isPossible;
  }

  /** After a practice task: whether it was right, the right order, and why. */
  showFeedback(known) {
    this.isReview = true;
    const section = feedback(known, this.judgement.words);
    this.feedback.replaceWith(section);
    for (const card of this.cards) card.showRight(known.ranks);
    this.showState("open");
    this.verdict.hidden = true;
    this.nextButton = make(
      "button",
      { type: "button", class: "primary", disabled: true, onclick: () => this.on.next() },
      "Next",
      keycap("↵"),
    );
    setTimeout(() => (this.nextButton.disabled = false), PAUSE);
    const words = known.is_right ? "Well done." : "Have a look at why, above.";
    this.actions.replaceChildren(make("p", { class: "hint" }, words), this.nextButton);
    section.querySelector("h2").focus({ preventScroll: true });
    section.scrollIntoView({ block: "nearest" });
    this.on.say(section.firstElementChild.textContent);
  }

  /** Whether a key meant something here. */
  press(key) {
    if (this.isReview || this.work.inert) return false;
    return this.control.press(key);
  }
}
