// A rating and a rank that contradict each other are said, and nothing is held up: sometimes both are meant.
import { cards, fill, letterOf, strip, words } from "./page.js";
import { placeOf, ratingOf } from "./state.js";

export function draw() {
  const marked = cards.map(({ dataset: { id } }) => ({ id, place: placeOf(id), rating: ratingOf(id) })).filter(({ place, rating }) => place && rating);
  const pairs = marked.flatMap((better) => marked.filter((worse) => better.place < worse.place && better.rating < worse.rating).map((worse) => ({ better, worse })));
  const text = pairs.length ? fill(words.doubt, { better: letterOf(pairs[0].better.id), worse: letterOf(pairs[0].worse.id) }) : "";
  const line = strip.querySelector(".doubt");
  if (line.textContent !== text) line.textContent = text;
}
