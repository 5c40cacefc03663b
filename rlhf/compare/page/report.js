"use strict";
// Every text is set with textContent: what a model wrote is never markup.
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const plain = (node) => (node ? node.textContent.replace(/\s+/g, " ").trim() : "");

// ---- Downloads: every figure as SVG, every table as CSV.
(() => {
  const SVG = document.querySelector("svg")?.namespaceURI;
  const STYLES = [
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "paint-order", "font-family", "font-size",
    "font-weight", "text-anchor",
  ];

  const drawn = (tag, attributes, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // A copy that needs no stylesheet: what the page's style gave is written on each element.
  const standalone = (svg) => {
    const copy = svg.cloneNode(true);
    const copies = [copy, ...copy.querySelectorAll("*")];
    [svg, ...svg.querySelectorAll("*")].forEach((node, index) => {
      copies[index].removeAttribute("class");
      if (node.matches("title, g")) return;
      const style = getComputedStyle(node);
      for (const name of node === svg ? ["font-family"] : STYLES) copies[index].setAttribute(name, style.getPropertyValue(name));
    });
    return copy;
  };

  const words = (node, x, y, anchor) => {
    const style = getComputedStyle(node);
    return drawn("text", {
      x, y, "text-anchor": anchor, fill: style.color, "font-family": style.fontFamily, "font-size": style.fontSize,
      "font-weight": style.fontWeight,
    }, plain(node));
  };

  // A chart of the measures is rows of words and strips: as one drawing, one under another.
  const composed = (figure) => {
    const width = 640, margin = 16;
    const all = drawn("svg", {});
    all.append(words(figure.querySelector("h3"), margin, 28, "start"));
    let y = 44;
    const place = (svg, height) => {
      const copy = standalone(svg);
      for (const [name, value] of [["x", margin], ["y", y], ["width", width - 2 * margin], ["height", height]]) {
        copy.setAttribute(name, value);
      }
      all.append(copy);
      y += height;
    };
    for (const row of figure.querySelectorAll(".row")) {
      all.append(words(row.querySelector(".name"), margin, y + 16, "start"));
      all.append(words(row.querySelector(".value"), width - margin, y + 16, "end"));
      y += 22;
      place(row.querySelector("svg"), 26);
      y += 6;
    }
    place(figure.querySelector("svg.axis"), 20);
    all.setAttribute("viewBox", `0 0 ${width} ${y + 12}`);
    return all;
  };

  const figureText = (figure) => {
    const root = document.documentElement;
    root.classList.add("paper"); // the colours of paper, whatever the screen has
    try {
      const rows = figure.querySelector(".row");
      const svg = rows ? composed(figure) : standalone(figure.querySelector("svg.wide") || figure.querySelector("svg"));
      const [, , width, height] = svg.getAttribute("viewBox").split(" ");
      for (const [name, value] of [["width", width], ["height", height]]) svg.setAttribute(name, value);
      svg.setAttribute("xmlns", SVG);
      svg.prepend(drawn("rect", { width, height, fill: "#ffffff" }));
      return `${new XMLSerializer().serializeToString(svg)}\n`;
    } finally {
      root.classList.remove("paper");
    }
  };

  // As rlhf.compare.tables guards the files on disk: no spreadsheet runs a cell. A plain number stays one.
  const cellText = (cell) => {
    const text = plain(cell);
    const guarded = /^[=+\-@]/.test(text) && !/^-?[\d.,]+%?$/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
  };
  const tableText = (table) => [...table.rows].map((row) => `${[...row.cells].map(cellText).join(",")}\n`).join("");

  const save = (name, type, text) => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // What a figure or table is about: its own words, or those of the headings above it.
  const titleOf = (node) => {
    const own = node.dataset.name || plain(node.querySelector("h3, caption"));
    const section = node.closest("section") || document.querySelector("main");
    const heads = [...section.querySelectorAll("h2, h3, summary")].filter((head) => (
      !head.closest("figure") && head.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING
      && (head.tagName !== "SUMMARY" || head.parentElement.contains(node))
    ));
    const sub = heads.filter((head) => head.tagName === "H3").slice(-1);
    const inner = heads.filter((head) => head.tagName === "SUMMARY");
    return [plain(section.querySelector("h2")), ...sub.map(plain), ...inner.map((one) => plain(one).replace(/ \(\d+\)$/, "")), own].filter(Boolean).join(", ");
  };

  const taken = new Map();
  const fileName = (title, ending) => {
    const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 90).replace(/^-|-$/g, "") || "report";
    const count = (taken.get(name + ending) || 0) + 1;
    taken.set(name + ending, count);
    return `${name}${count > 1 ? `-${count}` : ""}.${ending}`;
  };

  const addButton = (node, kind, type, textOf) => {
    const title = titleOf(node), name = fileName(title, kind.toLowerCase());
    const button = element("button", "download", kind);
    button.type = "button";
    button.setAttribute("aria-label", `Download ${title} as ${kind}`);
    button.addEventListener("click", () => save(name, type, textOf(node)));
    return button;
  };

  document.querySelectorAll("main figure:has(svg)").forEach((figure) => {
    figure.append(addButton(figure, "SVG", "image/svg+xml", figureText));
  });
  document.querySelectorAll("main table").forEach((table) => {
    const box = element("div", "scroll");
    const button = addButton(table, "CSV", "text/csv", tableText);
    table.replaceWith(box);
    box.append(table);
    box.after(button);
  });
})();

