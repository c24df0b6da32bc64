// One person a virtual user: take the next task, rank it, again. Run by k6 (load/k6.py), which hands in the settings.
//
// ROAD  api     POST /tasks:next, POST /leases/{id}/ranking: JSON with a token
//       page    GET /projects/…/rank, POST /leases/{id}: the whole page each time, as without JavaScript
//       script  POST …/rank/ahead, POST /leases/{id}: as the page's script does it, the next task fetched meanwhile
//       label_studio  GET /api/projects/{id}/next, POST /api/tasks/{id}/annotations/
// Every answer that was acknowledged is written down as "ack <lease or task> <ranking>", for the audit.

import http from "k6/http";
import exec from "k6/execution";
import { SharedArray } from "k6/data";
import { Counter, Trend } from "k6/metrics";

const { BASE, ROAD, PROJECT, OUT } = __ENV;
const people = new SharedArray("people", () => JSON.parse(open(__ENV.PEOPLE)));
const next = new Trend("next", true), submit = new Trend("submit", true);
const done = new Counter("done"), empty = new Counter("empty"), failed = new Counter("failed");

export const options = {
  scenarios: { cycles: JSON.parse(__ENV.SCENARIO) },
  summaryTrendStats: ["count", "avg", "med", "p(95)", "p(99)", "max"],
  discardResponseBodies: false,
};

const me = () => people[(exec.vu.idInTest - 1) % people.length];
const JSON_BODY = { "Content-Type": "application/json", Accept: "application/json" };
const FORM = { "Sec-Fetch-Site": "same-origin", "Accept-Encoding": "gzip" };

function fail(answer, what) {
  failed.add(1);
  console.log(`failed ${what} ${answer.status} ${String(answer.body).slice(0, 200).replace(/\s+/g, " ")}`);
}

function shuffled(items) {
  return items.map((item) => [Math.random(), item]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
}

function acknowledged(lease, ranking) {
  done.add(1);
  console.log(`ack ${lease} ${ranking}`);
}

function api() {
  const headers = { Authorization: `Bearer ${me().token}`, ...JSON_BODY };
  const task = http.post(`${BASE}/api/v1/tasks:next`, JSON.stringify({ project_id: PROJECT }), { headers });
  next.add(task.timings.duration);
  if (task.status === 204) return empty.add(1);
  if (task.status !== 200) return fail(task, "next");
  const { lease_id, completions } = task.json();
  const order = shuffled(completions.map((completion) => [completion.id]));
  const answer = http.post(`${BASE}/api/v1/leases/${lease_id}/ranking`, JSON.stringify({ order }), { headers });
  submit.add(answer.timings.duration);
  if (answer.status !== 201) return fail(answer, "submit");
  acknowledged(lease_id, answer.json("id"));
}

const LEASE = /data-lease="([0-9a-f-]{36})"/, PLACE = /name="place_([0-9a-f-]{36})"/g;

// What a ranking page asks for, as its form would be sent.
function read(html) {
  const lease = LEASE.exec(html)?.[1];
  const ids = [...new Set([...html.matchAll(PLACE)].map((match) => match[1]))];
  const form = { rationale: "" };
  shuffled(ids).forEach((id, place) => (form[`place_${id}`] = String(place + 1)));
  return { lease, form };
}

const cookies = () => ({ rl_session: me().cookie });

function openPage() {
  const page = http.get(`${BASE}/projects/${PROJECT}/rank`, { headers: FORM, cookies: cookies() });
  next.add(page.timings.duration);
  if (page.status !== 200) return fail(page, "next");
  const task = read(page.body);
  if (!task.lease) return empty.add(1);
  return task;
}

function send({ lease, form }) {
  const headers = { ...FORM, Accept: "application/json" };
  const answer = http.post(`${BASE}/leases/${lease}`, form, { headers, cookies: cookies() });
  submit.add(answer.timings.duration);
  if (answer.status !== 200) return fail(answer, "submit");
  acknowledged(lease, answer.json("ranking_id"));
}

function page() {
  const task = openPage();
  if (task) send(task);
}

let inHand = null;

function script() {
  inHand ??= openPage();
  if (!inHand) return;
  const address = `${BASE}/projects/${PROJECT}/rank/ahead`;
  const desk = http.post(address, null, { headers: { ...FORM, Accept: "application/json" }, cookies: cookies() });
  next.add(desk.timings.duration);
  if (desk.status !== 200) return fail(desk, "next");
  send(inHand);
  const ahead = desk.json("ahead");
  inHand = ahead ? read(ahead.html) : null;
}

function label_studio() {
  const headers = { Authorization: `Token ${me().token}`, ...JSON_BODY };
  const task = http.get(`${BASE}/api/projects/${PROJECT}/next`, { headers });
  next.add(task.timings.duration);
  if (task.status === 404) return empty.add(1);
  if (task.status !== 200) return fail(task, "next");
  const { id, data } = task.json();
  const ranking = shuffled(data.answers.map((answer) => answer.id));
  const result = [{ from_name: "order", to_name: "answers", type: "ranker", value: { ranker: { rank: ranking } } }];
  const address = `${BASE}/api/tasks/${id}/annotations/?project=${PROJECT}`;
  const answer = http.post(address, JSON.stringify({ result, lead_time: 1 }), { headers });
  submit.add(answer.timings.duration);
  if (answer.status !== 201) return fail(answer, "submit");
  acknowledged(id, answer.json("id"));
}

export default { api, page, script, label_studio }[ROAD];

export function handleSummary(data) {
  return { [OUT]: JSON.stringify(data) };
}
