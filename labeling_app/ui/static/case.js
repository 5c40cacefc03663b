// One disputed task as the lead reads it: the conversation, the responses side by side, what everybody said.

import { choiceInWords, letter, ordinal, verdictInWords } from "./answer.js";
import { icon, make, prose } from "./dom.js";

const ROLES = { user: "Person", assistant: "Assistant", system: "Instructions to the assistant", tool: "Tool" };

/** A person's name beside our own words: isolated, so that a right-to-left one does not turn the line around. */
export const nameOf = (text) => make("bdi", {}, text);

export function showConversation({ conversation }) {
  const messages = conversation.map(({ role, html }) => {
    const name = ROLES[role] ?? role;
    return make("div", { class: `message ${role === "user" ? "person" : ""}` }, make("h4", {}, name), prose(html, name));
  });
  return make("section", {}, make("h3", {}, "The conversation"), ...messages);
}

export function showResponses({ responses, opinions }) {
  const cards = responses.map(({ html }, position) => {
    const name = `Response ${letter(position)}`;
    const first = opinions.filter(({ ranks }) => ranks[position] === 1 && new Set(ranks).size > 1).length;
    const flags = opinions.flatMap((opinion) => opinion.flags[position].map((label) => ({ label, person: opinion.person })));
    return make(
      "article",
      { class: "card", "aria-label": name },
      make("header", {}, make("h4", {}, make("span", { class: "hidden" }, "Response "), make("span", { class: "letter" }, letter(position))), make("span", { class: "faint" }, `best for ${first} of ${opinions.length}`)),
      prose(html, name),
      flags.length ? make("ul", { class: "marks" }, ...flags.map(({ label, person }) => make("li", {}, icon("flag"), make("span", {}, label, make("span", { class: "faint" }, " · ", nameOf(person)))))) : null,
    );
  });
  return make("section", {}, make("h3", {}, "The responses"), make("div", { class: "cards" }, ...cards));
}

export function showOpinions({ responses, opinions }) {
  const heads = responses.map((_, position) => make("th", { scope: "col", class: "at" }, make("span", { class: "hidden" }, "Response "), letter(position)));
  const rows = opinions.map((opinion) =>
    make(
      "tbody",
      {},
      make(
        "tr",
        {},
        make("th", { scope: "row" }, nameOf(opinion.person), opinion.is_late ? make("span", { class: "faint" }, " (late: not counted)") : null),
        ...opinion.ranks.map((rank) => make("td", { class: rank === 1 && new Set(opinion.ranks).size > 1 ? "at best" : "at" }, ordinal(rank))),
        make("td", { class: "in-words" }, inWords(opinion)),
      ),
      more(opinion, responses.length),
    ),
  );
  const table = make("table", { class: `said-table ${responses.length === 2 ? "pair" : "many"}` }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Who"), ...heads, make("th", { scope: "col", class: "in-words" }, "In words"))), ...rows);
  const frame = make("div", { class: "frame-wide", tabindex: "0", role: "group", "aria-label": "What people said" }, table);
  return make("section", {}, make("h3", {}, "What people said"), opinions.length ? frame : make("p", { class: "faint" }, "No answer counts at present."));
}

function inWords({ ranks, strength, both_bad: bothBad }) {
  if (!strength) return verdictInWords(ranks, bothBad);
  return choiceInWords(ranks[0] < ranks[1] ? -strength : strength, true);
}

/** Reason, ratings and better answer of one person, where they gave any. */
function more(opinion, num) {
  const parts = [];
  if (opinion.reason_html) parts.push(prose(opinion.reason_html, "the reason"));
  for (let position = 0; position < num; position++) {
    const ratings = Object.entries(opinion.ratings[position] ?? {});
    if (ratings.length) parts.push(make("p", { class: "faint" }, `${letter(position)}: `, ratings.map(([label, mark]) => `${label} ${mark} of 4`).join(", ")));
  }
  if (opinion.better_answer_html) {
    parts.push(make("details", {}, make("summary", {}, icon("pen"), "Their better response"), prose(opinion.better_answer_html, "the better response")));
  }
  return parts.length ? make("tr", { class: "more" }, make("td", { colspan: num + 2 }, ...parts)) : null;
}