// ---- Paper: what is folded is opened for it, and folded again.
(() => {
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    folded = [];
  });
})();

// ---- The browser of texts: one prompt at a time, so that thousands cost nothing.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("texts-data").textContent);
  const section = find("texts"), search = find("texts-search"), show = find("texts-show"), order = find("texts-order");
  const card = find("texts-card");
  const defaults = { search: "", show: "all", order: "file" };
  let found = [], position = 0;

  data.prompts.forEach((prompt, at) => {
    const responses = prompt.policies.flat();
    prompt.at = at;
    prompt.longest = Math.max(...responses.map((one) => one.tokens));
    prompt.unfinished = responses.some((one) => one.finished === false);
    prompt.flagged = prompt.flags.some((reasons) => reasons.length);
  });

  // Lowered only when somebody searches.
  const searched = (prompt) => {
    if (prompt.searched === undefined) {
      const texts = [prompt.id, ...prompt.messages.map((turn) => turn[1]), ...prompt.policies.flat().map((one) => one.text)];
      prompt.searched = texts.join("\n").toLowerCase();
    }
    return prompt.searched;
  };

  const isBest = (prompt, judge, policy) => prompt.best[judge].length === 1 && prompt.best[judge][0] === policy;
  const choices = new Map();
  const choice = (key, label, keep) => {
    const count = data.prompts.filter(keep).length;
    const option = element("option", "", `${label} (${count})`);
    option.value = key;
    show.append(option);
    choices.set(key, keep);
  };
  choice("all", "every prompt", () => true);
  if (data.judges.length > 1 && data.policies.length > 1) choice("disagree", "where judges disagree", (prompt) => prompt.disagree);
  choice("unfinished", "with an unfinished response", (prompt) => prompt.unfinished);
  const reasons = [...new Set(data.prompts.flatMap((prompt) => prompt.flags.flat()))];
  if (reasons.length) choice("flagged", "flagged", (prompt) => prompt.flagged);
  if (reasons.length > 1) {
    for (const why of reasons) choice(`flagged:${why}`, `flagged: ${why}`, (prompt) => prompt.flags.some((one) => one.includes(why)));
  }
  if (data.policies.length > 1) {
    for (const judge of data.judges) {
      data.policies.forEach((name, policy) => {
        choice(`best:${judge.key}:${policy}`, `${name} is best by ${judge.label}`, (prompt) => isBest(prompt, judge.key, policy));
      });
      choice(`tie:${judge.key}`, `a tie by ${judge.label}`, (prompt) => prompt.best[judge.key].length > 1);
    }
  }

  const orders = {
    file: (a, b) => a.at - b.at,
    difference: (a, b) => b.difference - a.difference || a.at - b.at,
    contradiction: (a, b) => b.contradiction - a.contradiction || a.at - b.at,
    longest: (a, b) => b.longest - a.longest || a.at - b.at,
  };
  if (!choices.has("disagree")) order.querySelector("[value=contradiction]").remove();

  const textBlock = (text) => {
    const block = element("p", text ? "text" : "text empty", text || "(empty)");
    block.dir = "auto";
    return block;
  };

  const marksOf = (prompt, policy) => {
    const marks = element("div", "marks");
    if (data.policies.length > 1) {
      data.judges.forEach((judge, index) => {
        const best = prompt.best[judge.key];
        if (!best.includes(policy)) return;
        const tied = best.length > 1;
        const text = tied ? `tied by ${judge.label}` : `best by ${judge.label}`;
        marks.append(element("span", index > 0 || tied ? "mark other" : "mark", text));
      });
    }
    for (const why of prompt.flags[policy]) marks.append(element("span", "mark flag", why));
    return marks;
  };

  const answerOf = (prompt, responses, policy) => {
    const answer = element("div", "answer");
    answer.append(element("h4", "", data.policies[policy]), marksOf(prompt, policy));
    for (const one of responses) {
      const response = element("div", "response");
      const numbers = element("p", "numbers", [
        ...data.judges.map((judge, index) => `${judge.key === "reward_model" ? "score" : judge.label} ${one.scores[index]}`),
        `${one.tokens} token${one.tokens === 1 ? "" : "s"}`,
      ].join(" · "));
      if (one.finished === false) numbers.append(" · ", element("span", "cut", "cut at the limit"));
      response.append(textBlock(one.text), numbers);
      answer.append(response);
    }
    return answer;
  };

  const cardOf = (prompt) => {
    const made = element("article", "card");
    const title = element("h3");
    title.append(element("span", "", `Prompt ${prompt.at + 1}`), element("span", "n", prompt.id));
    if (prompt.disagree) title.append(element("span", "mark other", "judges disagree"));
    made.append(title);
    for (const [role, text] of prompt.messages) {
      const turn = element("div", "turn");
      turn.append(element("div", "role", role), textBlock(text));
      made.append(turn);
    }
    const answers = element("div", "answers");
    prompt.policies.forEach((responses, policy) => answers.append(answerOf(prompt, responses, policy)));
    made.append(answers);
    return made;
  };

  const select = () => {
    const words = search.value.trim().toLowerCase();
    const keep = choices.get(show.value);
    found = data.prompts.filter((prompt) => keep(prompt) && (!words || searched(prompt).includes(words)));
    found.sort(orders[order.value]);
  };

  const draw = () => {
    position = Math.max(0, Math.min(position, found.length - 1));
    card.replaceChildren(...found.slice(position, position + 1).map(cardOf));
    const status = found.length ? `${position + 1} of ${found.length}` : "No prompt matches";
    document.querySelectorAll(".status").forEach((place) => { place.textContent = status; });
    document.querySelectorAll(".previous").forEach((button) => { button.disabled = position === 0; });
    document.querySelectorAll(".next").forEach((button) => { button.disabled = position >= found.length - 1; });
  };

  // The state is in the address, so that a link leads to a text: #texts?prompt=8&show=disagree
  const START = "#texts?";
  const remember = () => {
    const state = new URLSearchParams();
    if (found.length) state.set("prompt", found[position].at + 1);
    for (const [key, field] of [["show", show], ["order", order], ["search", search]]) {
      if (field.value !== defaults[key]) state.set(key, field.value);
    }
    try {
      history.replaceState(null, "", `${START}${state}`);
    } catch { /* a browser that lets no file change its address shows the texts all the same */ }
  };
  const restore = () => {
    if (!location.hash.startsWith(START)) return false;
    const state = new URLSearchParams(location.hash.slice(START.length));
    const asked = (key) => state.get(key) ?? defaults[key];
    search.value = asked("search");
    show.value = choices.has(asked("show")) ? asked("show") : defaults.show;
    order.value = [...order.options].some((option) => option.value === asked("order")) ? asked("order") : defaults.order;
    select();
    position = found.findIndex((prompt) => String(prompt.at + 1) === state.get("prompt"));
    draw();
    section.scrollIntoView();
    return true;
  };

  const turn = (by, toTop) => {
    const before = position;
    position += by;
    draw();
    if (position === before) return;
    remember();
    if (toTop) section.scrollIntoView();
  };
  const restart = () => {
    position = 0;
    select();
    draw();
    remember();
  };
  search.addEventListener("input", restart);
  show.addEventListener("change", restart);
  order.addEventListener("change", restart);
  document.querySelectorAll(".pager").forEach((pager, index) => {
    pager.querySelector(".previous").addEventListener("click", () => turn(-1, index > 0));
    pager.querySelector(".next").addEventListener("click", () => turn(1, index > 0));
    pager.hidden = false;
  });
  // Arrow keys turn while the texts are on the screen and nothing else has a use for them.
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.defaultPrevented) return;
    if (event.target.closest("input, select, textarea, .scroll")) return;
    const box = section.getBoundingClientRect();
    if (box.top > innerHeight || box.bottom < 0) return;
    event.preventDefault();
    turn(by, false);
  });
  window.addEventListener("hashchange", restore);
  find("texts-filters").hidden = false;
  show.value = defaults.show;
  select();
  if (!restore()) draw();
})();
