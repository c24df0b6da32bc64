// Two answers: the steps between them. A step is an order with a strength; the places follow the step that is chosen.
import { cards, form } from "./page.js";
import { changed } from "./history.js";
import { check } from "./state.js";

const steps = () => [...form.querySelectorAll(".scale input")];
const chosen = () => steps().findIndex((step) => step.checked);

// True when the key chose a step: a digit counts from the first answer, an arrow goes one step on, 0 takes it back.
export function press(key, digit) {
  const all = steps();
  if (!all.length) return false;
  if (digit === "0" || key === "Backspace") return choose(null);
  if (digit !== null) return digit <= all.length && choose(all[digit - 1]);
  if (key !== "ArrowLeft" && key !== "ArrowRight") return false;
  const by = key === "ArrowLeft" ? -1 : 1;
  const from = chosen() < 0 ? (all.length - 1) / 2 - (all.length % 2 ? 0 : by / 2) : chosen();
  return choose(all[Math.min(all.length - 1, Math.max(0, from + by))]);
}

function choose(step) {
  steps().forEach((other) => { other.checked = other === step; });
  settle();
  return true;
}

// After any change of the step: the places, and the news of it.
export function settle() {
  const step = steps()[chosen()];
  const value = Number(step?.value);
  const places = !step ? [null, null] : !value ? [1, 1] : value < 0 ? [1, 2] : [2, 1];
  cards.forEach((card, index) => check("place_" + card.dataset.id, places[index]));
  changed(step?.ariaLabel ?? "");
}
