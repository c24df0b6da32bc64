// Undo and redo, over everything but the reasons, whose field has its own; and the news of every change, to whoever asked for it.
import { countUndo } from "./clock.js";
import { say, words } from "./page.js";
import { read, write } from "./state.js";

let last = null;
let done = [];
let undone = [];
const listeners = [];

export const onChange = (listener) => listeners.push(listener);
const tell = (message) => {
  if (message) say(message);
  listeners.forEach((listener) => listener());
};

// What is on the page now is where undo ends.
export function begin() {
  last = read();
  done = [];
  undone = [];
}

// To be called after the form was changed, with the sentence that tells it.
export function changed(message) {
  const state = read();
  const pick = ({ rationale, ...rest }) => JSON.stringify(rest);
  if (pick(state) !== pick(last)) {
    done.push(last);
    undone = [];
  }
  last = state;
  tell(message);
}

export const isUntouched = () => !done.length;

export function undo() {
  if (done.length) countUndo();
  step(done, undone, words.undone);
}

export const redo = () => step(undone, done, words.redone);

function step(from, to, message) {
  if (!from.length) return;
  to.push(read());
  write(from.pop());
  last = read();
  tell(message);
}
