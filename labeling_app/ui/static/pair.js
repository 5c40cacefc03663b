// Two responses: the scale from "A is much better" to "B is much better", and "both are bad".

import { choiceInWords } from "./answer.js";
import { icon, keycap, make } from "./dom.js";

const AMOUNT = { 1: "slightly", 2: "", 3: "much" };

export class PairScale {
  /**
   * @param judgement what it changes
   * @param onChange called after each change with what stands now, in words
   */
  constructor(judgement, onChange) {
    this.judgement = judgement;
    this.onChange = onChange;
    const steps = judgement.asksStrength ? [-3, -2, -1, 0, 1, 2, 3] : [-1, 0, 1];
    this.choices = new Map(steps.map((step, at) => [String(at + 1), step])); // by key
    if (judgement.form.both_bad) this.choices.set("0", "bad");
    this.radios = new Map();
    const labels = [...this.choices].map(([key, choice]) => this.#step(key, choice));
    const bad = judgement.form.both_bad ? labels.pop() : null;
    this.element = make(
      "fieldset",
      { class: "scale" },
      make("legend", { class: "hidden" }, "Which response is better?"),
      make("div", { class: `steps of-${steps.length}` }, ...labels),
      bad,
    );
    this.show();
  }

  #step(key, choice) {
    const words = choiceInWords(choice, this.judgement.asksStrength);
    const radio = make("input", { type: "radio", name: "choice", "aria-label": this.#caption(choice) });
    radio.addEventListener("change", () => this.#choose(choice));
    this.radios.set(choice, radio);
    return make(
      "label",
      { class: `step ${choice === "bad" ? "bad" : ""}`, title: `${words} (key ${key})` },
      radio,
      make("span", { class: "sign", "aria-hidden": "true" }, ...this.#sign(choice)),
      make("span", { class: "words", "aria-hidden": "true" }, this.#caption(choice)),
      keycap(key),
    );
  }

  /** What a narrow screen shows of a step: the letter and, as bars, how much. */
  #sign(choice) {
    if (choice === "bad") return [icon("close")];
    if (choice === 0) return [icon("equal")];
    const bars = this.judgement.asksStrength ? Array.from({ length: Math.abs(choice) }, () => make("i")) : [];
    return [choice < 0 ? "A" : "B", make("span", { class: "bars" }, ...bars)];
  }

  #caption(choice) {
    if (choice === "bad") return "Both bad";
    if (choice === 0) return "Tie";
    return `${choice < 0 ? "A" : "B"} ${AMOUNT[this.judgement.asksStrength ? Math.abs(choice) : 2]} better`.replace(
      "  ",
      " ",
    );
  }

  #choose(choice) {
    this.judgement.choose(choice);
    this.show();
    this.onChange(this.judgement.words);
  }

  show() {
    for (const [choice, radio] of this.radios) radio.checked = choice === this.judgement.choice;
  }

  /** Whether a key was one of the scale's. */
  press(key) {
    if (!this.choices.has(key)) return false;
    this.#choose(this.choices.get(key));
    return true;
  }

  get hint() {
    return "Choose which one is better";
  }
}
