// <ranking-desk api="/api">: the annotator's screen. The words of the API are in docs/labeling.md.
//
// The element owns the flow: who is there, guidelines, then one task after the other. Answers leave through
// the outbox (answering.js, delivery.js), which keeps them in the browser until the server has acknowledged them.

import { Answering } from "./answering.js";
import { Clock } from "./clock.js";
import { startFrom } from "./delivery.js";
import { openGuidelines, openHistory, openKeys, openLogout } from "./dialogs.js";
import { Frame } from "./frame.js";
import { pressed } from "./keys.js";
import { showConnection, showDone, showGuidelines, showPaused, showTrouble } from "./screens.js";
import { Failure, Patience, Server } from "./server.js";
import { isLasting, Keep } from "./storage.js";
import { TaskScreen } from "./task.js";

const LOOK_AGAIN = 60_000; // ms after which to ask for tasks again where none was left
const SYNC_EVERY = 5; // answers after which the numbers are asked for anew

/** The start of today in seconds since 1970, where this browser is. */
const midnight = () => new Date().setHours(0, 0, 0, 0) / 1000;

class RankingDesk extends HTMLElement {
  #life = null; // ends with the element's stay on the page
  #visit = 0; // counts screens asked for: what arrives late is not shown
  #afterFeedback = null; // the turn that comes after the feedback on screen
  #numSince = 0; // answers since the last sync

  connectedCallback() {
    this.#life = new AbortController();
    const { signal } = this.#life;
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    this.frame = new Frame(root, signal, {
      guidelines: () => openGuidelines(this.frame.dialogs, this.form),
      history: () => this.#openHistory(),
      keys: () => openKeys(this.frame.dialogs, this.task?.num ?? 2, this.form.strength),
      leave: () => this.#leave(),
    });
    this.clock = new Clock(signal);
    this.#listen(signal);
    this.enter();
  }

  disconnectedCallback() {
    this.#life.abort();
    this.answering?.delivery.stop();
    this.answering?.drafts.flush({ leaving: true });
    this.patience.wake();
  }

  #listen(signal) {
    const keys = {
      confirm: () => this.#confirm(),
      undo: () => this.answering?.undo(),
      skip: () => this.answering?.skip(),
      keys: () => this.form && this.frame.on.keys(),
      press: (key) => this.task?.press(key) ?? false,
    };
    const isFree = () => !this.frame.dialogs.querySelector("dialog[open]");
    document.addEventListener("keydown", (event) => isFree() && pressed(event, this, keys), { signal });
    document.addEventListener("visibilitychange", () => this.#seenOrHidden(), { signal });
    addEventListener("pagehide", () => this.answering?.drafts.flush({ leaving: true }), { signal });
    addEventListener("storage", (event) => this.#heardFromOtherTab(event), { signal });
    addEventListener("focus", () => this.patience.wake(), { signal });
    addEventListener("offline", () => this.noteConnection(new Failure("unreachable", "")), { signal });
    addEventListener("online", () => this.#backOnline(), { signal });
  }

  // ---- Entering

  /** From nothing to the first screen; again where another person has logged in. */
  async enter() {
    this.answering?.delivery.stop();
    this.task = this.turn = this.progress = this.answering = null;
    this.#visit += 1;
    this.patience = new Patience();
    this.server = new Server(this.getAttribute("api") ?? "/api");
    await this.frame.isDressed;
    await this.attempt(async () => {
      const me = await this.insist(() => this.server.me());
      this.form = await this.insist(() => this.server.get("form"));
      this.mustRead = !me.guidelines_read;
      this.keep = new Keep(me.name);
      this.answering = new Answering(this, this.keep);
      this.frame.showPerson(me.name);
      if (me.paused !== null) return showPaused(this.frame, me.paused, () => this.enter());
      await this.answering.delivery.start();
      this.progress = await this.insist(() => this.#numbers());
      this.frame.showProgress(this.progress);
      return this.next();
    });
  }

  /** Do something, and show what went wrong if it did. */
  async attempt(act) {
    try {
      await act();
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (failure.kind === "stranger") {
        await this.enter();
        return;
      }
      this.task = this.turn = null;
      showTrouble(this.frame, failure.message);
    }
  }

  /** Ask until there is an answer. Where the element has left the page it waits for good. */
  async insist(ask) {
    const { signal } = this.#life;
    const { patience } = this;
    for (let tries = 0; ; tries++) {
      const { reply, failure } = await ask().then(
        (reply) => ({ reply }),
        (failure) => ({ failure }),
      );
      if (signal.aborted || patience !== this.patience) await new Promise(() => {});
      if (!failure) {
        this.noteConnection(null);
        return reply;
      }
      if (!failure.passes) throw failure;
      this.noteConnection(failure);
      if (failure.kind === "paused" && this.task === null) {
        showPaused(this.frame, failure.message, () => this.enter());
      }
      await patience.wait(tries, failure.retryAfter);
    }
  }

  #numbers() {
    return this.server.get(`progress?since=${midnight()}`);
  }

  /** An answer more: now and then the numbers come from the server, and whether the guidelines have changed. */
  async counted() {
    this.frame.showProgress(this.progress);
    this.#numSince += 1;
    if (this.#numSince < SYNC_EVERY) return;
    this.#numSince = 0;
    try {
      const me = await this.server.me();
      this.mustRead = !me.guidelines_read;
      this.progress = await this.#numbers();
      this.frame.showProgress(this.progress);
    } catch {
      this.#numSince = SYNC_EVERY; // with the next answer, then
    }
  }

  // ---- Connection

  /** Tell the person about the connection; null: a request went well. */
  noteConnection(failure) {
    if (failure === null && this.keep?.outbox().length) return;
    showConnection(this.frame, failure, this.server.loginAddress, isLasting());
  }

  #backOnline() {
    this.noteConnection(null);
    this.patience.wake();
  }

  #seenOrHidden() {
    if (document.hidden) this.answering?.drafts.flush({ leaving: true });
    else this.patience.wake();
  }

  #heardFromOtherTab(event) {
    const lease = this.keep?.doneElsewhere(event);
    if (!lease || lease !== this.turn?.lease || this.task?.state === "sending" || this.task?.isReview) return;
    this.frame.showToast("You have answered this task in another tab.");
    this.next();
  }

