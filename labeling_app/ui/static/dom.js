// Building blocks of every screen: elements, icons, sanitised texts. No state.

/**
 * An element with attributes, listeners (`onclick: f`) and children. Strings become text, never markup.
 * Attributes that are null, undefined or false are left out.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  book: "M12 6.5C10 5 7 4.5 4 4.5v14c3 0 6 .5 8 2 2-1.5 5-2 8-2v-14c-3 0-6 .5-8 2zm0 0v14",
  list: "M9 6h11M9 12h11M9 18h11M4.5 6h.01M4.5 12h.01M4.5 18h.01",
  keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
  undo: "M8 5 4 9l4 4M4 9h10a5 5 0 0 1 0 10h-3",
  up: "M12 19V5m-6 6 6-6 6 6",
  down: "M12 5v14m-6-6 6 6 6-6",
  close: "M6 6l12 12M18 6 6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  equal: "M6 9.5h12M6 14.5h12",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  columns: "M4 5h7v14H4zM13 5h7v14h-7z",
  rows: "M4 5h16v6H4zM4 13h16v6H4z",
  flag: "M6 21V4h11l-2 4 2 4H6",
  pen: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  warning: "M12 4 2.5 20h19zM12 10v4M12 17h.01",
  pause: "M9 5v14M15 5v14",
  skip: "M5 6l7 6-7 6zM14 6l7 6-7 6z",
};

/** A drawing beside words that say the same: a screen reader passes over it. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

/** A key to press, as drawn on screen. Names of controls leave it out. */
export const keycap = (text) => make("kbd", { "aria-hidden": "true" }, text);

// An element with dir="auto" passes over children that have a `dir` of their own: what holds others is told by us.
const BLOCKS = "p, h4, h5, h6, td, th, dt, dd, summary";
const HOLDERS = "ul, ol, dl, blockquote, table";
const RIGHT_TO_LEFT = /^\P{L}*[\p{sc=Hebr}\p{sc=Arab}\p{sc=Syrc}\p{sc=Thaa}\p{sc=Nkoo}\p{sc=Adlm}]/u;

/** Text that the server has sanitised: fit to read, in its own direction, wide parts scrolling on their own. */
export function prose(html, name) {
  const box = make("div", { class: "prose" });
  box.innerHTML = html;
  // Headings inside a text come below the page's own (h1 to h3), so that one can move by headings.
  for (const heading of box.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    heading.replaceWith(make(`h${Math.min(6, Number(heading.tagName[1]) + 3)}`, {}, ...heading.childNodes));
  }
  for (const block of box.querySelectorAll(BLOCKS)) block.dir = "auto";
  for (const holder of [box, ...box.querySelectorAll(HOLDERS)]) {
    holder.dir = RIGHT_TO_LEFT.test(holder.textContent) ? "rtl" : "ltr";
  }
  for (const link of box.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of box.querySelectorAll("table")) {
    const frame = make("div", { class: "wide" });
    table.replaceWith(frame);
    frame.append(table);
  }
  // What scrolls sideways must be reachable by keyboard, and then it needs a name.
  for (const wide of box.querySelectorAll("pre, .wide")) {
    wide.tabIndex = 0;
    wide.setAttribute("role", "group");
    wide.setAttribute("aria-label", `${wide.tagName === "PRE" ? "Code" : "Table"} in ${name}`);
    if (wide.tagName === "PRE") wide.dir = "ltr";
  }
  return box;
}

/** A text box that grows with its text. */
export function textBox(attributes, value, onChange) {
  const box = make("textarea", { dir: "auto", rows: 2, ...attributes });
  box.value = value;
  const grow = () => {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  };
  box.addEventListener("input", () => {
    grow();
    onChange(box.value);
  });
  if (value) requestAnimationFrame(grow);
  return box;
}
