// Time on task: what the page was visible and somebody there.

const IDLE = 60_000; // ms without a sign of life after which the clock stands
const SIGNS = ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchmove"];

export class Clock {
  #spent = 0; // ms
  #since = null; // the last sign of life; null while the page is hidden

  /** @param signal ends the listening */
  constructor(signal) {
    for (const sign of SIGNS) addEventListener(sign, () => this.#mark(), { passive: true, capture: true, signal });
    document.addEventListener("visibilitychange", () => this.#mark(), { signal });
    this.restart();
  }

  /** Count anew, from `seconds` on. */
  restart(seconds = 0) {
    this.#spent = seconds * 1000;
    this.#since = document.hidden ? null : performance.now();
  }

  /** Seconds so far, to the tenth. */
  get seconds() {
    return Math.round((this.#spent + this.#running()) / 100) / 10;
  }

  #running() {
    return this.#since === null ? 0 : Math.min(performance.now() - this.#since, IDLE);
  }

  #mark() {
    this.#spent += this.#running();
    this.#since = document.hidden ? null : performance.now();
  }
}