  // ---- Screens

  /** The task in hand, or the next one. */
  async next() {
    const visit = ++this.#visit;
    await this.attempt(async () => {
      const { turn } = await this.insist(() => this.server.post("next", {}));
      if (visit === this.#visit) await this.show(turn);
    });
  }

  /** An earlier answer, to change it. */
  async open(lease) {
    const visit = ++this.#visit;
    try {
      await this.answering.drafts.flush();
      const { turn } = await this.insist(() => this.server.post("open", { lease }));
      if (visit === this.#visit) await this.show(turn);
    } catch (failure) {
      if (!(failure instanceof Failure) || failure.kind === "stranger") throw failure;
      this.frame.showNotice(failure.message);
    }
  }

  /** Show a turn, or what comes before it; null: nothing is left. */
  async show(turn) {
    const visit = ++this.#visit;
    if (this.mustRead) this.form = await this.insist(() => this.server.get("form"));
    if (visit !== this.#visit) return;
    this.turn = turn;
    this.task = null;
    if (this.mustRead && this.form.guidelines_html.trim()) {
      showGuidelines(this.frame, this.form, this.progress.done > 0, () => this.#haveRead());
    } else if (turn === null) this.#rest(visit);
    else this.#showTask(turn);
  }

  #showTask(turn) {
    const { answering, frame } = this;
    const pending = answering.delivery.pending(turn.lease);
    const saved = startFrom(turn, this.keep, pending);
    this.clock.restart(Number(saved?.seconds) || 0);
    answering.isTouched = false;
    this.task = new TaskScreen(turn, this.form, saved, {
      changed: () => answering.changed(),
      say: (words) => frame.say(words),
      submit: () => answering.submit(),
      skip: () => answering.skip(),
      undo: () => answering.undo(),
      cancel: () => answering.cancel(),
      next: () => this.show(this.#afterFeedback),
    });
    this.task.showUndo(answering.canUndo);
    frame.show(this.task.element);
    this.task.showJump();
    if (pending) this.task.showState("waiting");
  }

  /** What a practice task's answer was worth; `reply` holds that and the turn after it. */
  showFeedback(reply) {
    this.#afterFeedback = reply.turn;
    this.task.showFeedback(reply.known);
  }

  async #haveRead() {
    await this.attempt(async () => {
      try {
        await this.insist(() => this.server.post("guidelines", { sha256: this.form.guidelines_sha256 }));
        this.mustRead = false;
      } catch (failure) {
        if (failure.kind !== "conflict") throw failure; // they have changed just now: they are shown anew
      }
      await this.next();
    });
  }

  /** Nothing is left: ask again now and then. */
  async #rest(visit) {
    const undo = this.answering.canUndo ? () => this.answering.undo() : null;
    showDone(this.frame, this.progress, { next: () => this.next(), undo });
    const { signal } = this.#life;
    while (visit === this.#visit && !signal.aborted) {
      await this.patience.wait(0, LOOK_AGAIN);
      if (visit !== this.#visit || signal.aborted) return;
      const { turn } = await this.server.post("next", {}).catch(() => ({ turn: null }));
      if (turn !== null && visit === this.#visit) await this.show(turn);
    }
  }

  #openHistory() {
    openHistory(
      this.frame.dialogs,
      () => this.server.get("history"),
      (lease) => this.attempt(() => this.open(lease)),
    );
  }

  async #leave() {
    await this.answering.drafts.flush();
    const go = () => this.server.leave().catch(() => this.noteConnection(new Failure("unreachable", "")));
    const num = this.keep.outbox().length;
    if (num) openLogout(this.frame.dialogs, num, go);
    else await go();
  }

  #confirm() {
    if (!this.task) return false;
    if (this.task.isReview) this.task.nextButton.click();
    else this.answering.submit();
    return true;
  }
}

customElements.define("ranking-desk", RankingDesk);
