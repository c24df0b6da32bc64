// The prompt stays in view: beside the answers on a wide window, as one line above them on a narrow one, whole at a touch.
import { form } from "./page.js";

const dialog = document.getElementById("conversation");

export function listen() {
  form.querySelector(".reminder").addEventListener("click", open);
}

export function renew() {
  form.querySelector(".reminder span").textContent = form.querySelector(".turn.last .prose").textContent.trim().slice(0, 200);
}

export function open() {
  const turns = [...form.querySelectorAll(".prompt .turn")].map((turn) => turn.cloneNode(true));
  dialog.querySelector(".turns").replaceChildren(...turns);
  dialog.showModal();
}
