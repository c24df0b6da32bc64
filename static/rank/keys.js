// Everything by keyboard. Each key is printed on the page, can be changed, and all of them can be turned off.
import { numPlaces, say, store, strip, words } from "./page.js";
import * as compare from "./compare.js";
import { cancel } from "./drag.js";
import { openFinder } from "./find.js";
import { current, look, walk } from "./focus.js";
import { redo, undo } from "./history.js";
import { actionOf, chordOf } from "./keymap.js";
import { move, place, placeAndGoOn, rate } from "./placing.js";
import * as prompt from "./prompt.js";
import * as questions from "./questions.js";
import * as scale from "./scale.js";
import { submit } from "./sending.js";

const useKeys = document.getElementById("use-keys");
const isTextField = (element) => element.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");
const isInHand = (target) => target === current || target === document.body;

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

// True when the key was ours.
function press(event) {
  if (event.ctrlKey || event.metaKey) return pressUndo(event);
  const fixed = FIXED[event.key];
  if (fixed) return fixed(event) !== false;
  if (walkLabels(event)) return true;
  const [, name, number] = /^(\D+)(\d?)$/.exec(actionOf(chordOf(event)) ?? "") ?? [];
  return !!name && ACTIONS[name](event, Number(number)) !== false;
}

const FIXED = {
  Escape: () => look(current),
  Tab: ({ target, shiftKey }) => target === current && walk(shiftKey ? -1 : 1),
  Enter: ({ target, repeat }) => isInHand(target) && (repeat || submit()),
  Backspace: () => unplace(),
};

const ACTIONS = {
  place: (_, to) => (scale.isOn() ? scale.take(to) : to <= numPlaces && placeAndGoOn(current.dataset.id, to)),
  unplace: () => unplace(),
  better: ({ target }) => moveChip(target, -1),
  worse: ({ target }) => moveChip(target, 1),
  next: () => walk(1),
  previous: () => walk(-1),
  rate: (_, rating) => rate(current.dataset.id, rating),
  labels: () => current.querySelector(".flags input")?.focus(),
  allBad: () => questions.toggleAllBad(),
  confidence: () => questions.nextConfidence(),
  reasons: () => questions.writeReasons(),
  compare: () => compare.open(),
  find: () => openFinder(),
  conversation: () => prompt.open(),
  guidelines: () => document.getElementById("guidelines").showModal(),
  skip: () => document.getElementById("skip")?.showModal(),
  keys: () => document.getElementById("keys").showModal(),
};

// On a row of buttons the arrows are the browser's own. Where the strip runs from the right, so do they.
function moveChip(target, by) {
  if (!isInHand(target) && !target.dataset.chip) return false;
  const on = getComputedStyle(strip).direction === "rtl" ? -by : by;
  return scale.isOn() ? scale.step(on) : move(target.dataset.chip ?? current.dataset.id, on);
}

const unplace = () => (scale.isOn() ? scale.clear() : place(current.dataset.id, null));

function pressUndo({ key, shiftKey }) {
  const letter = key.toLowerCase();
  if (letter !== "z" && letter !== "y") return false;
  if (letter === "z" && !shiftKey) undo();
  else redo();
  return true;
}

// Among an answer's labels the arrows go from one to the next; Space sets one, as on any page. (A yes or no has arrows of its own.)
function walkLabels({ key, target }) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
  const labels = by && target.type === "checkbox" ? [...(target.closest(".flags")?.querySelectorAll("input") ?? [])] : [];
  if (!labels.length) return false;
  const next = labels[labels.indexOf(target) + by];
  if (next) next.closest("details")?.setAttribute("open", "");
  next?.focus();
  return true;
}
