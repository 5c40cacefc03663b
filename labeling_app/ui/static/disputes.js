// <dispute-desk api="/api">: the lead reads what people disagree on, side by side, and settles it.

import { choiceInWords, letter, ordinal, verdictInWords } from "./answer.js";
import { icon, make, prose, textBox } from "./dom.js";
import { Server } from "./server.js";

const ROLES = { user: "Person", assistant: "Assistant", system: "Instructions to the assistant", tool: "Tool" };
const MAX_REASON = 5000;
const SHEETS = ["ranking", "controls", "texts", "task", "disputes"];

const plural = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;

/** A person's name beside our own words: isolated, so that a right-to-left one does not turn the line around. */
const nameOf = (text) => make("bdi", {}, text);

class DisputeDesk extends HTMLElement {
  #server;
  #settled = false; // which of the two lists is shown
  #list = { disputes: [], num_open: 0, num_settled: 0 };
  #current = null; // the id of the task on screen

  connectedCallback() {
    if (this.shadowRoot) return; // moved on the page: all is there already
    this.#server = new Server(this.getAttribute("api") ?? "/api");
    const root = this.attachShadow({ mode: "open" });
    this.status = make("p", { class: "hidden", role: "status" });
    this.alarm = make("div", { role: "alert" });
    this.side = make("nav", { class: "side", "aria-labelledby": "list-heading" });
    this.case = make("div", { class: "case" });
    this.desk = make("div", { class: "desk" }, this.side, this.case);
    const room = make("div", { class: "room" }, this.alarm, this.desk, this.status);
    this.#dress(root, make("div", { class: "theme lead", hidden: true }, room));
    this.#start();
  }

