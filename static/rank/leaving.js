// Who signs out leaves nothing of theirs on the device. What still waits to be sent is asked about first.
import * as device from "./device.js";

// True when it may go on; the questions hold {n}.
export async function leave({ leave: person, question, questionOne }) {
  const isMine = (row) => row.person === person;
  const waiting = (await device.all("outbox")).filter(isMine);
  if (waiting.length && !confirm((waiting.length === 1 ? questionOne : question).replace("{n}", waiting.length))) return false;
  for (const store of ["outbox", "pack"]) {
    for (const row of (await device.all(store)).filter(isMine)) await device.remove(store, row.lease);
  }
  forgetDrafts();
  await forgetPages();
  return true;
}

// The pages that others took along and did not sign out from. What they ranked stays: it waits for them, as their tasks do.
export const forgetOthers = (person) => dropPages((name) => name !== `rankloop-pack-${person}`);

function forgetDrafts() {
  try {
    for (const key of Object.keys(localStorage)) if (/^rankloop-(?:draft-|how-|pack$)/.test(key)) localStorage.removeItem(key);
  } catch { /* storage is forbidden: nothing was kept */ }
}

async function forgetPages() {
  if (!("caches" in window) || !(await dropPages(() => true))) return;
  for (const registration of await navigator.serviceWorker.getRegistrations()) await registration.unregister();
}

// How many packs' pages there were.
async function dropPages(isMeant) {
  const names = (await caches.keys()).filter(isMeant);
  await Promise.all(names.map((name) => caches.delete(name)));
  return names.length;
}
