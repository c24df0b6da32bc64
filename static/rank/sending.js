// Submitting and skipping: what was said is laid on the device, the next task comes into view at once, and the sending goes
// on behind it.
import { fill, fillCount, form, note, savedNote, say, strip, submitButton, words } from "./page.js";
import * as ahead from "./ahead.js";
import * as clock from "./clock.js";
import * as drafts from "./drafts.js";
import { look } from "./focus.js";
import { isUntouched } from "./history.js";
import * as outbox from "./outbox.js";
import * as pack from "./pack.js";
import { review } from "./review.js";
import { isReady, unplaced } from "./state.js";
import { canShow, show } from "./swap.js";

// From the submitting to the next task, or to the end of it.
let isSending = false;
// Nothing is there to go on with: the page waits until all is sent.
let isResting = false;

export function listen() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-skip]")) return;
    event.preventDefault();
    skip(event.target);
  });
  document.addEventListener("change", ({ target }) => { if (target.name === "kind") target.form.reason.required = target.value === "other"; });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
  outbox.listen(form.dataset.person);
  outbox.onNews(hear);
}

export function renew() {
  isSending = isResting = false;
  note.textContent = "";
}

// A page that was opened: what waits is sent, what was ranked already is not shown again, and the next task is fetched.
export async function begin() {
  const { lease } = form.dataset;
  const isWaiting = (await outbox.waiting()).some((entry) => entry.lease === lease);
  await showRefused();
  if (isWaiting || (await pack.isDone(lease))) return moveOn();
  await goOn();
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

async function start() {
  if ("trial" in form.dataset) return form.submit();
  await leave({ ...said(form), how: clock.tell() });
}

async function skip(dialogForm) {
  dialogForm.closest("dialog").close();
  await leave({ ...said(dialogForm), isSkip: true });
}

const said = (element) => ({ url: element.getAttribute("action"), body: String(new URLSearchParams(new FormData(element))) });

async function leave(entry) {
  if (isSending) return;
  isSending = true;
  drafts.end();
  const { lease, person } = form.dataset;
  await outbox.add({ ...entry, lease, person });
  await pack.mark(lease, true);
  await moveOn();
}

async function moveOn() {
  isSending = true;
  const page = form.dataset.aheadUrl ? await ahead.take() : null;
  if (page && canShow(page)) {
    show(page);
    say(words.nextTask);
    return goOn();
  }
  rest();
  const isAllSent = await outbox.flush();
  if (isAllSent && !pack.isFromDevice()) location.assign(form.dataset.nextUrl);
  else if (isAllSent) waitForConnection();
}

function waitForConnection() {
  note.textContent = words.packDone;
  window.addEventListener("online", () => location.assign(form.dataset.nextUrl));
}

function rest() {
  isResting = true;
  form.querySelector("main").inert = true;
  strip.querySelectorAll(".chip").forEach((chip) => { chip.disabled = true; });
  submitButton.setAttribute("aria-disabled", "true");
  say(words.sending);
}

// Behind the annotator's back: send what waits, then fetch the task after this one.
async function goOn() {
  const isAllSent = await outbox.flush();
  // Another tab may have sent it, and heard the refusal.
  await showRefused();
  if (!isAllSent || !form.dataset.aheadUrl) return;
  const { lease } = form.dataset;
  const inHand = await ahead.fetchAhead();
  const isOther = inHand !== undefined && inHand !== lease && lease === form.dataset.lease;
  // An admin took this task back before it was begun: what the server gives instead is the one to work on.
  if (isOther && !isSending && isUntouched() && !(await pack.next(null)) && !(await outbox.waiting()).length) location.assign(form.dataset.nextUrl);
}

async function hear({ kind, entry, seconds, status, problem }) {
  if (kind === "stored") await stored(entry);
  if (kind === "refused") await takeBack(entry, problem);
  if (kind === "lost" || kind === "busy" || kind === "stranger") await tellWaiting(kind, { n: seconds, status });
}

async function stored({ lease }) {
  forget(lease);
  if (isResting && !(await outbox.waiting()).length) location.assign(form.dataset.nextUrl);
  else if (!isResting) note.textContent = "";
}

async function tellWaiting(kind, values) {
  const { length: num } = await outbox.waiting();
  note.textContent = kind === "stranger" ? fillCount(words.stranger, { n: num }) : fill(words[kind === "busy" ? "refused" : kind], values);
  savedNote.textContent = fill(words.waiting, { num });
}

// The server has it, or it is over: nothing of it stays on the device.
function forget(lease) {
  drafts.forget(lease);
  clock.forget(lease);
}

// Refused: the annotator is back at that task, with the reasons; what was begun meanwhile is kept as a draft. When it
// can't be ranked any more, the page says why, and keeps the ranking until its annotator has read that; so it does with a
// skip that was not taken.
const isToMend = ({ isSkip }, { status }) => status === 422 && !isSkip;

async function takeBack(entry, problem) {
  if (!isToMend(entry, problem)) {
    await showRefused();
    if (isResting) location.assign(form.dataset.nextUrl);
    return;
  }
  drafts.sendNow();
  const answer = await outbox.post(entry, "text/html");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  await outbox.drop(entry.lease);
  await pack.mark(entry.lease, false);
  if (answer.status === 422 && canShow(page)) show(page);
  else location.assign(form.dataset.nextUrl);
}

async function showRefused() {
  const box = document.getElementById("refused");
  const refused = (await outbox.refused()).filter((entry) => !isToMend(entry, entry.refusal));
  box.replaceChildren(...refused.map(row));
  box.hidden = !refused.length;
}

function row({ lease, at, isSkip, refusal }) {
  const line = document.createElement("p");
  const button = document.createElement("button");
  line.append(fill(isSkip ? words.notSkipped : words.notStored, { time: new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }), reason: refusal.detail }), " ", button);
  button.type = "button";
  button.textContent = words.discard;
  button.addEventListener("click", async () => {
    await outbox.drop(lease);
    await showRefused();
  });
  return line;
}
