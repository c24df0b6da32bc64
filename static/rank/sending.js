// Submitting: once, and again for as long as nobody answers.
import { fill, form, note, say, strip, submitButton, words } from "./page.js";
import * as drafts from "./drafts.js";
import { look } from "./focus.js";
import { review } from "./review.js";
import { isReady, unplaced } from "./state.js";

const RETRY_SECONDS = [2, 4, 8, 15, 30];
let isSending = false;

export function listen() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  document.querySelector("[data-skip]").addEventListener("submit", () => { drafts.end(); drafts.forget(); });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
}

export function submit() {
  if (isSending) return;
  if (!isReady()) {
    note.textContent = fill(words.missing, { letters: unplaced().map((card) => card.dataset.letter).join(", ") });
    look(unplaced()[0]);
    return;
  }
  review(start);
}

function start() {
  isSending = true;
  drafts.hold();
  const body = new URLSearchParams(new FormData(form));
  form.querySelector("main").inert = true;
  strip.querySelectorAll(".chip").forEach((chip) => { chip.disabled = true; });
  send(body, 0);
}

async function send(body, attempt) {
  submitButton.setAttribute("aria-disabled", "true");
  say(words.sending);
  const wait = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
  try {
    const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "text/html" } });
    if (answer.status < 500) return leave(answer);
    note.textContent = fill(words.refused, { status: answer.status, n: wait });
  } catch {
    note.textContent = fill(words.lost, { n: wait });
  }
  setTimeout(send, wait * 1000, body, attempt + 1);
}

// Taken: go where the server points. Refused: send the plain form, whose answer is a page that says why.
function leave(answer) {
  drafts.end();
  if (!answer.ok) {
    form.querySelector("main").inert = false;
    form.submit();
    return;
  }
  drafts.forget();
  location.assign(answer.url);
}
