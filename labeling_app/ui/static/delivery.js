// Answers and drafts on their way to the server. Nothing that somebody did is dropped before it is acknowledged.

const DRAFT_DELAY = 600; // ms
const MAX_KEEPALIVE = 60_000; // bytes that a browser sends for a page that is closing

/** A random UUID; `crypto.randomUUID` is absent where a page comes over plain http. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** Sends the outbox, one after the other, until the server has acknowledged all of it. */
export class Delivery {
  #isRunning = false;
  #isStopped = false;

  /**
   * @param on `{delivered(item, reply), refused(item, failure), waiting(failure), stranger()}`
   */
  constructor(server, keep, patience, on) {
    Object.assign(this, { server, keep, patience, on });
  }

  /** What waits for the server about a task, else null. */
  pending(lease) {
    return this.keep.outbox().find((item) => item.lease === lease) ?? null;
  }

  /** Resolves when the outbox is empty, or the first try has failed. */
  async start() {
    if (this.#isRunning || this.#isStopped) return;
    this.#isRunning = true;
    let tries = 0;
    let failed;
    const first = new Promise((resolve) => (failed = resolve));
    const run = async () => {
      for (let item; !this.#isStopped && (item = this.keep.outbox()[0]);) {
        const failure = await this.#send(item);
        if (failure === null) {
          tries = 0;
          continue;
        }
        if (failure.kind === "stranger") {
          this.stop();
          this.on.stranger();
          break;
        }
        this.on.waiting(failure, item);
        failed();
        await this.patience.wait(tries++, failure.retryAfter);
      }
      this.#isRunning = false;
    };
    await Promise.race([run(), first]);
  }

  stop() {
    this.#isStopped = true;
  }

  /** Null when the item is off the outbox, else why it has to wait. */
  async #send(item) {
    let reply;
    try {
      reply = await this.server.post(item.path, item.body);
    } catch (failure) {
      if (failure.passes || failure.kind === "stranger") return failure;
      this.keep.dropItem(item.submission);
      if (!this.#isStopped) this.on.refused(item, failure);
      return null;
    }
    this.keep.dropItem(item.submission);
    this.keep.dropDraft(item.lease);
    this.keep.noteDone(item.lease);
    if (!this.#isStopped) this.on.delivered(item, reply);
    return null;
  }
}

/** Drafts: into the browser at once, to the server when the hands rest. */
export class Drafts {
  #timer = null;
  #unsent = null; // what the server has not got
  #sending = Promise.resolve();
  #last = 0;
  #task = 0; // counts `settle`: what failed before it is not sent again

  /** @param onFailure what is told why a draft did not arrive */
  constructor(server, keep, patience, onFailure) {
    Object.assign(this, { server, keep, patience, onFailure });
  }

  note(lease, draft, isAnswered) {
    // The clock of this computer, but never the same twice: the newest wins.
    this.#last = Math.max(Date.now(), this.#last + 1);
    const dated = { ...draft, saved_at: this.#last, is_answered: isAnswered };
    this.keep.putDraft(lease, dated);
    this.#unsent = { lease, version: this.#last, draft: dated };
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), DRAFT_DELAY);
  }

  /** Send what is unsent. With `leaving`, in a way that outlives the page. */
  flush({ leaving = false } = {}) {
    clearTimeout(this.#timer);
    const body = this.#unsent;
    this.#unsent = null;
    if (body === null) return this.#sending;
    const task = this.#task;
    const keepalive = leaving && new TextEncoder().encode(JSON.stringify(body)).length < MAX_KEEPALIVE;
    this.#sending = this.server.post("draft", body, { keepalive }).then(
      () => this.onFailure(null),
      async (failure) => {
        if (!failure.passes || task !== this.#task) return;
        this.#unsent ??= body;
        this.onFailure(failure);
        clearTimeout(this.#timer);
        this.patience.wait(3, failure.retryAfter).then(() => this.flush());
      },
    );
    return this.#sending;
  }

  /** Forget what is unsent, since the answer itself goes out; resolves when no draft can overtake it. */
  async settle() {
    clearTimeout(this.#timer);
    this.#unsent = null;
    this.#task += 1;
    await Promise.race([this.#sending, new Promise((resolve) => setTimeout(resolve, 1500))]);
  }
}

/** What to start a task from: what waits to be sent, else the newer of the browser's and the server's drafts. */
export function startFrom(turn, keep, pending) {
  const local = keep.draft(turn.lease);
  if (pending?.path === "submit" && !(local?.saved_at > pending.at))
    return { ...pending.body.answer, seconds: pending.body.seconds };
  // An answer that stands is newer than what was begun before it.
  const isStale = local === null || (turn.is_answered && !local.is_answered);
  return isStale || (turn.draft?.saved_at ?? 0) > local.saved_at ? turn.draft : local;
}
