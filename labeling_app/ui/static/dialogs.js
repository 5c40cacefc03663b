// What opens over the task: guidelines, earlier answers, keys, skipping.

import { verdictInWords } from "./answer.js";
import { icon, keycap, make, prose } from "./dom.js";
import { preferences } from "./storage.js";

const MAX_NOTE = 5000; // characters that the server takes

/** Open a dialog in `place`; it removes itself when it closes, and the focus goes back to where it was. */
export function openDialog(place, title, kind, ...content) {
  const close = make(
    "button",
    { type: "button", class: "small close", "aria-label": "Close", title: "Close" },
    icon("close"),
  );
  const heading = make("h2", { id: "dialog-heading", tabindex: "-1" }, title);
  const dialog = make(
    "dialog",
    { class: kind, "aria-labelledby": "dialog-heading" },
    make("header", {}, heading, close),
    ...content,
  );
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const isInside = event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
    if (event.target === dialog && !isInside) dialog.close();
  });
  dialog.addEventListener("close", () => dialog.remove());
  place.append(dialog);
  dialog.showModal();
  heading.focus();
  return dialog;
}

export function openGuidelines(place, form) {
  return openDialog(place, "Guidelines", "drawer", prose(form.guidelines_html, "the guidelines"));
}

/** @param onSkip called with `(reason, note)` */
export function openSkip(place, form, withdraws, onSkip) {
  const radios = form.skip_reasons.map((reason) =>
    make("input", { type: "radio", name: "skip-reason", value: reason }),
  );
  const error = make("p", { class: "error", role: "alert" });
  const note = make("textarea", { id: "skip-note", rows: 3, dir: "auto", maxlength: MAX_NOTE });
  const body = make(
    "form",
    { class: "stack" },
    make(
      "p",
      {},
      withdraws ? "Your earlier answer to this task will be withdrawn." : "You will not see this task again.",
    ),
    make(
      "fieldset",
      { class: "choices" },
      make("legend", {}, "Why do you skip it?"),
      ...radios.map((radio) => make("label", { class: "choice" }, radio, make("span", { dir: "auto" }, radio.value))),
    ),
    make("label", { for: "skip-note" }, "A note ", make("span", { class: "faint" }, "(optional)")),
    note,
    error,
    make(
      "div",
      { class: "buttons" },
      make("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
      make("button", { type: "submit", class: "primary" }, "Skip this task"),
    ),
  );
  body.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = radios.find((radio) => radio.checked);
    if (!chosen) {
      error.textContent = "Please choose a reason.";
      radios[0].focus();
      return;
    }
    dialog.close();
    onSkip(chosen.value, note.value);
  });
  const dialog = openDialog(place, "Skip this task", "box", body);
  return dialog;
}

/** @param ask resolves to the history; @param onOpen called with the lease to reopen */
export async function openHistory(place, ask, onOpen) {
  const list = make("div", { class: "history" }, make("p", { role: "status" }, "One moment…"));
  const dialog = openDialog(place, "My answers", "drawer", list);
  let answers;
  try {
    ({ answers } = await ask());
  } catch (failure) {
    list.replaceChildren(make("p", { role: "alert" }, `They cannot be shown now. ${failure.message}`));
    return;
  }
  if (!answers.length) {
    list.replaceChildren(make("p", {}, "You have answered nothing yet. What you answer can be changed from here."));
    return;
  }
  const open = (lease) => () => {
    dialog.close();
    onOpen(lease);
  };
  const rows = answers.map((answer) =>
    make(
      "li",
      {},
      make(
        "button",
        { type: "button", onclick: open(answer.lease) },
        make("span", { class: "prompt", dir: "auto" }, answer.prompt || "(no text)"),
        make("span", { class: "verdict" }, verdictInWords(answer.ranks, answer.both_bad)),
        make("span", { class: "faint" }, whenInWords(answer.at), answer.revision > 1 ? " · changed" : ""),
      ),
    ),
  );
  list.replaceChildren(
    make("p", { class: "faint" }, "Your last answers. Open one to change it."),
    make("ol", {}, ...rows),
  );
}

/** A time in seconds since 1970 as people here write it; today's without the day. */
function whenInWords(at) {
  const date = new Date(at * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(
    "en",
    isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" },
  ).format(date);
}

/** @param asksStrength whether a pair has seven steps, or three */
export function openKeys(place, num, asksStrength) {
  const rows =
    num > 2
      ? [
          [["A", "B", "…"], "Place that response next, from best to worst"],
          [["="], "The next one ties with the last"],
          [["⌫"], "Take the last one back"],
          [["0"], "All are bad"],
        ]
      : [
          asksStrength
            ? [["1", "…", "7"], "From “A is much better” to “B is much better”"]
            : [["1", "2", "3"], "A is better, a tie, B is better"],
          ...(asksStrength ? [[["4"], "A tie"]] : []),
          [["0"], "Both are bad"],
        ];
  rows.push(
    [["↵"], "Submit, when the verdict is complete"],
    [["Ctrl", "↵"], "Submit while writing (⌘ on a Mac)"],
    [["S"], "Skip"],
    [["U"], "Undo: change the last answer"],
    [["?"], "These keys"],
  );
  const box = make("input", { type: "checkbox" });
  box.checked = preferences.get("keys", true);
  box.addEventListener("change", () => preferences.set("keys", box.checked));
  const terms = rows.flatMap(([keys, words]) => [
    make("dt", {}, ...keys.map((key) => make("kbd", {}, key))),
    make("dd", {}, words),
  ]);
  return openDialog(
    place,
    "Keys",
    "box",
    make("dl", { class: "keys" }, ...terms),
    make("label", { class: "choice" }, box, "Use single keys (turn off if you speak to your computer)"),
  );
}

/** Before logging out with answers unsent; @param num of them @param onLeave called to log out all the same */
export function openLogout(place, num, onLeave) {
  const what = num === 1 ? "One answer has" : `${num} answers have`;
  const words = `${what} not been sent yet. They are kept in this browser, and sent when you log in here again.`;
  const leave = make("button", { type: "button", class: "primary", onclick: onLeave }, "Log out");
  return openDialog(place, "Log out", "box", make("p", {}, words), make("div", { class: "buttons" }, leave));
}
