// The state is the form's own radios and checkboxes, and nothing else: read from there, written to there.
import { cards, form, isPartialAllowed } from "./page.js";

const choice = (name) => Number(new FormData(form).get(name)) || null;
export const placeOf = (id) => choice("place_" + id);
export const ratingOf = (id) => choice("rating_" + id);
export const unplaced = () => cards.filter((card) => !placeOf(card.dataset.id));
export const isReady = () => !unplaced().length || (isPartialAllowed && cards.length - unplaced().length >= 2);
export const othersAt = (id, place) => cards.map((card) => card.dataset.id).filter((other) => other !== id && place && placeOf(other) === place);

// What a draft holds: {places: {id: 1..K or null}, ratings: {id: 1..7 or null}, labels: {id: [key]}, denied: {id: [key]},
// rationale, confidence: 1..3 or null, all_bad: true, false or null (not asked), strength: 0..3 or null}.
export function read() {
  const data = new FormData(form);
  const state = { places: {}, ratings: {}, labels: {}, denied: {}, rationale: data.get("rationale") ?? "", confidence: Number(data.get("confidence")) || null };
  state.all_bad = data.has("all_bad") ? data.getAll("all_bad").includes("true") : null;
  state.strength = data.has("preference") ? Math.abs(data.get("preference")) : null;
  for (const { dataset: { id } } of cards) {
    state.places[id] = Number(data.get("place_" + id)) || null;
    state.ratings[id] = Number(data.get("rating_" + id)) || null;
    state.labels[id] = [...data.getAll("flag_" + id), ...saidOf(data, id, "yes")];
    state.denied[id] = saidOf(data, id, "no");
  }
  return state;
}

// Everything but the reasons: a text field has an undo of its own.
export function write(state) {
  for (const { dataset: { id } } of cards) {
    check("place_" + id, state.places?.[id]);
    check("rating_" + id, state.ratings?.[id]);
    for (const flag of inputs("flag_" + id)) flag.checked = !!state.labels?.[id]?.includes(flag.value);
    for (const radio of form.querySelectorAll(`input[name^="said_${id}_"]`)) radio.checked = !!state[radio.value === "yes" ? "labels" : "denied"]?.[id]?.includes(labelOf(radio.name, id));
  }
  check("confidence", state.confidence);
  check("all_bad", state.all_bad ?? false);
  check("preference", preferenceOf(state));
}

// Required labels are a yes or a no: `said_<id>_<key>`.
const labelOf = (name, id) => name.slice(`said_${id}_`.length);
const saidOf = (data, id, word) => [...data].filter(([name, value]) => name.startsWith(`said_${id}_`) && value === word).map(([name]) => labelOf(name, id));

// Of two answers: -3 (the first is much better) to 3 (the second is), null while nothing is chosen.
function preferenceOf({ places = {}, strength }) {
  const [first, second] = cards.map((card) => places[card.dataset.id]);
  return strength == null ? null : second < first ? strength : -strength || 0;
}

export function check(name, value) {
  for (const input of inputs(name)) input.checked = input.value === String(value ?? "");
}

const inputs = (name) => form.querySelectorAll(`input[name="${CSS.escape(name)}"]`);
