// Rankings and skips on their way. Each lies on the device until the server has it; sent again and again it is stored once, as the
// lease is its key. What belongs to somebody else is left alone: it waits for them.
import * as device from "./device.js";

const RETRY_SECONDS = [2, 4, 8, 15, 30];
const LATER = new Set([408, 425, 429]);
const listeners = [];
let attempt = 0;
let timer = 0;
let person = null;

// `hear({kind, entry, ...})`: "stored", "lost" (no connection, `seconds` to the next try), "busy" (the server can't,
// `status` and `seconds`), "stranger" (somebody else is signed in, or nobody), "refused" (`problem`, a problem+json).
export const onNews = (hear) => listeners.push(hear);
const tell = (news) => listeners.forEach((hear) => hear(news));

export function listen(whose) {
  person = whose;
  window.addEventListener("online", () => flush());
  document.addEventListener("visibilitychange", () => document.hidden || flush());
}

// {lease, person, url, body, how, isSkip}: what a form would send, and how a ranking came about.
export const add = (entry) => device.put("outbox", { ...entry, at: Date.now(), refusal: null });
export const has = async (lease) => !!(await device.get("outbox", lease));
export const drop = (lease) => device.remove("outbox", lease);
const mine = async () => (await device.all("outbox")).filter((entry) => entry.person === person).sort((a, b) => a.at - b.at);
export const waiting = async () => (await mine()).filter((entry) => !entry.refusal);
export const refused = async () => (await mine()).filter((entry) => entry.refusal);

// Sends what waits, oldest first; true when nothing waits any more. Tabs take turns.
export function flush() {
  clearTimeout(timer);
  return navigator.locks ? navigator.locks.request("rankloop-outbox", drain) : drain();
}

async function drain() {
  for (const entry of await waiting()) {
    const news = await send(entry);
    if (news.kind === "stored") {
      attempt = 0;
      await drop(entry.lease);
    } else if (news.kind === "refused") {
      await device.put("outbox", { ...entry, refusal: news.problem });
    } else {
      if (news.kind !== "stranger") retry(news);
      tell({ ...news, entry });
      return false;
    }
    tell({ ...news, entry });
  }
  return true;
}

function retry(news) {
  news.seconds = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
  attempt += 1;
  clearTimeout(timer);
  timer = setTimeout(flush, news.seconds * 1000);
}

async function send(entry) {
  let answer;
  try {
    answer = await post(entry, "application/json");
  } catch {
    return { kind: "lost" };
  }
  const { status } = answer;
  if (answer.ok) return { kind: "stored" };
  if (status >= 500 || LATER.has(status)) return { kind: "busy", status };
  const problem = await answer.json().catch(() => ({ detail: String(status), errors: [] }));
  return status === 401 || problem.title === "OtherPerson" ? { kind: "stranger" } : { kind: "refused", problem: { ...problem, status } };
}

// Also asks for the page that says what is wrong with an answer.
export function post(entry, accept) {
  const body = new URLSearchParams(entry.body);
  if (entry.how) body.set("how", JSON.stringify({ ...entry.how, sent_at: new Date().toISOString() }));
  return fetch(entry.url, { method: "POST", body, headers: { Accept: accept, "Rankloop-Person": entry.person } });
}
