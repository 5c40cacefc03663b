// From the screen into the outbox, and what the server makes of it.

import { Delivery, Drafts, uuid } from "./delivery.js";
import { openSkip } from "./dialogs.js";

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** One person's answers. The desk has the screen: `turn`, `task` and `progress` are what it shows now. */
export class Answering {
  constructor(desk, keep) {
    this.desk = desk;
    this.keep = keep;
    this.last = null; // the lease of the last answer, which undo opens
    this.isTouched = false; // whether something was changed in this turn
    this.drafts = new Drafts(desk.server, keep, desk.patience, (failure) => desk.noteConnection(failure));
    this.delivery = new Delivery(desk.server, keep, desk.patience, {
      delivered: (item, reply) => this.#delivered(item, reply),
      refused: (item, failure) => this.#refused(item, failure),
      waiting: (failure, item) => this.#waits(failure, item),
      stranger: () => desk.enter(),
    });
  }

  get canUndo() {
    return this.last !== null || (this.desk.progress?.done ?? 0) > 0;
  }

  /** Whether an answer may be given to what is on screen now. */
  get #isOpen() {
    const { task } = this.desk;
    return task !== null && !task.isReview && task.state !== "sending";
  }

  changed() {
    const { task, turn } = this.desk;
    if (task.isReview) return;
    this.isTouched = true;
    const answer = task.judgement.toAnswer();
    const pending = this.delivery.pending(turn.lease);
    if (task.state !== "sending") task.showState(pending && same(pending.body.answer, answer) ? "waiting" : "open");
    this.drafts.note(turn.lease, { ...answer, seconds: this.desk.clock.seconds }, turn.is_answered);
  }

  submit() {
    const { task, turn } = this.desk;
    if (!this.#isOpen || !task.check()) return;
    const answer = task.judgement.toAnswer();
    const pending = this.delivery.pending(turn.lease);
    if (pending && same(pending.body.answer, answer)) {
      this.desk.patience.wake();
      return;
    }
    // What waited is replaced. Should it have arrived after all, this one changes it.
    const edit = turn.is_answered || pending !== null;
    this.#send("submit", { answer, seconds: this.desk.clock.seconds, edit }, pending);
  }

  skip() {
    const { task, turn, form, frame } = this.desk;
    if (!this.#isOpen || task.isPractice) return;
    openSkip(frame.dialogs, form, turn.is_answered, (reason, note) => {
      if (this.desk.turn === turn) this.#send("skip", { reason, note }, this.delivery.pending(turn.lease));
    });
  }

  /** Into the outbox first, then on its way. */
  async #send(path, body, replaced) {
    const { lease } = this.desk.turn;
    const submission = uuid();
    this.keep.putItem({ submission, path, lease, at: Date.now(), body: { submission, lease, ...body } });
    if (replaced) this.keep.dropItem(replaced.submission);
    this.desk.task.showState("sending");
    await this.drafts.settle();
    this.delivery.start();
    this.desk.patience.wake();
  }

  // ---- What came back

  #isOnScreen(item) {
    const { task, turn } = this.desk;
    return task !== null && turn?.lease === item.lease && !task.isReview;
  }

  #delivered(item, reply) {
    const { desk } = this;
    desk.noteConnection(null);
    const isPractice = Boolean(reply.known);
    this.#count(item, isPractice);
    if (item.path === "submit" && !isPractice) this.last = item.lease;
    if (!this.#isOnScreen(item)) {
      desk.frame.showToast("An answer that was kept here is saved.");
      return;
    }
    if (this.delivery.pending(item.lease)) return; // changed meanwhile, and the change is on its way
    if (isPractice) {
      desk.showFeedback(reply);
    } else if (item.path === "submit" && !same(item.body.answer, desk.task.judgement.toAnswer())) {
      desk.turn.is_answered = true;
      desk.task.showState("open");
      this.changed();
      desk.frame.showToast("Saved as it was. Submit again to save what you have changed since.");
    } else {
      if (item.path === "skip") desk.frame.showToast("Skipped");
      else desk.frame.showToast("Saved", { label: "Undo", act: () => this.undo(item.lease) });
      desk.show(reply.turn);
    }
  }

  #count(item, isPractice) {
    const { progress } = this.desk;
    if (!progress) return;
    if (isPractice) progress.practice_left = Math.max(0, progress.practice_left - 1);
    else if (!item.body.edit) {
      progress.done += item.path === "submit";
      progress.today += item.path === "submit";
      progress.left = Math.max(0, progress.left - 1);
    }
    this.desk.counted();
  }

  #refused(item, failure) {
    const { desk } = this;
    const isOnScreen = this.#isOnScreen(item);
    if (failure.kind === "conflict") {
      this.keep.dropDraft(item.lease);
      desk.frame.clearNotice();
      desk.frame.showToast(failure.message);
      if (isOnScreen) desk.next();
      return;
    }
    // What was written stays on screen and as a draft.
    const words = isOnScreen ? failure.message : `An answer that was kept here was not taken: ${failure.message}`;
    desk.frame.showNotice(words);
    if (isOnScreen) desk.task.showState("open");
  }

  #waits(failure, item) {
    this.desk.noteConnection(failure);
    if (this.#isOnScreen(item) && this.desk.task.state === "sending") this.desk.task.showState("waiting");
  }

  // ---- Going back

  /** Reopen the last answer. */
  async undo(lease = this.last) {
    const { task, turn } = this.desk;
    if ((task && !this.#isOpen) || turn?.is_answered || !this.canUndo) return;
    await this.desk.attempt(async () => {
      const wanted = lease ?? (await this.desk.insist(() => this.desk.server.get("history"))).answers[0]?.lease;
      if (wanted) await this.desk.open(wanted);
    });
  }

  /** Leave an earlier answer as it was. */
  async cancel() {
    const { turn } = this.desk;
    if (this.isTouched && turn.draft) {
      // The server's draft goes back to what stands, so that the next look shows it.
      this.drafts.note(turn.lease, turn.draft, true);
      await this.drafts.flush();
    }
    this.keep.dropDraft(turn.lease);
    await this.desk.next();
  }
}
