// What one person says about the task on screen. Positions count from 0 in the order on screen. No DOM.

export const MAX_TEXT = 50_000; // characters that the server takes of a reason or of a better answer
export const MAX_RATING = 4;

/** A, B, ... Z, AA: what the response at a position is called on screen. */
export function letter(position) {
  return (position >= 26 ? letter(Math.floor(position / 26) - 1) : "") + String.fromCharCode(65 + (position % 26));
}

/** 1st, 2nd, 3rd, 4th ... */
export function ordinal(rank) {
  const teen = rank % 100 >= 11 && rank % 100 <= 13;
  return rank + ((!teen && ["th", "st", "nd", "rd"][rank % 10]) || "th");
}

/** Characters as the server counts them: code points. */
export const numCharacters = (text) => (text.length > MAX_TEXT ? Array.from(text).length : text.length);

/** Groups of positions, best first, from ranks (null: not placed yet). */
function groupsOf(ranks) {
  const places = [...new Set(ranks.filter(Number.isInteger))].sort((a, b) => a - b);
  return places.map((place) => ranks.flatMap((rank, position) => (rank === place ? [position] : [])));
}

const joined = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

/** "B, then A and C tied": an order in words. */
export function orderInWords(groups) {
  const steps = groups.map((group) => joined(group.map(letter)) + (group.length > 1 ? " tied" : ""));
  return steps.join(", then ");
}

/** What a stored or a right answer says, in words. */
export function verdictInWords(ranks, bothBad = false) {
  if (bothBad) return ranks.length === 2 ? "Both are bad" : "All are bad";
  const groups = groupsOf(ranks);
  if (groups.length === 1) return ranks.length === 2 ? "A tie" : "All tied";
  return ranks.length === 2 ? `${letter(groups[0][0])} is better` : orderInWords(groups);
}

export class Judgement {
  /**
   * @param num responses on screen
   * @param form GET /api/form
   * @param saved a draft or an earlier answer, else null; parts that do not fit the form are left out
   */
  constructor(num, form, saved = null) {
    this.num = num;
    this.form = form;
    this.asksStrength = num === 2 && form.strength;
    this.groups = []; // positions, best first; one group is a tie
    this.tieNext = false; // whether the next one placed ties with the last one
    this.strength = null;
    this.bothBad = false;
    this.flags = Array.from({ length: num }, () => new Set());
    this.ratings = Array.from({ length: num }, () => ({}));
    this.reason = "";
    this.betterAnswer = "";
    this.before = []; // the order before "all are bad"
    if (saved) this.#restore(saved);
  }

