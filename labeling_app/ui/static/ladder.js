// More than two responses: a ladder from best to worst, climbed by letters, clicks, taps, buttons and dragging.

import { letter, ordinal } from "./answer.js";
import { icon, keycap, make } from "./dom.js";

export class Ladder {
  /**
   * @param judgement what it changes
   * @param excerpts the beginning of each response, as a reminder
   * @param onChange called after each change with what to say
   */
  constructor(judgement, excerpts, onChange) {
    Object.assign(this, { judgement, excerpts, onChange });
    this.rungs = make("ol", { class: "rungs", "aria-labelledby": "ladder-heading" });
    this.rest = make("div", { class: "rest" });
    this.element = make(
      "section",
      { class: "ladder", "aria-labelledby": "ladder-heading" },
      make("h2", { id: "ladder-heading" }, "Your order"),
      this.rungs,
      this.rest,
    );
    this.rungs.addEventListener("pointerdown", (event) => this.#startDrag(event));
    // Beside the submit button, where it is always in sight: the order so far, and what is left.
    this.order = make("span", { class: "order", "aria-hidden": "true" });
    this.chips = make("span", { class: "chips", role: "group", "aria-label": "Place next" });
    this.tie = make(
      "button",
      { type: "button", class: "quiet", onclick: () => this.press("=") },
      icon("equal"),
      "Tie",
      keycap("="),
    );
    this.bad = judgement.form.both_bad
      ? make(
          "button",
          { type: "button", class: "quiet", onclick: () => this.press("0") },
          icon("close"),
          "All bad",
          keycap("0"),
        )
      : null;
    this.dock = make("div", { class: "short-ladder" }, this.order, this.chips, this.tie);
    this.show();
  }

  get hint() {
    const left = this.judgement.unplaced.length;
    return left === this.judgement.num ? "Start with the best response" : `${left} more to place`;
  }

  /** Whether a key was one of the ladder's. */
  press(key) {
    const { judgement } = this;
    const position = key.length === 1 ? key.toUpperCase().charCodeAt(0) - 65 : -1;
    if (position >= 0 && position < Math.min(judgement.num, 26)) this.place(position);
    else if (key === "=") this.#tieLast();
    else if (key === "Backspace") this.#takeLast();
    else if (key === "0" && judgement.form.both_bad) {
      judgement.setAllBad(!judgement.bothBad);
      this.#changed(judgement.bothBad ? "All are bad" : "Not all are bad");
    } else return false;
    return true;
  }

  place(position) {
    const { judgement } = this;
    if (!judgement.place(position)) {
      this.onChange(`Response ${letter(position)} is ${ordinal(judgement.rankOf(position))} already`);
      return;
    }
    const tied = judgement.isTiedWithAbove(position) ? ", tied" : "";
    this.#changed(`Response ${letter(position)} is ${ordinal(judgement.rankOf(position))}${tied}`);
  }

  take(position) {
    this.judgement.take(position);
    this.#changed(`Response ${letter(position)} is taken out of the order`);
  }

  #tieLast() {
    const { judgement } = this;
    const last = judgement.placed.at(-1);
    if (!judgement.tie()) this.onChange("A tie needs a response before it");
    else if (judgement.tieNext) this.#changed(`The next one ties with ${letter(last)}`);
    else if (judgement.isPlacedAll) this.#changed(judgement.words);
    else this.#changed("The next one does not tie");
  }

