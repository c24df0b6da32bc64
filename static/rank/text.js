// The text of a rendered answer, and where each letter of it stands. A typeset formula is read as its source, and whole.

// The parts of `root` in order: text nodes, and elements of formulas.
export function parts(root) {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE || node.dataset?.tex !== undefined) found.push(node);
    else node.childNodes.forEach(walk);
  };
  walk(root);
  return found;
}

export const textOf = (part) => part.dataset?.tex ?? part.data;

// Where a stretch of the joined text begins and ends on the page. `starts` holds where each part begins in it.
export function rangeOf(nodes, starts, from, to) {
  const range = document.createRange();
  const at = (position) => starts.findLastIndex((start) => start <= position);
  const [first, last] = [at(from), at(to - 1)];
  if (nodes[first].data === undefined) range.setStartBefore(nodes[first]);
  else range.setStart(nodes[first], from - starts[first]);
  if (nodes[last].data === undefined) range.setEndAfter(nodes[last]);
  else range.setEnd(nodes[last], to - starts[last]);
  return range;
}
