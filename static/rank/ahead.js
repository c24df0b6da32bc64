// The next task: fetched while one is ranked, or taken from the pack that lies on the device. Shown without a new page.
import { form } from "./page.js";
import * as pack from "./pack.js";
import { base } from "./site.js";

let next = null;

export function listen() {
  // Whoever closes the page gives the next task to others at once. A pack stays, and what is in hand too.
  window.addEventListener("pagehide", (event) => {
    if (next?.url && !event.persisted) navigator.sendBeacon(next.url);
  });
}

// Asks the server what lies ahead. Gives the lease that it takes to be in hand; undefined: no answer.
export async function fetchAhead() {
  const { aheadUrl, person, lease } = form.dataset;
  try {
    const answer = await fetch(aheadUrl, { method: "POST", headers: { Accept: "application/json", "Rankloop-Person": person } });
    if (!answer.ok) return undefined;
    const { in_hand: inHand, ahead } = await answer.json();
    if (ahead && ahead.lease_id !== form.dataset.lease && form.dataset.lease === lease) keep(ahead);
    return inHand;
  } catch {
    return undefined;
  }
}

function keep({ lease_id: lease, html }) {
  next = { page: new DOMParser().parseFromString(html, "text/html"), url: `${base}/leases/${lease}/let-go` };
}

// The page of the next task, once; null when there is none yet.
export async function take() {
  const packed = await pack.next(form.dataset.lease);
  if (packed) return new DOMParser().parseFromString(packed.html, "text/html");
  const found = next?.page ?? null;
  next = null;
  return found;
}
