// What stays around the task: progress, buttons, notices, the toast, the voice for screen readers, light and dark.

import { icon, keycap, make } from "./dom.js";

const TOAST = 8000; // ms
const GAP = 16; // pixels between what has the focus and the dock

export class Frame {
  #toastTimer = null;

  /**
   * @param root the shadow root to fill
   * @param signal ends all listening
   * @param on `{guidelines(), history(), keys(), leave()}`
   */
  constructor(root, signal, on) {
    this.done = make("progress", { max: "1", value: "0", "aria-label": "Tasks done" });
    this.numbers = make("p", { class: "numbers" });
    this.notice = make("div", { class: "notice", role: "alert" });
    this.screen = make("div", { class: "screen", "aria-busy": "true" }, make("p", { class: "loading" }, "One moment…"));
    this.person = make("footer", { class: "who" });
    this.voice = make("div", { class: "voice hidden", role: "status" });
    this.toast = make("div", { class: "toast" });
    this.dialogs = make("div");
    const button = (drawing, words, act, key) =>
      make(
        "button",
        { type: "button", class: "quiet", onclick: act, title: words },
        icon(drawing),
        make("span", { class: "wide-only" }, words),
        key && keycap(key),
      );
    this.buttons = make(
      "nav",
      { "aria-label": "Help" },
      button("book", "Guidelines", on.guidelines),
      button("list", "My answers", on.history),
      button("keys", "Keys", on.keys, "?"),
    );
    this.buttons.hidden = true;
    for (const shown of this.buttons.children) shown.setAttribute("aria-label", shown.title);
    this.on = on;
    this.frame = make(
      "div",
      { class: "frame" },
      make("header", { class: "top" }, this.numbers, this.buttons, this.done),
      this.notice,
      this.screen,
      this.person,
    );
    this.theme = make("div", { class: "theme" }, this.frame, this.toast, this.voice, this.dialogs);
    this.#dress(root, signal);
    this.#listen(signal);
  }

