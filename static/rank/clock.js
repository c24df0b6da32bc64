// How a ranking comes about: when it was shown, begun and submitted, how long somebody was at work, with which hands.
// Kept on the device until it is sent, so that a reload changes nothing.
import { form, store } from "./page.js";

const IDLE_MILLISECONDS = 60_000;
const SIGNS = ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "input"];
const key = (lease) => "rankloop-how-" + lease;
let how = null;
let lastSign = null;
let hand = null;

export function listen() {
  for (const sign of SIGNS) document.addEventListener(sign, live, { capture: true, passive: true });
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : live()));
  window.addEventListener("pagehide", pause);
}

// A task comes into view.
export function renew() {
  lastSign = document.hidden ? null : performance.now();
  hand = null;
  how = JSON.parse(store.get(key(form.dataset.lease)) ?? "null") ?? { shown_at: now(), first_action_at: null, active: 0, num_undos: 0, inputs: [] };
  keep();
}

// Time counts from one sign of life to the next, a minute at most, and never while the page is out of sight.
function live(event) {
  if (event?.type === "keydown") hand = "key";
  if (event?.type === "pointerdown") hand = event.pointerType === "touch" ? "touch" : "pointer";
  count();
  lastSign = document.hidden ? null : performance.now();
}

function count() {
  if (lastSign !== null) how.active += Math.min(performance.now() - lastSign, IDLE_MILLISECONDS);
}

export function pause() {
  if (!how) return;
  count();
  lastSign = null;
  // Who signed out a moment ago left nothing behind, and it stays so.
  if (store.get(key(form.dataset.lease))) keep();
}

// Something was placed, marked or written.
export function act() {
  how.first_action_at ??= now();
  if (hand && !how.inputs.includes(hand)) how.inputs.push(hand);
  keep();
}

export function countUndo() {
  how.num_undos += 1;
}

// All of it, at the moment of submitting.
export function tell() {
  count();
  lastSign = performance.now();
  const { active, ...told } = how;
  return { ...told, submitted_at: now(), active_seconds: Math.min(Math.round(active / 100) / 10, 86_400), num_undos: Math.min(how.num_undos, 10_000), device: device() };
}

export const forget = (lease) => store.remove(key(lease));
const keep = () => store.set(key(form.dataset.lease), JSON.stringify(how));
const now = () => new Date().toISOString();

function device() {
  if (!matchMedia("(pointer: coarse)").matches) return "desktop";
  return Math.min(screen.width, screen.height) < 600 ? "phone" : "tablet";
}
