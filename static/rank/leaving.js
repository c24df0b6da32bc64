// Who signs out leaves nothing of theirs on the device. What still waits to be sent is asked about first.
import * as device from "./device.js";

// True when it may go on; `question` holds {num}.
export async function leave(person, question) {
  const isMine = (row) => row.person === person;
  const waiting = (await device.all("outbox")).filter(isMine);
  if (waiting.length && !confirm(question.replace("{num}", waiting.length))) return false;
  for (const store of ["outbox", "pack"]) {
    for (const row of (await device.all(store)).filter(isMine)) await device.remove(store, row.lease);
  }
  forgetDrafts();
  await forgetPages();
  return true;
}

function forgetDrafts() {
  try {
    for (const key of Object.keys(localStorage)) if (/^rankloop-(?:draft-|how-|pack$)/.test(key)) localStorage.removeItem(key);
  } catch { /* storage is forbidden: nothing was kept */ }
}

async function forgetPages() {
  if (!("caches" in window) || !(await caches.delete("rankloop-pack"))) return;
  for (const registration of await navigator.serviceWorker.getRegistrations()) await registration.unregister();
}
