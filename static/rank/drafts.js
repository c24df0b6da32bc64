// Drafts: the server has them; the device keeps what the server has not yet heard.
import { form, savedNote, say, store, words } from "./page.js";
import { watchExpiry } from "./expiry.js";
import { begin } from "./history.js";
import { read, write } from "./state.js";

const WAIT_MILLISECONDS = 700;
const key = () => "rankloop-draft-" + form.dataset.lease;
let timer = 0;
let isOver = false;

export function listen() {
  form.addEventListener("input", (event) => { if (event.target.id === "rationale") save(); });
  window.addEventListener("online", () => isUnsent() && send());
  document.addEventListener("visibilitychange", () => document.hidden && isUnsent() && send());
}

const isUnsent = () => store.get(key()) !== null;

export function save() {
  store.set(key(), JSON.stringify({ savedAt: Date.now(), state: read() }));
  clearTimeout(timer);
  timer = setTimeout(send, WAIT_MILLISECONDS);
}

// One after the other, so that an older draft never overtakes a newer one.
let queue = Promise.resolve();
function send() {
  clearTimeout(timer);
  queue = queue.then(post);
}

async function post() {
  const kept = store.get(key());
  if (isOver) return;
  try {
    const answer = await fetch(form.dataset.draftUrl, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify(read()), keepalive: true });
    if (!answer.ok) throw new Error(answer.status);
    if (store.get(key()) === kept) store.remove(key());
    savedNote.textContent = words.saved;
    const { expires_in_seconds: seconds } = await answer.json().catch(() => ({}));
    if (seconds) watchExpiry(seconds);
  } catch {
    savedNote.textContent = words.local;
  }
}

export function restore() {
  const kept = JSON.parse(store.get(key()) ?? "null");
  if (!kept || kept.savedAt < Date.parse(form.dataset.savedAt || 0)) return;
  write(kept.state);
  if (form.elements.rationale) form.elements.rationale.value = kept.state.rationale;
  begin();
  say(words.restored);
  send();
}

// The ranking is on its way: a draft that waits would only come after it.
export const hold = () => clearTimeout(timer);

// The task is over for this page: no more drafts of it.
export function end() {
  hold();
  isOver = true;
}

export const forget = () => store.remove(key());
