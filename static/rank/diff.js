// What two lists of tokens have in common. Pure: no page, no state.
// Patience diff (Bram Cohen): tokens that stand once in either list anchor the rest, so that a moved comma does not tear a
// sentence apart. Between anchors the longest common subsequence, by the table; a gap too large for one has nothing in common.
const MAX_CELLS = 4_000_000;

// Words of letters and digits; scripts that put no spaces between words go by the character; anything else by itself.
const SPACELESS = "\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}\\p{sc=Thai}\\p{sc=Lao}\\p{sc=Khmer}\\p{sc=Myanmar}";
const WORD = `[[\\p{L}\\p{N}\\p{M}_]--[${SPACELESS}]]+`;
const TOKEN = new RegExp(`[${SPACELESS}]\\p{M}*|${WORD}(?:['’]${WORD})*|\\S`, "gv");

// [{start, end, key}] of a text; two tokens are the same when their keys are. Spaces are no tokens.
export const tokens = (text) => [...text.matchAll(TOKEN)].map(({ 0: key, index }) => ({ start: index, end: index + key.length, key }));

// Two lists of booleans: is this token of `a` (of `b`) in both?
export function inBoth(a, b) {
  const kept = [new Array(a.length).fill(false), new Array(b.length).fill(false)];
  const keep = (i, j) => { kept[0][i] = kept[1][j] = true; };
  match(a, b, { fromA: 0, toA: a.length, fromB: 0, toB: b.length }, keep);
  return kept;
}

function match(a, b, { fromA, toA, fromB, toB }, keep) {
  while (fromA < toA && fromB < toB && a[fromA] === b[fromB]) keep(fromA++, fromB++);
  while (fromA < toA && fromB < toB && a[toA - 1] === b[toB - 1]) keep(--toA, --toB);
  if (fromA === toA || fromB === toB) return;
  const found = anchors(a, b, { fromA, toA, fromB, toB });
  if (!found.length) return table(a, b, { fromA, toA, fromB, toB }, keep);
  for (const [i, j] of [...found, [toA, toB]]) {
    match(a, b, { fromA, toA: i, fromB, toB: j }, keep);
    if (i < toA) keep(i, j);
    [fromA, fromB] = [i + 1, j + 1];
  }
}

// Pairs of tokens that are the only ones of their kind on both sides, as many as stand in the same order.
function anchors(a, b, { fromA, toA, fromB, toB }) {
  const onlyInA = once(a, fromA, toA);
  const onlyInB = once(b, fromB, toB);
  const pairs = [];
  for (let i = fromA; i < toA; i++) if (onlyInA.get(a[i]) >= 0 && onlyInB.get(a[i]) >= 0) pairs.push([i, onlyInB.get(a[i])]);
  return longestRising(pairs);
}

// Token -> where it stands, or -1 when it stands there more than once.
function once(list, from, to) {
  const places = new Map();
  for (let i = from; i < to; i++) places.set(list[i], places.has(list[i]) ? -1 : i);
  return places;
}

// Patience sorting: each pair goes on the leftmost pile whose top is larger, and remembers the top of the pile before.
function longestRising(pairs) {
  const tops = [];
  for (const pair of pairs) {
    let [low, high] = [0, tops.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tops[middle].pair[1] < pair[1]) low = middle + 1;
      else high = middle;
    }
    tops[low] = { pair, before: tops[low - 1] };
  }
  const found = [];
  for (let top = tops.at(-1); top; top = top.before) found.unshift(top.pair);
  return found;
}

// length[i][j]: how much a from i and b from j have in common.
function table(a, b, { fromA, toA, fromB, toB }, keep) {
  const [rows, columns] = [toA - fromA + 1, toB - fromB + 1];
  if (rows * columns > MAX_CELLS) return;
  const length = new Uint16Array(rows * columns);
  for (let i = rows - 2; i >= 0; i--) {
    for (let j = columns - 2; j >= 0; j--) {
      const [at, below] = [i * columns + j, (i + 1) * columns + j];
      length[at] = a[fromA + i] === b[fromB + j] ? length[below + 1] + 1 : Math.max(length[below], length[at + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows - 1 && j < columns - 1;) {
    if (a[fromA + i] === b[fromB + j]) keep(fromA + i++, fromB + j++);
    else if (length[(i + 1) * columns + j] >= length[i * columns + j + 1]) i++;
    else j++;
  }
}