  #dress(root, theme) {
    const sheets = SHEETS.map((name) => make("link", { rel: "stylesheet", href: new URL(`./${name}.css`, import.meta.url).href }));
    const arrival = (sheet) => new Promise((resolve) => (sheet.onload = sheet.onerror = resolve));
    Promise.all(sheets.map(arrival)).then(() => (theme.hidden = false)); // nothing unstyled is shown
    root.append(...sheets, theme);
  }

  async #start() {
    await this.#try(async () => {
      await this.#server.me();
      await this.#showList();
    });
  }

  /** Do something that may fail; what went wrong is said, with a way to try again. */
  async #try(act) {
    this.alarm.replaceChildren();
    this.desk.setAttribute("aria-busy", "true");
    try {
      return await act();
    } catch (failure) {
      const again = make("button", { type: "button", onclick: () => this.#try(act) }, "Try again");
      const words = make("p", {}, icon("warning"), failure.message);
      this.alarm.replaceChildren(make("div", { class: "alarm" }, words, again));
      this.alarm.scrollIntoView({ block: "nearest" });
    } finally {
      this.desk.removeAttribute("aria-busy");
    }
  }

  #say(words) {
    this.status.textContent = "";
    requestAnimationFrame(() => (this.status.textContent = words));
  }

  // ---- The list

  async #showList() {
    this.#list = await this.#server.get(`admin/disputes?settled=${this.#settled}`);
    const { disputes, num_open, num_settled } = this.#list;
    const total = this.#settled ? num_settled : num_open;
    const tab = (settled, words, number) =>
      make(
        "button",
        { type: "button", "aria-pressed": String(settled === this.#settled), onclick: () => this.#choose(settled) },
        words,
        make("span", { class: "number" }, String(number)),
      );
    this.side.replaceChildren(
      make("h2", { id: "list-heading", tabindex: "-1" }, "Disputed tasks"),
      make("div", { class: "tabs", role: "group", "aria-label": "Which ones" }, tab(false, "To settle", num_open), tab(true, "Settled", num_settled)),
      make("ul", {}, ...disputes.map((dispute) => make("li", {}, this.#entry(dispute)))),
      ...(disputes.length < total ? [make("p", { class: "faint" }, `The ${disputes.length} most disputed of ${total}.`)] : []),
    );
    if (!this.#current) this.#showNothing();
    this.#mark();
  }

  #entry(dispute) {
    const share = Math.round(dispute.score * 100);
    return make(
      "button",
      { type: "button", class: "entry", "data-task": dispute.task_id, onclick: () => this.#open(dispute.task_id) },
      make("span", { class: "prompt", dir: "auto" }, dispute.prompt),
      make(
        "span",
        { class: "facts" },
        make("span", { class: "meter", "aria-hidden": "true", style: `--share: ${share}%` }),
        `${share}% apart · ${plural(dispute.num_answers, "answer")}`,
      ),
    );
  }

  async #choose(settled) {
    this.#settled = settled;
    this.#current = null;
    await this.#try(() => this.#showList());
    this.side.querySelector('[aria-pressed="true"]')?.focus();
  }

  #mark() {
    for (const entry of this.side.querySelectorAll(".entry")) {
      const isCurrent = Number(entry.dataset.task) === this.#current;
      if (isCurrent) entry.setAttribute("aria-current", "true");
      else entry.removeAttribute("aria-current");
    }
    this.desk.classList.toggle("is-open", this.#current !== null);
  }

  #showNothing() {
    const { disputes, num_settled } = this.#list;
    const words = disputes.length
      ? ["Choose a task from the list.", "“Apart” says how far the answers lie from each other: 100% where everybody prefers another response."]
      : this.#settled
        ? ["Nothing is settled yet.", "What you decide on a disputed task appears here."]
        : num_settled
          ? ["All disputes are settled.", "New ones appear here when people contradict each other."]
          : ["Nobody contradicts anybody.", "A task appears here when two people who ranked it contradict each other."];
    const [first, second] = words;
    this.case.replaceChildren(make("div", { class: "nothing" }, icon(disputes.length ? "list" : "check"), make("p", {}, make("b", {}, first)), make("p", {}, second)));
  }

  // ---- One task

  async #open(taskId) {
    await this.#try(async () => {
      const found = await this.#server.get(`admin/disputes/${taskId}`);
      this.#current = taskId;
      this.#showCase(found);
      this.#mark();
      this.case.querySelector("h2").focus({ preventScroll: true });
      this.case.scrollIntoView({ block: "start" });
    });
  }

  #showCase(found) {
    const back = make("button", { type: "button", class: "quiet back", onclick: () => this.#back() }, icon("list"), "All disputes");
    this.case.replaceChildren(
      make(
        "header",
        { class: "title" },
        back,
        make("h2", { tabindex: "-1" }, "Task ", nameOf(found.task)),
        make("p", { class: "faint" }, "from ", nameOf(found.set_name)),
      ),
      this.#conversation(found),
      this.#responses(found),
      this.#opinions(found),
      this.#verdict(found),
    );
  }

  #back() {
    const task = this.#current;
    this.#current = null;
    this.#showNothing();
    this.#mark();
    (this.side.querySelector(`[data-task="${task}"]`) ?? this.side.querySelector("h2"))?.focus();
  }

  #conversation({ conversation }) {
    const messages = conversation.map(({ role, html }) => {
      const name = ROLES[role] ?? role;
      return make("div", { class: `message ${role === "user" ? "person" : ""}` }, make("h4", {}, name), prose(html, name));
    });
    return make("section", {}, make("h3", {}, "The conversation"), ...messages);
  }

  #responses({ responses, opinions }) {
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

  #opinions({ responses, opinions }) {
    const heads = responses.map((_, position) => make("th", { scope: "col" }, make("span", { class: "hidden" }, "Response "), letter(position)));
    const rows = opinions.map((opinion) =>
      make(
        "tbody",
        {},
        make(
          "tr",
          {},
          make("th", { scope: "row" }, nameOf(opinion.person), opinion.is_late ? make("span", { class: "faint" }, " (late: not counted)") : null),
          ...opinion.ranks.map((rank) => make("td", { class: rank === 1 && new Set(opinion.ranks).size > 1 ? "best" : "" }, ordinal(rank))),
          make("td", { class: "in-words" }, this.#inWords(opinion)),
        ),
        this.#more(opinion, responses.length),
      ),
    );
    const table = make("table", { class: "said-table" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Who"), ...heads, make("th", { scope: "col", class: "in-words" }, "In words"))), ...rows);
    const frame = make("div", { class: "frame-wide", tabindex: "0", role: "group", "aria-label": "What people said" }, table);
    return make("section", {}, make("h3", {}, "What people said"), opinions.length ? frame : make("p", { class: "faint" }, "No answer counts at present."));
  }

  #inWords({ ranks, strength, both_bad: bothBad }) {
    if (!strength) return verdictInWords(ranks, bothBad);
    return choiceInWords(ranks[0] < ranks[1] ? -strength : strength, true);
  }

  /** Reason, ratings and better answer of one person, where they gave any. */
  #more(opinion, num) {
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

  // ---- The lead's word

  #verdict(found) {
    const num = found.responses.length;
    const ranks = found.ruling ? [...found.ruling.ranks] : Array(num).fill(null);
    const said = make("output", { class: "said" });
    const save = make("button", { type: "submit", class: "primary" }, icon("check"), found.ruling ? "Change it" : "Settle it");
    const reason = textBox({ id: "reason", maxlength: MAX_REASON }, found.ruling?.reason ?? "", () => {});
    const show = () => {
      const isWhole = ranks.every((rank) => rank !== null);
      said.textContent = isWhole ? verdictInWords(dense(ranks)) : num === 2 ? "Choose one." : "Give each response a place; the same place is a tie.";
      save.setAttribute("aria-disabled", String(!isWhole));
    };
    const choices = num === 2 ? pairChoices(ranks, show) : placeChoices(ranks, show);
    const form = make(
      "form",
      { class: "verdict" },
      make("h3", {}, "Your word on it"),
      found.ruling ? this.#ruling(found) : make("p", { class: "faint" }, "The export takes your ranking in place of the votes. The votes stay as they are."),
      choices,
      said,
      make("label", { for: "reason" }, "Why? ", make("span", { class: "faint" }, "(optional, for whoever reads the log)")),
      reason,
      make("div", { class: "actions" }, save, this.#next(found)),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (ranks.includes(null)) {
        said.classList.add("missing");
        this.#say(said.textContent);
        return;
      }
      this.#save(found.task_id, "", { ranks: dense(ranks), reason: reason.value }, `Settled: ${verdictInWords(dense(ranks))}.`);
    });
    show();
    return form;
  }

  #ruling({ ruling, task_id: taskId }) {
    const day = new Date(ruling.at * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
    const withdraw = () => this.#save(taskId, "/withdraw", {}, "The votes decide again.");
    return make(
      "div",
      { class: "ruling" },
      make("p", {}, icon("check"), make("span", {}, "Settled by ", nameOf(ruling.person), ` on ${day}: `, make("b", {}, verdictInWords(ruling.ranks)))),
      make("button", { type: "button", class: "quiet", onclick: withdraw }, icon("undo"), "Let the votes decide again"),
    );
  }

  #next({ task_id: taskId }) {
    const others = this.#list.disputes.filter((dispute) => dispute.task_id !== taskId);
    const at = this.#list.disputes.findIndex((dispute) => dispute.task_id === taskId);
    const next = others[Math.max(0, at)] ?? others[0];
    if (!next) return null;
    return make("button", { type: "button", class: "quiet next", onclick: () => this.#open(next.task_id) }, "Next dispute", icon("skip"));
  }

  async #save(taskId, path, body, words) {
    await this.#try(async () => {
      await this.#server.post(`admin/disputes/${taskId}${path}`, body);
      await this.#showList();
      const found = await this.#server.get(`admin/disputes/${taskId}`);
      this.#showCase(found);
      const verdict = this.case.querySelector(".verdict");
      verdict.prepend(make("p", { class: "saved" }, icon("check"), words));
      (verdict.querySelector(".next") ?? verdict.querySelector(".primary")).focus({ preventScroll: true });
      verdict.scrollIntoView({ block: "nearest" });
      this.#say(words);
    });
  }
}

/** 1, 2, 3 without gaps: 1, 3, 3 becomes 1, 2, 2. */
function dense(ranks) {
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
function pairChoices(ranks, changed) {
  const choices = [["A is better", [1, 2]], ["A tie", [1, 1]], ["B is better", [2, 1]]];
  const step = ([words, wanted]) =>
    radio("pair", words, words, wanted.every((rank, position) => rank === ranks[position]), () => {
      [ranks[0], ranks[1]] = wanted;
      changed();
    });
  return make("fieldset", { class: "options" }, make("legend", { class: "hidden" }, "Which response is better?"), ...choices.map(step));
}

/** A place for each response. */
function placeChoices(ranks, changed) {
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

customElements.define("dispute-desk", DisputeDesk);
