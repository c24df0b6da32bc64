// The questions about the whole ranking, by keyboard: all bad, how sure, and the reasons.
import { form } from "./page.js";
import { current, look } from "./focus.js";
import { changed } from "./history.js";
import { submit } from "./sending.js";
import { check } from "./state.js";

const field = (id) => form.querySelector(`.questions #${id}`);

export function renew() {
  field("rationale")?.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") look(current);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
}

export function toggleAllBad() {
  const box = field("all_bad");
  if (!box) return false;
  box.checked = !box.checked;
  changed(`${box.labels[0].firstChild.textContent.trim()}: ${box.checked ? "✓" : "–"}`);
}

// Not said, unsure, fairly sure, sure, not said, …
export function nextConfidence() {
  const words = [...form.querySelectorAll("input[name=confidence]")].sort((a, b) => a.value - b.value);
  if (!words.length) return false;
  const next = words[(words.findIndex((word) => word.checked) + 1) % words.length];
  check("confidence", next.value);
  changed(next.ariaLabel ?? next.nextElementSibling.textContent);
}

export function writeReasons() {
  if (!field("rationale")) return false;
  field("rationale").focus();
}
