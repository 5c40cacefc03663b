// One response: its text, its place, what is wrong with it, its ratings.

import { letter, MAX_RATING, ordinal } from "./answer.js";
import { icon, keycap, make, prose } from "./dom.js";
import { preferences } from "./storage.js";

const CLICK = 6; // pixels that a pointer may move in a click; further, it selects text

export class ResponseCard {
  /**
   * @param position on screen
   * @param on `{changed(words), pressed(position) or null}`: `pressed` where a click puts it in the order
   */
  constructor(response, position, judgement, form, on) {
    Object.assign(this, { position, judgement, form, on });
    this.name = `Response ${letter(position)}`;
    const heading = `response-${position}`;
    this.badge = make("span", { class: "badge" });
    this.text = prose(response.html, this.name);
    this.button = on.pressed
      ? make("button", { type: "button", class: "place", onclick: () => on.pressed(position) })
      : null;
    this.element = make(
      "article",
      { class: "card", role: "region", "aria-labelledby": heading },
      make(
        "header",
        {},
        make(
          "h3",
          { id: heading, tabindex: "-1" },
          make("span", { class: "hidden" }, "Response "),
          make("span", { class: "letter" }, letter(position)),
        ),
        this.badge,
        this.button,
      ),
      this.text,
      this.#flags(),
      this.#ratings(),
    );
    if (on.pressed) this.#listenForClicks();
    this.show();
  }

  /** The beginning of the text, on one line. */
  get excerpt() {
    return this.text.textContent.trim().replace(/\s+/g, " ").slice(0, 80);
  }

  // ---- Its place

  #listenForClicks() {
    let at = null;
    this.element.classList.add("pressable");
    this.element.addEventListener("pointerdown", (event) => (at = [event.clientX, event.clientY]));
    this.element.addEventListener("click", (event) => {
      if (event.target.closest("button, a, summary, details, input, label, textarea") || event.detail > 1) return;
      const moved = at && Math.hypot(event.clientX - at[0], event.clientY - at[1]) > CLICK;
      if (!moved && this.judgement.rankOf(this.position) === null) this.on.pressed(this.position);
    });
  }

  show() {
    const rank = this.judgement.rankOf(this.position);
    const words = this.button ? this.#showPlace(rank) : this.#pairWords();
    this.#showBadge(words, words !== "Bad" && rank === 1);
  }

  /** After a practice task: the right place instead of the one given. */
  showRight(ranks) {
    const rank = ranks[this.position];
    const isTie = new Set(ranks).size === 1;
    if (this.button) this.button.hidden = true;
    const words = this.button ? ordinal(rank) : rank === 1 ? "Better" : "";
    this.#showBadge(isTie ? "Tie" : words, rank === 1);
  }

  #showBadge(words, isBest) {
    const drawing = { Bad: "close", Tie: "equal" }[words] ?? "check";
    this.badge.replaceChildren(...(words ? [icon(drawing), words] : []));
    this.element.classList.toggle("is-best", words !== "" && isBest);
  }

  #showPlace(rank) {
    const { judgement } = this;
    const next = judgement.groups.length + (judgement.tieNext ? 0 : 1);
    const label = rank === null || judgement.bothBad ? `Place ${ordinal(judgement.bothBad ? 1 : next)}` : "Take out";
    this.button.replaceChildren(label, rank === null ? keycap(letter(this.position)) : "");
    this.button.setAttribute("aria-label", `${label}: ${this.name}`);
    this.button.hidden = judgement.bothBad;
    if (rank === null) return "";
    return judgement.bothBad ? "Bad" : ordinal(rank);
  }

  #pairWords() {
    const { choice } = this.judgement;
    if (choice === null) return "";
    if (choice === "bad") return "Bad";
    if (choice === 0) return "Tie";
    if (choice < 0 !== (this.position === 0)) return "";
    const amount = this.judgement.asksStrength ? Math.abs(choice) : 2;
    return { 1: "Slightly better", 2: "Better", 3: "Much better" }[amount];
  }

  // ---- What is wrong with it

  #flags() {
    if (!this.form.flags.length) return null;
    const chosen = this.judgement.flags[this.position];
    const count = make("span", { class: "count" });
    const showCount = () => (count.textContent = chosen.size ? ` (${chosen.size})` : "");
    const chips = this.form.flags.map((flag) => {
      const chip = make(
        "button",
        { type: "button", class: "chip", "aria-pressed": String(chosen.has(flag.id)) },
        icon("check"),
        flag.label,
      );
      chip.addEventListener("click", () => {
        if (!chosen.delete(flag.id)) chosen.add(flag.id);
        chip.setAttribute("aria-pressed", String(chosen.has(flag.id)));
        showCount();
        this.on.changed("");
      });
      return chip;
    });
    showCount();
    const details = make(
      "details",
      { class: "flags" },
      make("summary", {}, icon("flag"), "Problems", count, make("span", { class: "hidden" }, ` of ${this.name}`)),
      make("div", { class: "chips", role: "group", "aria-label": `Problems of ${this.name}` }, ...chips),
    );
    details.open = chosen.size > 0 || preferences.get("flags", innerWidth >= 700);
    details.querySelector("summary").addEventListener("click", () => preferences.set("flags", !details.open));
    return details;
  }

  // ---- Ratings

  #ratings() {
    if (!this.form.attributes.length) return null;
    return make("div", { class: "ratings" }, ...this.form.attributes.map((attribute) => this.#rating(attribute)));
  }

  #rating(attribute) {
    const ratings = this.judgement.ratings[this.position];
    const clear = make(
      "button",
      {
        type: "button",
        class: "small",
        "aria-label": `Clear the rating: ${attribute.label}, ${this.name}`,
        title: "Clear",
      },
      icon("close"),
    );
    const radios = Array.from({ length: MAX_RATING + 1 }, (_, value) => {
      const radio = make("input", { type: "radio", name: `rating-${this.position}-${attribute.id}` });
      radio.checked = ratings[attribute.id] === value;
      radio.addEventListener("change", () => {
        ratings[attribute.id] = value;
        clear.classList.remove("invisible");
        this.on.changed("");
      });
      return radio;
    });
    clear.classList.toggle("invisible", !(attribute.id in ratings));
    clear.addEventListener("click", () => {
      delete ratings[attribute.id];
      const chosen = radios.find((radio) => radio.checked);
      if (chosen) chosen.checked = false;
      radios[0].focus();
      clear.classList.add("invisible");
      this.on.changed("");
    });
    return make(
      "fieldset",
      { class: "rating", "aria-label": `${attribute.label}, ${this.name}: 0 is lowest, ${MAX_RATING} is highest` },
      make("legend", {}, attribute.label),
      make(
        "span",
        { class: "dots" },
        ...radios.map((radio, value) => make("label", { class: "dot" }, radio, make("span", {}, String(value)))),
      ),
      clear,
    );
  }
}
