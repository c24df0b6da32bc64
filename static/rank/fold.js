// Only a very long answer is folded, and its button says how much there is. Nothing is cut: the text is all on the page.
import { cards, fill, words } from "./page.js";

const LONG_CHARACTERS = 6000;

export function renew() {
  for (const card of cards) if (card.querySelector(".body").textContent.length > LONG_CHARACTERS) fold(card);
}

function fold(card) {
  const body = card.querySelector(".body");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "ghost unfold";
  button.textContent = fill(words.unfold, { letter: card.dataset.letter, n: body.textContent.length.toLocaleString() });
  button.addEventListener("click", () => unfold(card));
  body.classList.add("folded");
  body.after(button);
}

export function unfold(card) {
  const button = card.querySelector(".unfold");
  if (!button) return;
  if (button === document.activeElement) card.focus({ preventScroll: true });
  card.querySelector(".body").classList.remove("folded");
  button.remove();
}
