// Drafts: the server has them; the device keeps its copy until a page shows that the server has what it holds. A page that
// is on its way while a draft is answered may still hold the older one, and one that lies in a pack always does.
import { form, savedNote, say, store, words } from "./page.js";
import { watchExpiry } from "./expiry.js";
import { begin } from "./history.js";
import { read, write } from "./state.js";

const WAIT_MILLISECONDS = 700;
// Clocks differ: only what another device saved this much later is taken for the newer one.
const CLOCKS_DIFFER_MILLISECONDS = 60_000;
const MAX_KEEPALIVE_CHARACTERS = 20_000;
const key = (lease) => "rankloop-draft-" + lease;
let timer = 0;
// The task on the page: {lease, person, draftUrl, savedAt, isOver}. `savedAt` is the server's last draft that is known here.
let desk = null;

export function listen() {
  form.addEventListener("input", (event) => { if (event.target.id === "rationale") save(); });
  window.addEventListener("online", () => isUnsent() && send());
  document.addEventListener("visibilitychange", () => document.hidden && isUnsent() && send());
}

export function renew() {
  const { lease, person, draftUrl, savedAt } = form.dataset;
  desk = { lease, person, draftUrl, savedAt, isOver: false };
}

// {state, at: when it was kept, follows: the server's draft known then, heard: when the server saved this very state}.
const kept = () => JSON.parse(store.get(key(desk.lease)) ?? "null");
const keep = (found) => store.set(key(desk.lease), JSON.stringify(found));
const isUnsent = () => !!kept() && !kept().heard;

export function save() {
  if ("trial" in form.dataset) return;
  keep({ state: read(), at: Date.now(), follows: desk.savedAt });
  clearTimeout(timer);
  if (desk.draftUrl) timer = setTimeout(send, WAIT_MILLISECONDS);
}

// One after the other, so that an older draft never overtakes a newer one.
let queue = Promise.resolve();
function send() {
  clearTimeout(timer);
  const [from, state] = [desk, read()];
  if (from.draftUrl && !from.isOver) queue = queue.then(() => deliver(from, state));
}

// Another task is about to take this one's place.
export const sendNow = () => isUnsent() && send();

async function deliver(from, state) {
  if (from.isOver) return;
  try {
    const seconds = await post(from, state);
    if (from !== desk || from.isOver) return;
    if (JSON.stringify(kept()?.state) === JSON.stringify(state)) keep({ ...kept(), heard: from.savedAt });
    savedNote.textContent = words.saved;
    watchExpiry(seconds);
  } catch {
    if (from === desk && !from.isOver) savedNote.textContent = words.local;
  }
}

// It says which draft it follows: what a page sent that was left since, and what arrives only now, is not stored. The page
// that is still here says so again, on top of what the server has.
async function post(from, state) {
  const body = JSON.stringify({ ...state, follows: from.savedAt });
  const headers = { "Content-Type": "application/json", Accept: "application/json", "Rankloop-Person": from.person };
  const answer = await fetch(from.draftUrl, { method: "POST", headers, body, keepalive: body.length < MAX_KEEPALIVE_CHARACTERS });
  if (!answer.ok) throw new Error(answer.status);
  const { saved_at: savedAt, is_stored: isStored, expires_in_seconds: seconds } = await answer.json();
  from.savedAt = savedAt;
  return isStored ? seconds : post(from, state);
}

export function restore() {
  const found = kept();
  if (!found) return;
  if (isOnPage(found)) return forget(desk.lease);
  write(found.state);
  if (form.elements.rationale) form.elements.rationale.value = found.state.rationale;
  begin();
  say(words.restored);
  send();
}

// Whether the page holds what was kept, or something newer from another device.
function isOnPage({ heard, follows, at }) {
  if (heard) return desk.savedAt >= heard;
  return desk.savedAt !== follows && Date.parse(desk.savedAt) - at > CLOCKS_DIFFER_MILLISECONDS;
}

// The task is over for this page: no more drafts of it. What the device keeps stays until the server has the ranking.
export function end() {
  clearTimeout(timer);
  desk.isOver = true;
}

export const forget = (lease) => store.remove(key(lease));
