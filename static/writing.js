// A piece of writing saves itself as one writes; what the server has not heard is kept on the device and comes back.
const form = document.querySelector("form[data-autosave]");
const note = document.querySelector(".saved");
const key = "rankloop-writing-" + form.dataset.autosave;
const WAIT_MILLISECONDS = 1200;
let timer = 0;

// A browser may forbid storage: then nothing is kept on the device, and all else works.
const store = (act) => { try { return act(localStorage); } catch { return null; } };
const fields = () => [...form.querySelectorAll("textarea, input[name], select")];
const content = () => JSON.stringify(fields().map(({ name, value }) => [name, value]));

async function save() {
  const kept = content();
  try {
    const body = new URLSearchParams(new FormData(form));
    body.set("action", "save");
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "application/json" }, keepalive: kept.length < 60000 });
    if (!answer.ok) throw new Error(answer.status);
    if (content() === kept) store((device) => device.removeItem(key));
    note.textContent = note.dataset.saved;
  } catch {
    note.textContent = note.dataset.lost;
  }
}

form.addEventListener("input", () => {
  store((device) => device.setItem(key, content()));
  clearTimeout(timer);
  timer = setTimeout(save, WAIT_MILLISECONDS);
});
form.addEventListener("submit", () => {
  clearTimeout(timer);
  store((device) => device.removeItem(key));
});
window.addEventListener("online", () => store((device) => device.getItem(key)) && save());

const kept = JSON.parse(store((device) => device.getItem(key)) ?? "null");
if (kept && !document.querySelector("[data-focus]")) {
  for (const [name, value] of kept) {
    const field = form.elements.namedItem(name);
    if (field && "value" in field) field.value = value;
  }
  save();
}
