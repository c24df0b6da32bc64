// Dragging a chip, by mouse or finger. A press becomes a drag after eight pixels, so that a trembling finger only presses.
import { cardOf, strip } from "./page.js";
import { look } from "./focus.js";
import { place } from "./placing.js";

const FAR = 8;
let drag = null;
let wasDragged = false;

export function listen() {
  strip.addEventListener("pointerdown", take);
  strip.addEventListener("pointermove", carry);
  strip.addEventListener("pointerup", (event) => drop(event, true));
  strip.addEventListener("pointercancel", (event) => drop(event, false));
  strip.addEventListener("click", press);
}

// True when there was a drag to give up.
export function cancel() {
  if (!drag) return false;
  drop({ pointerId: drag.pointer }, false);
  return true;
}

function take(event) {
  const held = event.target.closest(".chip");
  if (!held || event.button || drag) return;
  wasDragged = false;
  drag = { held, pointer: event.pointerId, x: event.clientX, y: event.clientY, box: null };
}

function carry(event) {
  if (event.pointerId !== drag?.pointer) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  if (!wasDragged && Math.hypot(x, y) < FAR) return;
  if (!wasDragged) strip.setPointerCapture(drag.pointer);
  wasDragged = true;
  drag.held.classList.add("held");
  drag.held.style.translate = `${x}px ${y}px`;
  drag.box?.classList.remove("target");
  drag.box = document.elementFromPoint(event.clientX, event.clientY)?.closest(".strip .place") ?? null;
  drag.box?.classList.add("target");
}

function drop(event, keep) {
  if (event.pointerId !== drag?.pointer) return;
  const { held, box } = drag;
  drag = null;
  held.classList.remove("held");
  held.style.translate = "";
  box?.classList.remove("target");
  if (keep && wasDragged && box) place(held.dataset.chip, Number(box.dataset.place) || null);
}

// A press that was no drag looks at the chip's card; by keyboard the focus stays on the chip.
function press(event) {
  const chip = event.target.closest(".chip");
  if (chip && !wasDragged) look(cardOf(chip.dataset.chip), { focus: event.detail > 0 });
  wasDragged = false;
}
