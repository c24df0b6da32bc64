// Drafts: the server has them; the device keeps what the server has not yet heard.
import { form, savedNote, say, store, words } from "./page.js";
import { watchExpiry } from "./expiry.js";
import { begin } from "./history.js";
import { read, write } from "./state.js";

const WAIT_MILLISECONDS = 700;
const key = (lease) => "rankloop-draft-" + lease;
let timer = 0;
let isOver = false;

export function listen() {
  form.addEventListener("input", (event) => { if (event.target.id === "rationale") save(); });
  window.addEventListener("online", () => isUnsent() && send());
  document.addEventListener("visibilitychange", () => document.hidden && isUnsent() && send());
}

export function renew() {
  isOver = false;
}

const isUnsent = () => store.get(key(form.dataset.lease)) !== null;

export function save() {
  if ("trial" in form.dataset) return;
  store.set(key(form.dataset.lease), JSON.stringify({ savedAt: Date.now(), state: read() }));
  clearTimeout(timer);
  if (form.dataset.draftUrl) timer = setTimeout(send, WAIT_MILLISECONDS);
}

// One after the other, so that an older draft never overtakes a newer one.
let queue = Promise.resolve();
function send() {
  clearTimeout(timer);
  const { lease, draftUrl, person } = form.dataset;
  const body = JSON.stringify(read());
  if (draftUrl && !isOver) queue = queue.then(() => post({ lease, draftUrl, person, body }));
}

// Another task is about to take this one's place.
export const sendNow = () => isUnsent() && send();

async function post({ lease, draftUrl, person, body }) {
  const kept = store.get(key(lease));
  const isShown = () => lease === form.dataset.lease && !isOver;
  if (lease === form.dataset.lease && isOver) return;
  try {
    const answer = await fetch(draftUrl, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json", "Rankloop-Person": person }, body, keepalive: true });
    if (!answer.ok) throw new Error(answer.status);
    if (store.get(key(lease)) === kept && isShown()) store.remove(key(lease));
    const { expires_in_seconds: seconds } = await answer.json().catch(() => ({}));
    if (!isShown()) return;
    savedNote.textContent = words.saved;
    if (seconds) watchExpiry(seconds);
  } catch {
    if (isShown()) savedNote.textContent = words.local;
  }
}

export function restore() {
  const kept = JSON.parse(store.get(key(form.dataset.lease)) ?? "null");
  if (!kept || kept.savedAt < Date.parse(form.dataset.savedAt || 0)) return;
  write(kept.state);
  if (form.elements.rationale) form.elements.rationale.value = kept.state.rationale;
  begin();
  say(words.restored);
  send();
}

// The task is over for this page: no more drafts of it. What the device keeps stays until the server has the ranking.
export function end() {
  clearTimeout(timer);
  isOver = true;
}

export const forget = (lease) => store.remove(key(lease));
