// <dispute-desk api="/api">: the lead reads what people disagree on, side by side, and settles it.

import { verdictInWords } from "./answer.js";
import { nameOf, showConversation, showOpinions, showResponses } from "./case.js";
import { icon, make, textBox } from "./dom.js";
import { dense, pairChoices, placeChoices } from "./places.js";
import { Server } from "./server.js";

const MAX_REASON = 5000;
const SHEETS = ["ranking", "controls", "texts", "task", "disputes"];

const plural = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;

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
      make(
        "header",
        {},
        make("h2", { id: "list-heading", tabindex: "-1" }, "Disputed tasks"),
        make("button", { type: "button", class: "quiet", onclick: () => this.#try(() => this.#showList()) }, "Refresh"),
      ),
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
    this.case.replaceChildren(make("div", { class: `nothing ${disputes.length ? "" : "at-all"}` }, icon(disputes.length ? "list" : "check"), make("p", {}, make("b", {}, first)), make("p", {}, second)));
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
      showConversation(found),
      showResponses(found),
      showOpinions(found),
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

customElements.define("dispute-desk", DisputeDesk);
