// Which card is being read: keys act on it, and its chip is marked.
import { cards, strip } from "./page.js";

export let current = null;

export function look(card, { focus = true } = {}) {
  current = card;
  cards.forEach((other) => other.classList.toggle("here", other === card));
  strip.querySelectorAll(".chip").forEach((chip) => chip.classList.toggle("here", chip.dataset.chip === card.dataset.id));
  if (focus) card.focus({ preventScroll: true });
  if (focus) card.scrollIntoView({ block: "nearest" });
}

// True when there was a card to go to; else Tab goes on as on any page.
export function walk(by) {
  const next = cards[cards.indexOf(current) + by];
  if (next) look(next);
  return !!next;
}
