// Two answers side by side, and what only one of them says.
import { cardOf, cards, fill, form, letterOf, words } from "./page.js";
import { inBoth, tokens } from "./diff.js";
import { current } from "./focus.js";
import { parts, textOf } from "./text.js";

// Texts with less in common are two texts, and marks would only break them up.
const MIN_PERCENT = 30;
const dialog = document.getElementById("compare");
const [left, right] = dialog.querySelectorAll("select");
const [before, after] = dialog.querySelectorAll(".prose");
const summary = dialog.querySelector("[role=status]");

export function listen() {
  form.querySelector("[data-tool=compare]").addEventListener("click", open);
  for (const select of [left, right]) select.addEventListener("change", draw);
}

// The answer in hand beside the next one.
export function open() {
  for (const select of [left, right]) select.replaceChildren(...cards.map((card) => new Option(card.dataset.letter, card.dataset.id)));
  left.value = current.dataset.id;
  right.value = cards[(cards.indexOf(current) + 1) % cards.length].dataset.id;
  draw();
  dialog.showModal();
}

function draw() {
  [[left, before], [right, after]].forEach(([select, side]) => {
    side.replaceChildren(...cardOf(select.value).querySelector(".body").cloneNode(true).childNodes);
    side.parentElement.querySelector("h3").textContent = letterOf(select.value);
  });
  const [a, b] = [read(before), read(after)];
  const [inA, inB] = inBoth(a.map(({ key }) => key), b.map(({ key }) => key));
  const num = inA.filter(Boolean).length;
  const percent = Math.round((200 * num) / (a.length + b.length || 1));
  const isSame = num === a.length && num === b.length;
  summary.textContent = isSame ? words.same : fill(percent < MIN_PERCENT ? words.unlike : words.common, { percent });
  if (percent < MIN_PERCENT) return;
  mark(a, inA);
  mark(b, inB);
}

// The tokens of a side, each with the part of the page that it stands in.
function read(side) {
  return parts(side).flatMap((part) => {
    if (part.data === undefined) return [{ part, key: textOf(part) }];
    return tokens(part.data).map((token) => ({ part, ...token }));
  });
}

function mark(list, isInBoth) {
  const only = Map.groupBy(list.filter((_, index) => !isInBoth[index]), ({ part }) => part);
  for (const [part, found] of only) {
    if (part.data === undefined) part.classList.add("only");
    else part.replaceWith(...split(part.data, found));
  }
}

// The text with a mark around each stretch of tokens that have nothing but spaces between them.
function split(text, found) {
  const nodes = [];
  let end = 0;
  for (const { from, to } of stretches(text, found)) {
    const element = document.createElement("mark");
    element.className = "only";
    element.textContent = text.slice(from, to);
    nodes.push(text.slice(end, from), element);
    end = to;
  }
  return [...nodes, text.slice(end)];
}

function stretches(text, found) {
  const joined = [];
  for (const { start, end } of found) {
    const last = joined.at(-1);
    if (last && !text.slice(last.to, start).trim()) last.to = end;
    else joined.push({ from: start, to: end });
  }
  return joined;
}
