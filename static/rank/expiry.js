// Whose task it is, and for how long.
import { fill, note, words } from "./page.js";

const LONG_SECONDS = 10 * 86400;
let timers = [];

export function watchExpiry(seconds) {
  timers.forEach(clearTimeout);
  const tell = (text, after) => setTimeout(() => { note.textContent = text; }, Math.max(0, after) * 1000);
  timers = seconds > LONG_SECONDS ? [] : [tell(fill(words.expiring, { n: 2 }), seconds - 120), tell(words.expired, seconds)];
}
