// Everything by keyboard. Each key is printed on the page, and all of them can be turned off.
import { numPlaces, say, store, words } from "./page.js";
import { cancel } from "./drag.js";
import { current, look, walk } from "./focus.js";
import { redo, undo } from "./history.js";
import { move, place, placeAndGoOn, rate } from "./placing.js";
import * as questions from "./questions.js";
import * as scale from "./scale.js";
import { submit } from "./sending.js";

const useKeys = document.getElementById("use-keys");
const isTextField = (element) => element.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");

export function listen() {
  setKeys(store.get("rankloop-keys") !== "off");
  useKeys.addEventListener("change", () => {
    setKeys(useKeys.checked);
    store.set("rankloop-keys", useKeys.checked ? "on" : "off");
    say(useKeys.checked ? words.keysOn : words.keysOff);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && cancel()) return;
    if (!useKeys.checked || event.isComposing || event.altKey || document.querySelector("dialog[open]") || isTextField(event.target)) return;
    if (press(event)) event.preventDefault();
  });
}

function setKeys(on) {
  document.body.dataset.keys = on ? "on" : "off";
  useKeys.checked = on;
}

// What a key does; true when it was ours.
function press(event) {
  const { key, code, shiftKey, target } = event;
  const id = current.dataset.id;
  const onCard = target === current || target === document.body;
  if (event.ctrlKey || event.metaKey) return undoKey(event);
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1] ?? (/^\d$/.test(key) ? key : null);
  if (digit !== null && shiftKey && code.startsWith("Digit")) return digit >= 1 && digit <= 7 && (rate(id, Number(digit)), true);
  if ((onCard || digit !== null) && !shiftKey && scale.press(key, digit)) return true;
  if (digit === "0" || key === "Backspace") return place(id, null), true;
  if (digit !== null && digit <= numPlaces) return placeAndGoOn(id, Number(digit)), true;
  if (key === "?") return open("keys");
  if (shiftKey && key !== "Tab") return false;
  if (key === "g" || key === "s") return open(key === "g" ? "guidelines" : "skip");
  if (questions.press(key)) return true;
  if (key === "l") return current.querySelector(".flags input")?.focus(), true;
  if (key === "Escape") return look(current), true;
  if (key === "Tab") return target === current && walk(shiftKey ? -1 : 1);
  if (key === "Enter") return onCard && (submit(), true);
  if (key === "ArrowLeft" || key === "ArrowRight") return (onCard || !!target.dataset.chip) && (move(target.dataset.chip ?? id, key === "ArrowLeft" ? -1 : 1), true);
  return false;
}

function undoKey({ key, shiftKey }) {
  const letter = key.toLowerCase();
  if (letter === "z" && !shiftKey) return undo(), true;
  if ((letter === "z" && shiftKey) || letter === "y") return redo(), true;
  return false;
}

function open(name) {
  document.getElementById(name).showModal();
  return true;
}