  #dress(root, signal) {
    const sheet = make("link", { rel: "stylesheet", href: new URL("./ranking.css", import.meta.url).href });
    const arrival = new Promise((resolve) => (sheet.onload = sheet.onerror = resolve));
    this.theme.hidden = true; // nothing unstyled is shown
    this.isDressed = arrival.then(() => (this.theme.hidden = false));
    root.replaceChildren(sheet, this.theme);
    // Gradio says by a class on the body that it is dark; the address can ask it to be light on a dark machine.
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const isLight = new URLSearchParams(location.search).get("__theme") === "light";
    const paint = () => {
      const isDark = document.body.classList.contains("dark") || (dark.matches && !isLight);
      this.theme.dataset.theme = isDark ? "dark" : "light";
    };
    dark.addEventListener("change", paint, { signal });
    const observer = new MutationObserver(paint);
    observer.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    signal.addEventListener("abort", () => observer.disconnect());
    paint();
  }

  #listen(signal) {
    const stay = () => clearTimeout(this.#toastTimer);
    const go = () => this.#hideToastLater();
    for (const name of ["pointerenter", "focusin"]) this.toast.addEventListener(name, stay, { signal });
    for (const name of ["pointerleave", "focusout"]) this.toast.addEventListener(name, go, { signal });
    for (const name of ["focusin", "input"]) {
      this.screen.addEventListener(name, (event) => this.#reveal(event), { signal });
    }
  }

  // ---- The screen

  /** Put a screen in place of the one before, from its top, with the focus on its heading. */
  show(element) {
    this.screen.replaceChildren(element);
    this.screen.setAttribute("aria-busy", "false");
    const top = this.frame.getBoundingClientRect().top;
    if (top < 0) scrollBy(0, top);
    element.querySelector("h1")?.focus({ preventScroll: true });
    this.#measureDock(element);
  }

  /** A screen of a drawing, a heading, some words and buttons. */
  showPlain(drawing, title, words, ...buttons) {
    const paragraphs = words.map((text) => make("p", { dir: "auto" }, text));
    this.show(
      make(
        "div",
        { class: "plain" },
        make("span", { class: "mark" }, icon(drawing)),
        make("h1", { tabindex: "-1" }, title),
        ...paragraphs,
        make("div", { class: "buttons" }, ...buttons),
      ),
    );
  }

  /** What has the focus, or is being written, must not be behind the dock. */
  #reveal(event) {
    const dock = this.screen.querySelector(".dock");
    const { target } = event;
    if (dock === null || dock.contains(target) || getComputedStyle(dock).position !== "sticky") return;
    // Under a mouse nothing moves between press and release.
    if (!target.matches(":focus-visible")) return;
    const { top, bottom } = (target.closest("label, .field") ?? target).getBoundingClientRect();
    const isTyping = event.type === "input";
    const behind = bottom + GAP - dock.getBoundingClientRect().top;
    // Of a box higher than the window its top is shown; its bottom, where the writing goes on there.
    if (isTyping && target.selectionEnd !== target.value?.length) return;
    if (behind > 0) scrollBy(0, isTyping ? behind : Math.min(behind, top - GAP));
  }

  /** The toast stands above the dock. */
  #measureDock(element) {
    this.dockSize?.disconnect();
    const dock = element.querySelector(".dock");
    const measure = () => {
      const isSticky = dock !== null && getComputedStyle(dock).position === "sticky";
      this.theme.style.setProperty("--dock", `${isSticky ? dock.offsetHeight : 0}px`);
    };
    measure();
    if (dock === null) return;
    this.dockSize = new ResizeObserver(measure);
    this.dockSize.observe(dock);
  }

  // ---- Words

  /** For screen readers: what has just changed. */
  say(words) {
    // The same words twice are spoken twice only if the text differs.
    this.voice.textContent = this.voice.textContent === words ? `${words}\u00a0` : words;
  }

  /** A line at the top that stays until it is cleared. `action`: an element beside it. */
  showNotice(words, action = null) {
    if (this.notice.textContent.startsWith(words)) return;
    this.notice.replaceChildren(make("p", {}, icon("warning"), make("span", { dir: "auto" }, words)), action ?? "");
  }

  clearNotice() {
    this.notice.replaceChildren();
  }

  /** Words that go by themselves, with what can be done about it: `{label, act}`. */
  showToast(words, action = null) {
    const act = () => {
      this.toast.replaceChildren();
      action.act();
    };
    const button =
      action &&
      make("button", { type: "button", onclick: act, "aria-label": `${action.label}: ${words}` }, action.label);
    this.toast.replaceChildren(make("p", { "aria-hidden": "true" }, icon("check"), words), button ?? "");
    this.say(words);
    this.#hideToastLater();
  }

  #hideToastLater() {
    clearTimeout(this.#toastTimer);
    this.#toastTimer = setTimeout(() => {
      if (!this.toast.contains(this.toast.getRootNode().activeElement)) this.toast.replaceChildren();
    }, TOAST);
  }

  // ---- Who and how far

  showPerson(name) {
    this.buttons.hidden = false;
    const leave = make("button", { type: "button", class: "quiet", onclick: () => this.on.leave() }, "Log out");
    this.person.replaceChildren(make("span", {}, "Logged in as ", make("b", { dir: "auto" }, name)), leave);
  }

  showProgress({ done, today, left, practice_left, pace_seconds }) {
    const parts = [];
    if (practice_left) parts.push([`Practice: ${practice_left} left`, ""]);
    else {
      parts.push([`${today} today`, ""], [`${done} in all`, "wide-only"], [`${left} left`, ""]);
      if (pace_seconds !== null) parts.push([`${paceInWords(pace_seconds)} each`, "wide-only"]);
    }
    this.numbers.replaceChildren(...parts.map(([words, kind]) => make("span", { class: kind }, words)));
    this.done.max = Math.max(1, done + left);
    this.done.value = done;
    this.done.setAttribute("aria-valuetext", `${done} done, ${left} left`);
  }
}

function paceInWords(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return `about ${Math.round(seconds / 60)} min`;
}