  #restore(saved) {
    const ranks = Array.isArray(saved.ranks) && saved.ranks.length === this.num ? saved.ranks : [];
    this.groups = groupsOf(ranks);
    this.bothBad = Boolean(saved.both_bad && this.form.both_bad && this.groups.length === 1 && this.isPlacedAll);
    if (this.asksStrength && this.isPlacedAll) {
      this.strength = this.groups.length === 1 ? 0 : saved.strength;
      if (!(this.strength === 0 || [1, 2, 3].includes(this.strength))) this.groups = [];
    }
    const flags = new Set(this.form.flags.map((flag) => flag.id));
    const attributes = new Set(this.form.attributes.map((attribute) => attribute.id));
    for (let position = 0; position < this.num; position++) {
      this.flags[position] = new Set((saved.flags?.[position] ?? []).filter((id) => flags.has(id)));
      const ratings = Object.entries(saved.ratings?.[position] ?? {}).filter(([id]) => attributes.has(id));
      this.ratings[position] = Object.fromEntries(ratings);
    }
    if (this.form.reason !== "off") this.reason = String(saved.reason ?? "");
    if (this.form.better_answer) this.betterAnswer = String(saved.better_answer ?? "");
  }

  // ---- Reading

  get placed() {
    return this.groups.flat();
  }

  get unplaced() {
    const placed = new Set(this.placed);
    return Array.from({ length: this.num }, (_, position) => position).filter((position) => !placed.has(position));
  }

  get isPlacedAll() {
    return this.placed.length === this.num;
  }

  /** Whether the order is all there (a required reason is asked about apart). */
  get isComplete() {
    return this.isPlacedAll && (!this.asksStrength || this.strength !== null);
  }

  /** 1 is best, equal is a tie, null is not placed. */
  rankOf(position) {
    const at = this.groups.findIndex((group) => group.includes(position));
    return at < 0 ? null : at + 1;
  }

  /** Of a pair: "bad", or -3 (A much better) ... 0 (tie) ... 3 (B much better); null: none yet. */
  get choice() {
    if (!this.isComplete) return null;
    if (this.bothBad) return "bad";
    if (this.groups.length === 1) return 0;
    return (this.asksStrength ? this.strength : 1) * (this.groups[0][0] === 0 ? -1 : 1);
  }

  /** What stands, in words, for the screen and for screen readers. */
  get words() {
    if (this.bothBad || this.num > 2) {
      return this.isPlacedAll ? verdictInWords(this.ranks, this.bothBad) : orderInWords(this.groups);
    }
    return this.choice === null ? "" : choiceInWords(this.choice, this.asksStrength);
  }

  get ranks() {
    return Array.from({ length: this.num }, (_, position) => this.rankOf(position));
  }

  /** As the server takes it; `ranks` holds nulls while it is a draft. */
  toAnswer() {
    return {
      ranks: this.ranks,
      strength: this.asksStrength ? this.strength : null,
      both_bad: this.bothBad,
      flags: this.flags.map((set) => this.form.flags.map((flag) => flag.id).filter((id) => set.has(id))),
      ratings: this.ratings.map((ratings) => ({ ...ratings })),
      reason: this.reason,
      better_answer: this.betterAnswer,
    };
  }

  // ---- Changing the order

  /** The answer to a pair; see `choice`. */
  choose(choice) {
    this.bothBad = choice === "bad";
    const signed = this.bothBad ? 0 : choice;
    this.groups = signed === 0 ? [[0, 1]] : signed < 0 ? [[0], [1]] : [[1], [0]];
    this.strength = this.asksStrength ? Math.abs(signed) : null;
  }

  /** Put a response next in the order; false where it has a place already. */
  place(position) {
    if (this.bothBad) this.setAllBad(false);
    if (this.rankOf(position) !== null) return false;
    if (this.tieNext && this.groups.length) this.groups.at(-1).push(position);
    else this.groups.push([position]);
    this.tieNext = false;
    return true;
  }

  /** `=`: the next one ties with the last; with all in place, the last one with the one before it. */
  tie() {
    if (this.bothBad || !this.groups.length) return false;
    if (!this.isPlacedAll) {
      this.tieNext = !this.tieNext;
      return true;
    }
    return this.toggleTie(this.placed.at(-1));
  }

  /** Take a response out of the order. */
  take(position) {
    this.bothBad = false;
    this.groups = this.groups
      .map((group) => group.filter((other) => other !== position))
      .filter((group) => group.length);
    this.tieNext = this.tieNext && this.groups.length > 0;
  }

  /** Backspace: the last step, be it "all are bad", `=` or a response. */
  takeLast() {
    if (this.bothBad) return this.setAllBad(false);
    if (this.tieNext) this.tieNext = false;
    else if (this.groups.length) this.take(this.placed.at(-1));
    return undefined;
  }

  /** One step up: out of a tie first, then past the group above. */
  up(position) {
    const at = this.rankOf(position) - 1;
    if (this.groups[at].length > 1) {
      this.groups[at] = this.groups[at].filter((other) => other !== position);
      this.groups.splice(at, 0, [position]);
    } else if (at > 0) {
      this.groups.splice(at - 1, 0, ...this.groups.splice(at, 1));
    } else return false;
    return this.#ordered();
  }

  /** One step down: out of a tie first, then past the group below. */
  down(position) {
    const at = this.rankOf(position) - 1;
    if (this.groups[at].length > 1) {
      this.groups[at] = this.groups[at].filter((other) => other !== position);
      this.groups.splice(at + 1, 0, [position]);
    } else if (at < this.groups.length - 1) {
      this.groups.splice(at + 1, 0, ...this.groups.splice(at, 1));
    } else return false;
    return this.#ordered();
  }

  /** Whether a response ties with the one above it on the ladder. */
  isTiedWithAbove(position) {
    return this.groups.some((group) => group.indexOf(position) > 0);
  }

  /** Tie with the one above on the ladder, or part from it; false for the topmost. */
  toggleTie(position) {
    const at = this.rankOf(position) - 1;
    const within = this.groups[at].indexOf(position);
    if (within > 0) this.groups.splice(at, 1, this.groups[at].slice(0, within), this.groups[at].slice(within));
    else if (at > 0) this.groups.splice(at - 1, 2, [...this.groups[at - 1], ...this.groups[at]]);
    else return false;
    return this.#ordered();
  }

  /** Drag: onto another one (a tie with it). */
  dropOn(position, other) {
    if (position === other) return;
    this.take(position);
    this.groups[this.rankOf(other) - 1].push(position);
  }

  /** Drag: into the gap above the `gap`-th entry of the ladder; inside a tie it joins that tie. */
  dropAt(position, gap) {
    const above = this.placed.slice(0, gap).filter((other) => other !== position);
    const below = this.placed.slice(gap).filter((other) => other !== position);
    this.take(position);
    const at = above.length ? this.rankOf(above.at(-1)) : 0; // groups up to here stay above
    if (above.length && below.length && this.rankOf(below[0]) === at) {
      this.groups[at - 1].splice(this.groups[at - 1].indexOf(below[0]), 0, position);
    } else this.groups.splice(at, 0, [position]);
  }

  /** "All are bad" is a tie of all; taken back, the order before it returns. */
  setAllBad(isBad) {
    if (isBad && !this.bothBad) {
      this.before = this.groups;
      this.groups = [Array.from({ length: this.num }, (_, position) => position)];
    } else if (!isBad && this.bothBad) this.groups = this.before;
    this.bothBad = isBad;
    this.tieNext = false;
  }

  #ordered() {
    this.bothBad = false;
    return true;
  }
}

const STRENGTHS = { 1: "slightly better", 2: "better", 3: "much better" };

/** What a step of the pair's scale means. */
export function choiceInWords(choice, asksStrength) {
  if (choice === "bad") return "Both are bad";
  if (choice === 0) return "A tie";
  return `${choice < 0 ? "A" : "B"} is ${asksStrength ? STRENGTHS[Math.abs(choice)] : "better"}`;
}
