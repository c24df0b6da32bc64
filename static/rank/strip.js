// The strip at the foot: a place for each rank and a chip for each letter, drawn from the form's state.
import { cards, fill, strip, submitButton, words } from "./page.js";
import { current } from "./focus.js";
import { isReady, placeOf } from "./state.js";

export function draw() {
  const focused = document.activeElement?.dataset?.chip;
  strip.querySelectorAll(".place").forEach(drawPlace);
  if (focused) strip.querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  submitButton.setAttribute("aria-disabled", String(!isReady()));
}

function drawPlace(box) {
  const isRank = box.dataset.place !== "";
  const inside = cards.filter((card) => placeOf(card.dataset.id) === (Number(box.dataset.place) || null));
  box.classList.toggle("full", isRank && inside.length > 0);
  box.querySelector(".chips").replaceChildren(...inside.flatMap((card, index) => (index && isRank ? [tieMark(), chip(card)] : [chip(card)])));
}

function chip(card) {
  const { id, letter } = card.dataset;
  const to = placeOf(id);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "chip" + (to ? "" : " free") + (card === current ? " here" : "");
  button.dataset.chip = id;
  button.textContent = letter;
  button.setAttribute("aria-label", fill(words.chip, { letter, place: to ? words.places[to] : words.toPlace }));
  return button;
}

function tieMark() {
  const mark = document.createElement("span");
  mark.className = "tie";
  mark.textContent = "=";
  return mark;
}
