// Two answers: the steps between them. A step is an order with a strength; the places follow the step that is chosen.
import { cards, form } from "./page.js";
import { changed } from "./history.js";
import { check } from "./state.js";

const steps = () => [...form.querySelectorAll(".scale input")];
const chosen = () => steps().findIndex((step) => step.checked);

export const isOn = () => steps().length > 0;
export const clear = () => choose(null);

// By number, counted from the first answer; false when there are not as many.
export const take = (number) => number <= steps().length && choose(steps()[number - 1]);

// One step on, from the middle when nothing is chosen yet.
export function step(by) {
  const all = steps();
  const from = chosen() < 0 ? (all.length - 1) / 2 - (all.length % 2 ? 0 : by / 2) : chosen();
  choose(all[Math.min(all.length - 1, Math.max(0, from + by))]);
}

function choose(asked) {
  steps().forEach((other) => { other.checked = other === asked; });
  settle();
}

// After any change of the step: the places, and the news of it.
export function settle() {
  const step = steps()[chosen()];
  const value = Number(step?.value);
  const places = !step ? [null, null] : !value ? [1, 1] : value < 0 ? [1, 2] : [2, 1];
  cards.forEach((card, index) => check("place_" + card.dataset.id, places[index]));
  changed(step?.ariaLabel ?? "");
}
