// Formulas in rendered text. KaTeX is fetched only when a page has one; until then, and without it, one reads the source.
const MAX_LENGTH = 2000;
// What could hide text, cover it, or grow without end is shown as it is written: an annotator judges what a reader sees.
const TRICK = /\\(?:[hv]?phantom|(?:text|math)?color|colorbox|fcolorbox|definecolor|math[rlc]lap|[rlc]lap|smash|raisebox|h?kern|m?kern|[hm]skip|[hm]space|rule|url|href|includegraphics|html\w*|tiny|scriptsize|g?def|x?def|edef|newcommand|renewcommand|providecommand|let|futurelet|csname|char|above|genfrac)\b/;
const OPTIONS = { throwOnError: true, trust: false, strict: "ignore", maxSize: 4, maxExpand: 200, output: "htmlAndMathml" };
let katex = null;

const fetchKatex = () => (katex ??= new Promise((done, fail) => {
  const sheet = document.createElement("link");
  sheet.rel = "stylesheet";
  sheet.href = new URL("./vendor/katex/katex.min.css", import.meta.url);
  sheet.onerror = fail;
  sheet.onload = () => import("./vendor/katex/katex.min.js").then(() => done(globalThis.katex), fail);
  document.head.append(sheet);
}));

// Typesets what is below `root`; a formula that can't be typeset stays as it is written.
export async function typeset(root = document) {
  const found = [...root.querySelectorAll("code.math:not([data-tex])")].filter((element) => !element.firstElementChild);
  if (!found.length) return;
  const { render } = await fetchKatex();
  for (const element of found) draw(render, element, element.textContent);
}

function draw(render, element, source) {
  element.dataset.tex = source;
  if (source.length > MAX_LENGTH || TRICK.test(source)) return;
  const width = source.startsWith("$") && !source.startsWith("$$") ? 1 : 2;
  const isDisplay = source.startsWith("$$") || source.startsWith("\\[");
  const drawn = document.createElement("span");
  try {
    render(source.slice(width, -width), drawn, { ...OPTIONS, displayMode: isDisplay });
  } catch {
    return;
  }
  drawn.className = isDisplay ? "formula display" : "formula";
  drawn.dataset.tex = source;
  drawn.title = source;
  element.replaceWith(drawn);
}
