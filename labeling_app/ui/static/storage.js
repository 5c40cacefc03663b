// What this browser keeps: answers until the server has acknowledged them, drafts, and how somebody likes the screen.

const PREFIX = "ranking-desk";
const MAX_AGE = 30 * 24 * 3600 * 1000; // ms after which a forgotten draft goes
const memory = new Map(); // where the browser keeps nothing (private windows, a full disk)

function read(key) {
  try {
    return memory.get(key) ?? localStorage.getItem(key);
  } catch {
    return memory.get(key) ?? null;
  }
}

function write(key, text) {
  try {
    localStorage.setItem(key, text);
    memory.delete(key);
  } catch {
    memory.set(key, text);
  }
}

function remove(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // Nothing is kept there, then.
  }
}

function keys(prefix) {
  const all = new Set(memory.keys());
  try {
    for (let at = 0; at < localStorage.length; at++) all.add(localStorage.key(at));
  } catch {
    // Nothing is kept there, then.
  }
  return [...all].filter((key) => key.startsWith(prefix));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Whether what was kept outlives this page. */
export const isLasting = () => memory.size === 0;

/** How somebody likes the screen, on this browser. */
export const preferences = {
  get: (name, fallback) => parsed(read(`${PREFIX}/likes/${name}`)) ?? fallback,
  set: (name, value) => write(`${PREFIX}/likes/${name}`, JSON.stringify(value)),
};

/** What is kept for one person. Each thing has a key of its own, so two tabs never overwrite one another's. */
export class Keep {
  constructor(name) {
    this.prefix = `${PREFIX}/${encodeURIComponent(name)}`;
    for (const key of keys(`${this.prefix}/draft/`)) {
      if (!(parsed(read(key))?.saved_at > Date.now() - MAX_AGE)) remove(key);
    }
  }

  /** What is not acknowledged yet, the oldest first: `{submission, path, lease, body, at}`. */
  outbox() {
    const items = keys(`${this.prefix}/outbox/`).map((key) => parsed(read(key)));
    return items.filter(Boolean).sort((one, other) => one.at - other.at);
  }

  putItem(item) {
    write(`${this.prefix}/outbox/${item.submission}`, JSON.stringify(item));
  }

  dropItem(submission) {
    remove(`${this.prefix}/outbox/${submission}`);
  }

  /** What was begun, with `saved_at` (ms) and `is_answered` (whether it changes an answer that stands). */
  draft(lease) {
    return parsed(read(`${this.prefix}/draft/${lease}`));
  }

  putDraft(lease, draft) {
    write(`${this.prefix}/draft/${lease}`, JSON.stringify(draft));
  }

  dropDraft(lease) {
    remove(`${this.prefix}/draft/${lease}`);
  }

  /** Tell other tabs that a task is done. */
  noteDone(lease) {
    write(`${this.prefix}/done`, JSON.stringify({ lease, at: Date.now() }));
  }

  /** The lease that another tab has just finished, from a storage event; null for other events. */
  doneElsewhere(event) {
    return event.key === `${this.prefix}/done` ? (parsed(event.newValue)?.lease ?? null) : null;
  }
}
