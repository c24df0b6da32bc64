// Find in all answers at once: every match is marked, counted by card, and reached by Enter. The text itself is not touched.
import { cards, fill, form, words } from "./page.js";
import { unfold } from "./fold.js";
import { parts, rangeOf, textOf } from "./text.js";

const marks = typeof Highlight === "undefined" ? null : CSS.highlights;
let bar, input, count;
let found = [];
let at = -1;

export function listen() {
  bar = form.querySelector(".finder");
  input = bar.querySelector("input");
  count = bar.querySelector("output");
  input.addEventListener("input", search);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") close();
    else go(event.shiftKey ? -1 : 1);
  });
  bar.querySelector("[data-find=next]").addEventListener("click", () => go(1));
  bar.querySelector("[data-find=previous]").addEventListener("click", () => go(-1));
  bar.querySelector("[data-find=close]").addEventListener("click", close);
  form.querySelector("[data-tool=find]").addEventListener("click", openFinder);
}

// What was found stood in other answers.
export function renew() {
  bar.hidden = true;
  found = [];
  show();
}

export function openFinder() {
  bar.hidden = false;
  const chosen = String(getSelection()).trim();
  if (chosen && chosen.length < 80 && !chosen.includes("\n")) input.value = chosen;
  input.focus();
  input.select();
  search();
}

function close() {
  bar.hidden = true;
  found = [];
  show();
  form.querySelector(".answer.here")?.focus({ preventScroll: true });
}

function search() {
  at = -1;
  found = input.value.trim() ? cards.flatMap((card) => matches(card, input.value.trim())) : [];
  show();
}

function matches(card, text) {
  const nodes = parts(card.querySelector(".body"));
  let length = 0;
  const starts = nodes.map((node) => (length += textOf(node).length) - textOf(node).length);
  const pattern = new RegExp(text.split(/\s+/).map(escape).join("\\s+"), "giu");
  return [...nodes.map(textOf).join("").matchAll(pattern)].map((match) => ({ card, range: rangeOf(nodes, starts, match.index, match.index + match[0].length) }));
}

const escape = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

function go(by) {
  if (!found.length) return;
  at = (at + by + found.length + (at < 0 && by < 0 ? 1 : 0)) % found.length;
  const { card, range } = found[at];
  unfold(card);
  range.startContainer.parentElement.scrollIntoView({ block: "center" });
  show();
}

function show() {
  marks?.set("found", new Highlight(...found.map(({ range }) => range)));
  marks?.set("found-here", new Highlight(...(found[at] ? [found[at].range] : [])));
  const counts = cards.map((card) => [card.dataset.letter, found.filter((match) => match.card === card).length]).filter(([, num]) => num);
  const where = counts.map(([letter, num]) => `${letter} ${num}`).join(" · ");
  if (!input.value.trim()) count.textContent = "";
  else if (!found.length) count.textContent = words.notFound;
  else count.textContent = fill(at < 0 ? words.found : words.foundAt, { at: at + 1, n: found.length, letter: found[at]?.card.dataset.letter, where });
}
