// What is on the page: the form, its cards, the strip, and the words that a script may say.
// Other modules import these names live: `adopt` reads them again when another task takes the form's place.
export let form, words, numPlaces, areTiesAllowed, isPartialAllowed, strip, note, savedNote, status, submitButton, cards;

export function adopt(element) {
  form = element;
  words = JSON.parse(form.dataset.words);
  numPlaces = Number(form.dataset.k);
  areTiesAllowed = "ties" in form.dataset;
  isPartialAllowed = "partial" in form.dataset;
  strip = form.querySelector(".strip");
  note = strip.querySelector(".note");
  savedNote = strip.querySelector(".saved");
  status = strip.querySelector(".spoken");
  submitButton = strip.querySelector(".primary");
  cards = [...form.querySelectorAll(".answer")];
}

export const cardOf = (id) => cards.find((card) => card.dataset.id === id);
export const letterOf = (id) => cardOf(id).dataset.letter;
export const namesOf = (ids) => ids.map(letterOf).join(", ");
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (gap, name) => values[name] ?? gap);

// One and many, as English and Chinese need them.
export const fillCount = ([one, many], values) => fill(values.n === 1 ? one : many, values);

// A screen reader speaks only what has changed: the same sentence twice differs by a space that nobody hears.
export function say(message) {
  status.textContent = status.textContent === message ? message + "\u00a0" : message;
}

// A browser may forbid storage: then nothing is kept on the device, and all else works.
export const store = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* kept by the server alone */ } },
  remove(key) { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } },
};
