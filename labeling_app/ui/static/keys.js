// Keys that work wherever the focus is, but never while somebody writes.

import { preferences } from "./storage.js";

/** Whether a key pressed at `target` would go into a text. */
function isWriting(target) {
  return target.isContentEditable || target.matches("textarea, select, input:not([type=radio], [type=checkbox])");
}

/**
 * Act on a key press of the document.
 *
 * @param element the desk: keys pressed in other parts of the page are not ours
 * @param on `{confirm(), undo(), skip(), keys(), press(key)}`; `confirm` and `press` return whether they did something
 */
export function pressed(event, element, on) {
  if (event.defaultPrevented || event.isComposing || event.repeat) return;
  const path = event.composedPath();
  const target = path[0];
  const isOurs = path.includes(element) || target === document.body || target === document.documentElement;
  if (isOurs && target instanceof Element && act(event, target, on)) event.preventDefault();
}

function act(event, target, on) {
  const { key } = event;
  const isCommand = event.ctrlKey || event.metaKey;
  // On a button or a link, Enter is theirs.
  const isFree = !isWriting(target) && !target.closest("button, a, summary");
  if (key === "Enter" && (isCommand || isFree)) return on.confirm();
  if (isWriting(target)) return false;
  if (key.toLowerCase() === "z" && isCommand && !event.shiftKey) on.undo();
  else if (isCommand || event.altKey || !preferences.get("keys", true)) return false;
  else if (key === "?") on.keys();
  else if (on.press(key)) return true;
  else if (key.toLowerCase() === "u") on.undo();
  else if (key.toLowerCase() === "s") on.skip();
  else return false;
  return true;
}
