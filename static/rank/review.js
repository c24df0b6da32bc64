// The order once more before it goes, with the first line of each answer, for who wants that: off, it costs no key.
import { cards, form, store, words } from "./page.js";
import { placeOf } from "./state.js";

const dialog = document.getElementById("review");
const boxes = document.querySelectorAll("[data-review]");
let confirmed = null;

export function listen() {
  setReview(store.get("rankloop-review") ?? (form.dataset.review === "on" ? "on" : "off"));
  boxes.forEach((box) => box.addEventListener("change", () => { setReview(box.checked ? "on" : "off"); store.set("rankloop-review", box.checked ? "on" : "off"); }));
  dialog.querySelector("[data-send]").addEventListener("click", () => { dialog.close(); confirmed(); });
  // An Enter that is still held down from the page is no second Enter.
  dialog.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault());
}

function setReview(state) {
  boxes.forEach((box) => { box.checked = state === "on"; });
}

// Goes on with `send`, at once or when the order was confirmed.
export function review(send) {
  if (!boxes[0].checked) return send();
  confirmed = send;
  dialog.querySelector(".review").replaceChildren(...cards.toSorted((a, b) => rank(a) - rank(b)).map(row));
  dialog.showModal();
  dialog.querySelector("[data-send]").focus();
}

const rank = (card) => placeOf(card.dataset.id) ?? Infinity;

function row(card) {
  const item = document.createElement("li");
  const place = placeOf(card.dataset.id);
  for (const [name, text] of [["rank", place ? words.places[place] : words.toPlace], ["letter", card.dataset.letter], ["line", card.querySelector(".body").textContent.trim().slice(0, 160)]]) {
    const part = document.createElement("span");
    part.className = name;
    part.dir = "auto";
    part.textContent = text;
    item.append(part);
  }
  return item;
}
