// The state is the form's own radios and checkboxes, and nothing else: read from there, written to there.
import { cards, form, isPartialAllowed } from "./page.js";

const choice = (name) => Number(new FormData(form).get(name)) || null;
export const placeOf = (id) => choice("place_" + id);
export const ratingOf = (id) => choice("rating_" + id);
export const unplaced = () => cards.filter((card) => !placeOf(card.dataset.id));
export const isReady = () => !unplaced().length || (isPartialAllowed && cards.length - unplaced().length >= 2);
export const othersAt = (id, place) => cards.map((card) => card.dataset.id).filter((other) => other !== id && place && placeOf(other) === place);

// What a draft holds: {places: {id: 1..K or null}, ratings: {id: 1..7 or null}, labels: {id: [key]}, rationale}.
export function read() {
  const data = new FormData(form);
  const state = { places: {}, ratings: {}, labels: {}, rationale: data.get("rationale") };
  for (const { dataset: { id } } of cards) {
    state.places[id] = Number(data.get("place_" + id)) || null;
    state.ratings[id] = Number(data.get("rating_" + id)) || null;
    state.labels[id] = data.getAll("flag_" + id);
  }
  return state;
}

// Everything but the reasons: a text field has an undo of its own.
export function write(state) {
  for (const { dataset: { id } } of cards) {
    check("place_" + id, state.places?.[id]);
    check("rating_" + id, state.ratings?.[id]);
    for (const flag of inputs("flag_" + id)) flag.checked = !!state.labels?.[id]?.includes(flag.value);
  }
}

export function check(name, value) {
  for (const input of inputs(name)) input.checked = input.value === String(value ?? "");
}

const inputs = (name) => form.querySelectorAll(`input[name="${CSS.escape(name)}"]`);
