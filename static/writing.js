// A piece of writing saves itself as one writes; what the server has not heard is kept on the device and comes back.
const form = document.querySelector("form[data-autosave]");
const note = document.querySelector(".saved");
const key = "rankloop-writing-" + form.dataset.autosave;
const WAIT_MILLISECONDS = 1200;
let timer = 0;
let savedAt = form.dataset.savedAt;
let saving = null;

// A browser may forbid storage: then nothing is kept on the device, and all else works.
const store = (act) => { try { return act(localStorage); } catch { return null; } };
const fields = () => [...form.querySelectorAll("textarea, input[name], select")];
const content = () => JSON.stringify(fields().map(({ name, value }) => [name, value]));

// The copy stays until a page shows that the server has what it holds: a page that is on its way while a save is
// answered may still hold the older text. `heard` is when the server saved this very text, `sentAfter` the save that
// the page knew when the form was sent; without them nobody has heard of it.
const keep = (mark) => store((device) => device.setItem(key, JSON.stringify({ text: content(), ...mark })));
const isHeardBy = (page, { heard, sentAfter }) => (heard ? page >= heard : sentAfter !== undefined && page > sentAfter);

// One save at a time, so that an older one never overtakes a newer one.
function save() {
  clearTimeout(timer);
  saving ??= saveAll().finally(() => { saving = null; });
  return saving;
}

async function saveAll() {
  for (let text = null; text !== content();) {
    text = content();
    try {
      await send();
    } catch {
      note.textContent = note.dataset.lost;
      return;
    }
    if (text === content()) keep({ heard: savedAt });
  }
  note.textContent = note.dataset.saved;
}

// It says which save it follows: what a page sent that was left since, and what arrives only now, is not stored. The page
// that is still here says so again, on top of what the server has.
async function send() {
  const body = new URLSearchParams(new FormData(form));
  body.set("action", "save");
  body.set("follows", savedAt);
  const headers = { Accept: "application/json" };
  const keepalive = String(body).length < 60000;
  const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers, keepalive });
  if (!answer.ok) throw new Error(answer.status);
  const { saved_at: now, is_stored: isStored } = await answer.json();
  savedAt = now;
  if (!isStored) await send();
}

form.addEventListener("input", () => {
  keep({});
  clearTimeout(timer);
  timer = setTimeout(save, WAIT_MILLISECONDS);
});
form.addEventListener("submit", () => {
  clearTimeout(timer);
  keep({ sentAfter: savedAt });
});

const kept = JSON.parse(store((device) => device.getItem(key)) ?? "null");
if (kept?.text && !isHeardBy(savedAt, kept)) {
  for (const [name, value] of JSON.parse(kept.text)) {
    const field = form.elements.namedItem(name);
    if (field && "value" in field) field.value = value;
  }
  save();
} else {
  store((device) => device.removeItem(key));
}
window.addEventListener("online", () => store((device) => device.getItem(key)) && save());
