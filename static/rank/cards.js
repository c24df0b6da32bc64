// The buttons on the cards, and how the cards are laid out. A second press takes a place or a rating away.
import { form, store } from "./page.js";
import { current, look } from "./focus.js";
import { changed } from "./history.js";
import { settle } from "./placing.js";
import * as scale from "./scale.js";
import { check } from "./state.js";

const LAYOUTS = ["grid", "columns", "stacked", "row"];
let pressed = null;

export function listen() {
  form.addEventListener("change", (event) => event.target.name && tell(event.target.name));
  form.addEventListener("pointerdown", (event) => {
    const input = event.target.closest(".cell")?.querySelector("input");
    pressed = input?.checked ? input : null;
  });
  form.addEventListener("click", takeAway);
  form.addEventListener("focusin", (event) => {
    const card = event.target.closest(".answer");
    if (card && card !== current) look(card, { focus: false });
  });
  for (const button of form.querySelectorAll("button[data-layout]")) button.addEventListener("click", () => { setLayout(button.dataset.layout); store.set("rankloop-layout", button.dataset.layout); });
}

export function renew() {
  setLayout(store.get("rankloop-layout") ?? form.dataset.layout);
}

function tell(name) {
  if (name.startsWith("place_")) settle(name.slice(6));
  else if (name === "preference") scale.settle();
  else changed();
}

function takeAway(event) {
  if (event.target !== pressed || !event.detail) return;
  pressed = null;
  check(event.target.name, null);
  tell(event.target.name);
}

function setLayout(asked) {
  const layout = LAYOUTS.includes(asked) ? asked : LAYOUTS[0];
  form.querySelector(".page").dataset.layout = layout;
  // Above the answers there is room for the question itself; what came before it is a scroll away.
  const prompt = form.querySelector(".prompt");
  prompt.scrollTop = layout === "row" ? prompt.querySelector(".turn.last").offsetTop - 16 : 0;
  form.querySelectorAll("button[data-layout]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.layout === layout)));
}
