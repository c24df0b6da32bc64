// Which key does what. Each person may change it on their device; two actions never share a key.
import { fill, form, store, words } from "./page.js";

const DEFAULTS = { unplace: "0", better: "ArrowLeft", worse: "ArrowRight", next: "j", previous: "k", labels: "l", allBad: "b", confidence: "c", reasons: "r", compare: "d", find: "f", conversation: "p", guidelines: "g", skip: "s", keys: "?" };
for (let place = 1; place <= 9; place++) DEFAULTS["place" + place] = String(place);
for (let rating = 1; rating <= 7; rating++) DEFAULTS["rate" + rating] = "Shift+" + rating;

// What every page and every screen reader needs for itself.
const FIXED = /^(?:Shift\+)?(?:Tab|Enter|Escape|Backspace| |Shift|Control|Alt|AltGraph|Meta|CapsLock|Dead|Unidentified|Process|F\d+)$/;
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const key = () => "rankloop-key-map-" + form.dataset.person;

let map = { ...DEFAULTS };
let asking = null;

export const actionOf = (chord) => Object.keys(map).find((action) => map[action] === chord);

// A digit is a digit on every keyboard, shifted or not; a letter is its Latin key where the keyboard writes another script.
export function chordOf({ key: pressed, code, shiftKey }) {
  const shift = shiftKey ? "Shift+" : "";
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code);
  if (digit) return (code.startsWith("Digit") ? shift : "") + digit[1];
  const letter = pressed.charCodeAt(0) > 127 && /^Key([A-Z])$/.exec(code);
  if (letter) return shift + letter[1].toLowerCase();
  const isSign = pressed.length === 1 && pressed.toLowerCase() === pressed.toUpperCase();
  return isSign ? pressed : shift + (pressed.length === 1 ? pressed.toLowerCase() : pressed);
}

const nameOf = (chord) => chord.split("+").filter(Boolean).map((part) => NAMES[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join(" ") || "+";

export function listen() {
  map = { ...DEFAULTS, ...kept() };
  const dialog = document.getElementById("keys");
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button.key");
    if (button) ask(button);
    else if (event.target.closest("[data-reset-keys]")) reset();
  });
  dialog.addEventListener("keydown", hear);
  dialog.addEventListener("focusout", () => asking && draw());
}

export const renew = () => draw();

// What was kept on the device, unless it is damaged or two actions would share a key.
function kept() {
  try {
    const changes = Object.entries(JSON.parse(store.get(key()) ?? "{}")).filter(([action, chord]) => action in DEFAULTS && typeof chord === "string" && !FIXED.test(chord));
    const all = Object.values({ ...DEFAULTS, ...Object.fromEntries(changes) });
    return new Set(all).size === all.length ? Object.fromEntries(changes) : {};
  } catch {
    return {};
  }
}

function draw() {
  asking = null;
  for (const kbd of document.querySelectorAll("kbd[data-key]")) kbd.textContent = nameOf(map[kbd.dataset.key]);
  for (const link of document.querySelectorAll("[data-shortcut]")) link.setAttribute("aria-keyshortcuts", map[link.dataset.shortcut]);
}

function ask(button) {
  draw();
  asking = button;
  button.querySelector("kbd").textContent = "…";
  tell(words.pressKey);
}

function hear(event) {
  if (!asking || event.isComposing || ["Shift", "Control", "Alt", "Meta", "AltGraph"].includes(event.key)) return;
  if (event.key === "Tab") return draw();
  event.preventDefault();
  event.stopPropagation();
  const button = asking;
  if (event.key === "Escape") tell("");
  else take(button.dataset.action, chordOf(event), event.ctrlKey || event.metaKey || event.altKey);
  draw();
}

function take(action, chord, isModified) {
  const other = actionOf(chord);
  if (isModified || FIXED.test(chord)) return tell(fill(words.keyFixed, { key: nameOf(chord) }));
  if (other && other !== action) return tell(fill(words.keyTaken, { key: nameOf(chord), action: describe(other) }));
  map[action] = chord;
  save();
  tell(fill(words.keyIs, { key: nameOf(chord), action: describe(action) }));
}

const describe = (action) => document.querySelector(`button.key[data-action="${action}"]`)?.dataset.name ?? action;

function reset() {
  map = { ...DEFAULTS };
  save();
  draw();
  tell(words.keysReset);
}

function save() {
  store.set(key(), JSON.stringify(Object.fromEntries(Object.entries(map).filter(([action, chord]) => DEFAULTS[action] !== chord))));
}

// In an open dialog the page's own announcements are out of reach.
function tell(message) {
  document.querySelector("#keys [role=status]").textContent = message;
}
