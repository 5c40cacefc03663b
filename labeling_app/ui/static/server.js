// The JSON API: one place that knows of tokens, timeouts and what each refusal means.

const TIMEOUT = 20_000; // ms

/**
 * Why a request got no answer.
 *
 * `kind`: "unreachable" (offline, too slow, 429, 5xx: send it again), "signed out" (401), "paused" (403), "stranger"
 * (another person has logged in meanwhile), "conflict" (409), "refused" (any other). `message` is a sentence.
 */
export class Failure extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter; // ms, where the server said so
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return ["unreachable", "signed out", "paused"].includes(this.kind);
  }
}

export class Server {
  #csrf = "";
  #isOut = false;

  /** @param base where the API is, as in "/api" */
  constructor(base) {
    this.base = base.replace(/\/$/, "");
    this.name = null; // whose session it is, once `me` has answered
  }

  /** Where to log in, and come back from. */
  get loginAddress() {
    const here = location.pathname + location.search;
    return `${this.base.replace(/\/api$/, "")}/login?next=${encodeURIComponent(here)}`;
  }

  /** Who is logged in; renews the token. */
  async me() {
    const me = await this.#request("GET", "me");
    if (this.name !== null && this.name !== me.name) {
      throw new Failure("stranger", `${me.name} has logged in on this browser.`);
    }
    this.name = me.name;
    this.#csrf = me.csrf;
    this.#isOut = false;
    return me;
  }

  async get(path) {
    if (this.#isOut) await this.me();
    return this.#request("GET", path);
  }

  /** A changing request. A token that has gone stale is renewed once. */
  async post(path, body, { keepalive = false } = {}) {
    if (this.#isOut) await this.me();
    try {
      return await this.#request("POST", path, body, keepalive);
    } catch (failure) {
      if (failure.kind !== "forbidden") throw failure;
    }
    const token = this.#csrf;
    const me = await this.me();
    if (me.paused !== null) throw new Failure("paused", me.paused);
    if (token === this.#csrf) throw new Failure("refused", "You may not do this. Please reload the page.");
    try {
      return await this.#request("POST", path, body, keepalive);
    } catch (failure) {
      if (failure.kind === "forbidden") throw new Failure("refused", failure.message);
      throw failure;
    }
  }

  /** Log out, then go to the login page. */
  async leave() {
    const address = `${this.base.replace(/\/api$/, "")}/logout`;
    await fetch(address, { method: "POST", headers: { "X-CSRF-Token": this.#csrf } });
    location.assign(this.loginAddress);
  }

  async #request(method, path, body, keepalive = false) {
    const headers = { Accept: "application/json" };
    if (method === "POST") Object.assign(headers, { "Content-Type": "application/json", "X-CSRF-Token": this.#csrf });
    let reply, content;
    try {
      reply = await fetch(`${this.base}/${path}`, {
        method,
        headers,
        keepalive,
        cache: "no-store",
        body: method === "POST" ? JSON.stringify(body) : undefined,
        signal: AbortSignal.timeout(TIMEOUT),
      });
      content = await reply.json().catch(() => null);
    } catch {
      throw new Failure("unreachable", "No connection.");
    }
    // A page instead of JSON comes from something in between, such as the login page of a hotel's network.
    if (reply.ok && content !== null) return content;
    const message = content?.error ?? `The server said ${reply.status}.`;
    if (reply.ok || reply.status >= 500 || reply.status === 429) {
      const seconds = Number(reply.headers.get("Retry-After"));
      throw new Failure("unreachable", message, seconds > 0 ? seconds * 1000 : null);
    }
    if (reply.status === 401) this.#isOut = true;
    throw new Failure({ 401: "signed out", 403: "forbidden", 409: "conflict" }[reply.status] ?? "refused", message);
  }
}

const DELAYS = [500, 1000, 2000, 4000, 8000, 16_000, 30_000]; // ms

/** Waiting before the next try: longer each time, cut short when there is reason to think that it works again. */
export class Patience {
  #waiting = new Set();

  /** Resolves after the delay of that try, or on `wake`. */
  wait(tries, retryAfter = null) {
    const spread = 0.75 + Math.random() / 2; // so that a hundred browsers do not come back at once
    const delay = retryAfter ?? DELAYS[Math.min(tries, DELAYS.length - 1)] * spread;
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, delay);
      this.#waiting.add(done);
    });
  }

  wake() {
    for (const done of [...this.#waiting]) done();
  }
}
