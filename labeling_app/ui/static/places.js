// The lead's own ranking: one of three for a pair, a place for each of more responses.

import { letter, ordinal } from "./answer.js";
import { make } from "./dom.js";

/** 1, 2, 3 without gaps: 1, 3, 3 becomes 1, 2, 2. */
export function dense(ranks) {
  const places = [...new Set(ranks)].sort((a, b) => a - b);
  return ranks.map((rank) => places.indexOf(rank) + 1);
}

function radio(name, words, short, isChosen, choose) {
  const input = make("input", { type: "radio", name, "aria-label": words });
  input.checked = isChosen;
  input.addEventListener("change", choose);
  return make("label", { class: "option" }, input, make("span", { "aria-hidden": "true" }, short));
}

/** A is better, a tie, B is better. */
export function pairChoices(ranks, changed) {
  const choices = [["A is better", [1, 2]], ["A tie", [1, 1]], ["B is better", [2, 1]]];
  const step = ([words, wanted]) =>
    radio("pair", words, words, wanted.every((rank, position) => rank === ranks[position]), () => {
      [ranks[0], ranks[1]] = wanted;
      changed();
    });
  return make("fieldset", { class: "options" }, make("legend", { class: "hidden" }, "Which response is better?"), ...choices.map(step));
}

/** A place for each response. */
export function placeChoices(ranks, changed) {
  const rows = ranks.map((_, position) =>
    make(
      "fieldset",
      { class: "options places" },
      make("legend", {}, make("span", { class: "hidden" }, "Place of response "), letter(position)),
      ...ranks.map((_, at) =>
        radio(`place-${position}`, ordinal(at + 1), ordinal(at + 1), ranks[position] === at + 1, () => {
          ranks[position] = at + 1;
          changed();
        }),
      ),
    ),
  );
  return make("div", {}, ...rows);
}
