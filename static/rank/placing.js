// Giving an answer its place. Nothing is placed but by the annotator.
import { areTiesAllowed, cards, fill, letterOf, namesOf, note, numPlaces, say, status, words } from "./page.js";
import { current, look } from "./focus.js";
import { changed } from "./history.js";
import { check, othersAt, placeOf, ratingOf, unplaced } from "./state.js";

export function place(id, to, { swap = false } = {}) {
  const from = placeOf(id);
  check("place_" + id, to);
  settle(id, swap ? from : null);
}

// After any change of a place: without ties the card that stood there gives way, then all is told.
export function settle(id, giveWayTo = null) {
  const to = placeOf(id);
  const there = othersAt(id, to);
  if (!areTiesAllowed) there.forEach((other) => check("place_" + other, giveWayTo));
  note.textContent = !areTiesAllowed && there.length && !giveWayTo ? fill(words.bumped, { others: namesOf(there) }) : "";
  changed(sentence(id, to, areTiesAllowed ? there : []));
}

function sentence(id, to, tied) {
  const letter = letterOf(id);
  const place = words.places[to];
  const told = !to ? fill(words.unplaced, { letter }) : tied.length ? fill(words.tied, { letter, place, others: namesOf(tied) }) : fill(words.placed, { letter, place });
  return unplaced().length ? told : `${told} ${words.allPlaced}`;
}

export function placeAndGoOn(id, to) {
  place(id, to);
  const after = [...cards.slice(cards.indexOf(current) + 1), ...cards].find((card) => !placeOf(card.dataset.id));
  look(after ?? current);
  if (after) say(`${status.textContent} ${fill(words.next, { letter: after.dataset.letter })}`);
}

// One place better or worse; an unplaced answer comes in from that end.
export function move(id, by) {
  const from = placeOf(id);
  const to = from ? Math.min(numPlaces, Math.max(1, from + by)) : by > 0 ? 1 : numPlaces;
  if (to !== from) place(id, to, { swap: true });
}

export function rate(id, rating) {
  const given = ratingOf(id) === rating ? null : rating;
  check("rating_" + id, given);
  changed(fill(given ? words.rated : words.unrated, { letter: letterOf(id), rating }));
}