  #takeLast() {
    const last = this.judgement.placed.at(-1);
    const wasOne = !this.judgement.bothBad && !this.judgement.tieNext && last !== undefined;
    this.judgement.takeLast();
    this.#changed(wasOne ? `Response ${letter(last)} is taken back` : this.judgement.words || "Nothing is placed");
  }

  #changed(words) {
    this.show();
    this.onChange(words);
  }

  show() {
    const focused = this.element.getRootNode().activeElement?.dataset?.focus;
    this.#showRungs();
    this.#showDock();
    // The controls are new: the focus goes to the one that does the same.
    if (focused && !this.element.getRootNode().activeElement?.dataset?.focus) this.#refocus(focused);
  }

  #refocus(name) {
    const find = (wanted) =>
      this.element.querySelector(`[data-focus="${wanted}"]`) ?? this.dock.querySelector(`[data-focus="${wanted}"]`);
    const next = name.endsWith("chip") ? this.chips.firstElementChild : this.rungs.querySelector("button");
    (find(name) ?? next ?? this.rest.firstElementChild).focus({ preventScroll: true });
  }

  #showRungs() {
    const { judgement } = this;
    this.rungs.replaceChildren(...judgement.placed.map((position) => this.#rung(position)));
    const left = judgement.unplaced;
    const prompt = make("p", { class: "prompt", tabindex: "-1" });
    if (judgement.tieNext) prompt.append(`Which one ties with ${letter(judgement.placed.at(-1))}? `);
    else if (left.length === judgement.num)
      prompt.append("Click the best response, or press its letter. Then the next best.");
    else if (left.length) prompt.append(`Next: the best of ${left.map(letter).join(", ")}.`);
    else prompt.append("All in place. Move them until it is right.");
    this.rest.replaceChildren(prompt);
  }

  #rung(position) {
    const { judgement } = this;
    const name = `Response ${letter(position)}`;
    const rank = judgement.rankOf(position);
    const tied = judgement.isTiedWithAbove(position);
    const isFirst = position === judgement.placed[0];
    const step = (action, drawing, words, act, more = {}) =>
      make(
        "button",
        {
          type: "button",
          class: "small",
          "data-focus": `${position}-${action}`,
          "aria-label": words,
          title: words,
          onclick: act,
          ...more,
        },
        icon(drawing),
      );
    const move = (action) => () => {
      const moved = judgement[action](position);
      this.#changed(
        moved
          ? `${name} is ${ordinal(judgement.rankOf(position))}`
          : `${name} is at the ${action === "up" ? "top" : "bottom"}`,
      );
    };
    const tie = () => {
      judgement.toggleTie(position);
      this.#changed(judgement.words);
    };
    return make(
      "li",
      { class: `rung ${tied ? "tied" : ""}`, "data-position": position },
      make("span", { class: "grip", title: "Drag to move; drop on another to tie" }, icon("grip")),
      make(
        "span",
        { class: "rank" },
        ordinal(rank),
        tied && make("span", { class: "hidden" }, ", tied with the one above"),
      ),
      make("span", { class: "letter" }, make("span", { class: "hidden" }, "Response "), letter(position)),
      make(
        "span",
        { class: "moves" },
        !isFirst && step("tie", "equal", `Tie ${name} with the one above`, tie, { "aria-pressed": String(tied) }),
        step("up", "up", `Move ${name} up`, move("up")),
        step("down", "down", `Move ${name} down`, move("down")),
        step("take", "close", `Take ${name} out`, () => this.take(position)),
      ),
      make("span", { class: "excerpt", dir: "auto", "aria-hidden": "true" }, this.excerpts[position]),
    );
  }

  #showDock() {
    const { judgement } = this;
    const groups = judgement.groups.map((group) => group.map(letter).join(" = "));
    this.order.textContent = judgement.bothBad ? "All are bad" : groups.join(" > ") + (judgement.tieNext ? " = …" : "");
    this.chips.replaceChildren(
      ...judgement.unplaced.map((position) =>
        make(
          "button",
          {
            type: "button",
            class: "chip letter",
            "data-focus": `${position}-chip`,
            "aria-label": `Place response ${letter(position)} next`,
            onclick: () => this.place(position),
          },
          letter(position),
        ),
      ),
    );
    this.tie.setAttribute("aria-pressed", String(judgement.tieNext));
    this.tie.hidden = !judgement.groups.length || judgement.bothBad;
    this.bad?.setAttribute("aria-pressed", String(judgement.bothBad));
  }

  // ---- Dragging: a mouse by any part of the rung, a finger by its grip (the rest scrolls the page)

  #startDrag(event) {
    const rung = event.target.closest(".rung");
    const isGrip = event.target.closest(".grip");
    if (!rung || event.button !== 0 || event.target.closest("button") || (event.pointerType !== "mouse" && !isGrip))
      return;
    event.preventDefault();
    const listening = new AbortController();
    const { signal } = listening;
    const position = Number(rung.dataset.position);
    const startY = event.clientY;
    const home = rung.getBoundingClientRect();
    let drop = null;
    this.rungs.setPointerCapture(event.pointerId);
    rung.classList.add("dragged");
    const end = () => {
      listening.abort();
      rung.classList.remove("dragged");
      rung.style.translate = "";
      this.#mark(null);
    };
    const moved = (move) => {
      rung.style.translate = `0 ${move.clientY - startY}px`;
      const isHome = move.clientY >= home.top && move.clientY <= home.bottom;
      drop = isHome ? null : this.#dropAt(move.clientY, rung);
      this.#mark(drop);
    };
    const dropped = () => {
      end();
      if (drop === null) return;
      if (drop.onto !== undefined) this.judgement.dropOn(position, drop.onto);
      else this.judgement.dropAt(position, drop.gap);
      this.#changed(this.judgement.words);
    };
    this.rungs.addEventListener("pointermove", moved, { signal });
    this.rungs.addEventListener("pointerup", dropped, { signal });
    this.rungs.addEventListener("pointercancel", end, { signal });
    const escape = (key) => {
      if (key.key !== "Escape") return;
      key.stopPropagation();
      end();
    };
    document.addEventListener("keydown", escape, { signal, capture: true });
  }

  /** Where a rung would fall: onto the middle of another (`onto`: its position), or into a gap (`gap`: index below it). */
  #dropAt(y, dragged) {
    const rungs = [...this.rungs.children];
    for (const [at, rung] of rungs.entries()) {
      if (rung === dragged) continue;
      const { top, height } = rung.getBoundingClientRect();
      if (y < top + height / 4) return { gap: at };
      if (y <= top + (3 * height) / 4) return { onto: Number(rung.dataset.position) };
    }
    return { gap: rungs.length };
  }

  #mark(drop) {
    const rungs = [...this.rungs.children];
    for (const [at, rung] of rungs.entries()) {
      rung.classList.toggle("drop-onto", drop?.onto === Number(rung.dataset.position));
      rung.classList.toggle("drop-above", drop?.gap === at);
      rung.classList.toggle("drop-below", drop?.gap === rungs.length && at === rungs.length - 1);
    }
  }
}
