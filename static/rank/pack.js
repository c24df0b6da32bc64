// A pack: tasks that were taken along, to be ranked without a connection. It belongs to one person and lasts 12 hours.
import { fillCount, form, store, words } from "./page.js";
import * as device from "./device.js";
import { forgetOthers } from "./leaving.js";
import { base } from "./site.js";

const FORMULA_FONT = new URL("../vendor/stix-math/stix-math.woff2", import.meta.url).href;
const cacheName = () => `rankloop-pack-${form.dataset.person}`;
const dialog = document.getElementById("offline");

export function listen() {
  if (!dialog) return;
  dialog.querySelector("form").addEventListener("submit", take);
  show();
  comeBack();
}

// Somebody else was signed in here meanwhile: the tasks of one's pack are still there, the pages are fetched again.
async function comeBack() {
  if (isFromDevice() || !("caches" in window) || !(await left()).length || (await caches.has(cacheName()))) return;
  await prepare().catch(() => { /* no connection: the tasks are ranked without a new page */ });
}

const isMine = (row) => row.person === form.dataset.person && row.project === form.dataset.project;
const rows = async () => (await device.all("pack")).filter(isMine).sort((a, b) => a.position - b.position);
const left = async () => (await rows()).filter((row) => !row.isDone && row.expiresAt > Date.now());

// The first task that is not done, but for the one that is on the page.
export const next = async (shown) => (await left()).find(({ lease }) => lease !== shown) ?? null;
// Without a connection the page comes from the device, and may show a task that was ranked since.
export const isDone = async (lease) => isFromDevice() && !!(await device.get("pack", lease))?.isDone;
export const isFromDevice = () => "fromDevice" in document.documentElement.dataset;

// Ranked, or, when that was refused, to be ranked again.
export async function mark(lease, isDone) {
  const row = await device.get("pack", lease);
  if (row) await device.put("pack", { ...row, isDone });
  if (row) await show();
}

async function take(event) {
  event.preventDefault();
  const data = new URLSearchParams(new FormData(event.target));
  // Chosen here and kept: when the answer is lost on its way, the same is asked for again.
  const id = store.get("rankloop-pack") ?? crypto.randomUUID();
  store.set("rankloop-pack", id);
  data.set("pack_id", id);
  tell(words.packing);
  try {
    const answer = await fetch(form.dataset.packUrl, { method: "POST", body: data, headers: { Accept: "application/json", "Rankloop-Person": form.dataset.person } });
    const found = await answer.json();
    if (!answer.ok) return tell(found.detail);
    await keep(found);
    await prepare();
    await show();
  } catch {
    tell(words.notPacked);
  }
}

async function keep({ pages, expires_at: until }) {
  const { person, project } = form.dataset;
  for (const row of (await device.all("pack")).filter((row) => row.person === person)) await device.remove("pack", row.lease);
  for (const [position, { lease_id: lease, html }] of pages.entries()) {
    await device.put("pack", { lease, html, position, person, project, expiresAt: Date.parse(until), isDone: false });
  }
}

// So that a reload without a connection finds the page and all its files.
async function prepare() {
  await navigator.serviceWorker.register(`${base}/service-worker.js`);
  await forgetOthers(form.dataset.person);
  const cache = await caches.open(cacheName());
  const files = performance.getEntriesByType("resource").map(({ name }) => name).filter((name) => new URL(name).pathname.startsWith(`${base}/static/`));
  const hasFormulas = document.querySelector("math") || (await left()).some(({ html }) => html.includes("<math"));
  await cache.addAll([...new Set([...files, ...(hasFormulas ? [FORMULA_FONT] : [])]), form.dataset.nextUrl]);
  await navigator.serviceWorker.ready;
}

async function show() {
  const tasks = await left();
  if (!tasks.length) store.remove("rankloop-pack");
  const time = tasks.length ? new Date(tasks[0].expiresAt).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : "";
  tell(tasks.length ? fillCount(words.packed, { n: tasks.length, time }) : "");
}

function tell(message) {
  dialog.querySelector("[role=status]").textContent = message;
}
