"""The true utility of an answer in the pocket world, and simulated annotators who see it through noise.

The utility was fixed before any loop was run, and is never tuned to make training look good. It is known by
construction: what a prompt asks for is parsed from the prompt, what is true stands in `words`. It takes any text, also
broken text that nobody has written before.

    utility = fluency * (topic + 2 content) + 0.5 ending + 0.25 courtesy - 3 rudeness - 2 repetition - length

- fluency: one minus twice the share of the answer's word pairs (Chinese: character triples) that no good answer has, at
  least 0
- topic: the share of the asked-for subjects that are named, less 0.25 for each subject of the same sort that was not
  asked for, at least 0
- content: a recipe's four steps, present and in order; a story's six parts, present and in order, times its topic; an
  animal's three facts; or the right fact or sum
- ending: 1 where the last character ends a sentence; courtesy: 1 where one of the world's courteous phrases is said
- rudeness: 1 - 0.5^n for n of the world's rude sentences
- repetition: the share of three-word (Chinese: three-character) sequences that were there before
- length: how far outside the reasonable lengths of its kind, as a share of the bound that it misses, at most 1

The best possible answer has 3.75; a rude one has about -2, an empty one -1. For a prompt of another world, topic and
content are both the share of the prompt's longer words that the answer takes up.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from trainer.pocket.words import PHRASEBOOKS, Kind
from trainer.pocket.world import Request, draw_request, good_answer, parse, right_answer

UNIT = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|\S")
SLOT = re.compile(r"\{\w+\}")
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "”", '"')
NUM_REFERENCE_ANSWERS = 20_000
GRAM_SIZES = {"en": 2, "zh": 3}
ORDINARY_LENGTH = (5, 80)
LONG_WORD_LETTERS = 5


@dataclass(frozen=True)
class Judgement:
    """The parts of the utility, each from 0 to 1; `total` puts them together."""

    fluency: float
    topic: float
    content: float
    ending: float
    courtesy: float
    rudeness: float
    repetition: float
    length: float

    @property
    def total(self) -> float:
        """The utility: see the head of the file."""
        substance = self.fluency * (self.topic + 2.0 * self.content)
        form = 0.5 * self.ending + 0.25 * self.courtesy
        return substance + form - 3.0 * self.rudeness - 2.0 * self.repetition - self.length


@lru_cache(maxsize=20_000)
def utility(prompt: str, answer: str) -> float:
    """How good an answer is, in truth: about -3 to 3.75, defined for every text."""
    return judge(prompt, answer).total


def judge(prompt: str, answer: str) -> Judgement:
    """The utility in its parts."""
    request = parse(prompt)
    units = split_units(answer)
    language = request.language if request else _language_of(prompt)
    book = PHRASEBOOKS[language]
    topic, content = _substance(request, units) if request else _echo(prompt, units)
    return Judgement(
        fluency=_fluency(units, language),
        topic=topic,
        content=content,
        ending=float(answer.rstrip().endswith(SENTENCE_ENDS)),
        courtesy=float(any(_mentions(units, words) for words in book.courtesies_before + book.courtesies_after)),
        rudeness=1.0 - 0.5 ** sum(_mentions(units, sentence) for sentence in _rude_sentences()),
        repetition=_repetition(units),
        length=_length_error(units, book.length_ranges[request.kind] if request else ORDINARY_LENGTH),
    )


def rank(utilities: Sequence[float], rng: random.Random, *, noise: float, tie_margin: float) -> list[list[int]]:
    """An annotator's order, best first: a list of cells, a cell of two or more is a tie.

    Each utility is heard as u + noise * G, with G standard Gumbel. Without a margin that is the Plackett-Luce model:
    the chance to come first is proportional to exp(u / noise), and A comes before B with sigmoid((u_A - u_B) / noise).
    Answers that are heard less than `tie_margin` below the best of their cell share it. No noise: the true order.
    """
    heard = [value - noise * math.log(rng.expovariate(1.0)) for value in utilities]
    cells: list[list[int]] = []
    for index in sorted(range(len(heard)), key=lambda index: -heard[index]):
        if cells and heard[cells[-1][0]] - heard[index] < tie_margin:
            cells[-1].append(index)
        else:
            cells.append([index])
    return cells


def split_units(text: str) -> list[str]:
    """Lower-case words, numbers and signs; each Chinese character is a unit of its own."""
    return UNIT.findall(text.lower())


def _substance(request: Request, units: list[str]) -> tuple[float, float]:
    """Topic and content for a prompt of the world."""
    if request.kind is Kind.STORY:
        topic = _story_topic(request, units)
        return topic, topic * _parts_in_order(units, request.book.story)
    if request.kind is Kind.HOW_TO:
        task = request.slots["task"]
        steps = [[step] for step in request.book.recipes[task]]
        return _subject_named(units, task, list(request.book.recipes)), _parts_in_order(units, steps)
    if request.kind is Kind.ANIMAL:
        animal = request.slots["animal"]
        return _subject_named(units, animal, list(request.book.animals)), _animal_facts(request, units)
    if request.kind is Kind.SUM:
        return _sum(request, units)
    return _single_fact(request, units)


def _story_topic(request: Request, units: list[str]) -> float:
    book, slots = request.book, request.slots
    asked = [slots["trait"], slots["animal"], slots["thing"]]
    others = [word for word in (*book.traits, *book.things) if word not in asked and _mentions(units, word)]
    strangers = [name for name in book.animals if name not in asked and _mentions(units, name)]
    # A story needs a second animal, the friend.
    strays = len(others) + max(0, len(strangers) - 1)
    return max(0.0, sum(_mentions(units, word) for word in asked) / 3 - 0.25 * strays)


def _subject_named(units: list[str], subject: str, family: list[str]) -> float:
    strays = sum(_mentions(units, other) for other in family if other != subject)
    return max(0.0, _mentions(units, subject) - 0.25 * strays)


def _parts_in_order(units: list[str], parts: Sequence[Sequence[str]]) -> float:
    """How much of each part is there, on average, times the share of the parts found that stand in their order."""
    scores, places = [], []
    for wordings in parts:
        score, place = max((_presence(units, wording) for wording in wordings), key=lambda found: found[0])
        scores.append(score)
        if score > 0:
            places.append(place)
    if not places:
        return 0.0
    return sum(scores) / len(parts) * _longest_rise(places) / len(places)


def _presence(units: list[str], wording: str) -> tuple[float, int]:
    """How much of a wording's pairs of units the answer has (half or less: 0, all: 1), and where they stand."""
    wanted = {pair for run in SLOT.split(wording) for pair in pairwise(split_units(run))}
    first_places: dict[tuple[str, str], int] = {}
    for place, pair in enumerate(pairwise(units)):
        first_places.setdefault(pair, place)
    found = [first_places[pair] for pair in wanted if pair in first_places]
    if not found:
        return 0.0, 0
    return max(0.0, 2.0 * len(found) / len(wanted) - 1.0), sorted(found)[len(found) // 2]


def _longest_rise(places: list[int]) -> int:
    """The length of the longest rising subsequence."""
    lengths: list[int] = []
    for index, place in enumerate(places):
        before = [length for length, earlier in zip(lengths, places[:index], strict=True) if earlier < place]
        lengths.append(1 + max(before, default=0))
    return max(lengths)


def _animal_facts(request: Request, units: list[str]) -> float:
    """A third for each right fact; a wrong one of the same sort takes half of a third away."""
    animals = request.book.animals
    asked = animals[request.slots["animal"]]
    score = 0.0
    for field in ("home", "food", "voice"):
        right = getattr(asked, field)
        wrong = {getattr(facts, field) for facts in animals.values()} - {right}
        score += _mentions(units, right) - 0.5 * min(1, sum(_mentions(units, value) for value in wrong))
    return max(0.0, score / 3)


def _single_fact(request: Request, units: list[str]) -> tuple[float, float]:
    book = request.book
    tables = {Kind.CAPITAL: book.capitals, Kind.COLOUR: book.colours, Kind.OPPOSITE: book.opposites}
    table = tables[request.kind]
    (subject,) = request.slots.values()
    given = [value for value in table.values() if _mentions(units, value)]
    right = right_answer(request)
    return _subject_named(units, subject, list(table)), (1.0 / len(given) if right in given else 0.0)


def _sum(request: Request, units: list[str]) -> tuple[float, float]:
    numbers = [unit for unit in units if unit.isdecimal()]
    is_right = bool(numbers) and numbers[-1] == right_answer(request)
    addends = (request.slots["a"], request.slots["b"])
    return sum(addend in numbers for addend in addends) / 2, float(is_right)


def _echo(prompt: str, units: list[str]) -> tuple[float, float]:
    wanted = {unit for unit in split_units(prompt) if len(unit) >= LONG_WORD_LETTERS or not unit.isascii()}
    share = len(wanted & set(units)) / len(wanted) if wanted else 0.0
    return share, share


def _fluency(units: list[str], language: str) -> float:
    masked = _mask_numbers(units)
    # An answer that is shorter than a sequence is one short sequence.
    grams = _grams(masked, min(GRAM_SIZES[language], len(masked))) if masked else []
    if not grams:
        return 0.0
    known = _known_grams(language)
    unknown = sum(gram not in known for gram in grams)
    return max(0.0, 1.0 - 2.0 * unknown / len(grams))


@cache
def _known_grams(language: str) -> frozenset[tuple[str, ...]]:
    """What good answers are made of, from a fixed sample of them."""
    rng = random.Random("reference answers")
    requests = (draw_request(rng) for _ in range(NUM_REFERENCE_ANSWERS))
    answers = (good_answer(request, rng) for request in requests if request.language == language)
    texts = [_mask_numbers(split_units(answer)) for answer in answers]
    return frozenset(gram for units in texts for size in range(1, 4) for gram in _grams(units, size))


def _mask_numbers(units: list[str]) -> list[str]:
    return ["0" if unit.isdecimal() else unit for unit in units]


def _grams(units: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(units[start:] for start in range(size)), strict=False))


def _repetition(units: list[str]) -> float:
    grams = _grams(units, 3)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _length_error(units: list[str], bounds: tuple[int, int]) -> float:
    shortest, longest = bounds
    num_words = sum(unit.isalnum() for unit in units)
    if num_words < shortest:
        return 1.0 - num_words / shortest
    return min(1.0, max(0.0, (num_words - longest) / longest))


def _mentions(units: list[str], words: str) -> bool:
    wanted = split_units(words)
    return any(units[start : start + len(wanted)] == wanted for start in range(len(units) - len(wanted) + 1))


@cache
def _rude_sentences() -> tuple[str, ...]:
    texts = [text for book in PHRASEBOOKS.values() for text in book.rudeness]
    return tuple(sentence for text in texts for sentence in re.findall(r"[^.?。？]+", text) if sentence.strip())


def _language_of(prompt: str) -> str:
    num_chinese = sum("\u4e00" <= character <= "\u9fff" for character in prompt)
    return "zh" if num_chinese * 2 > len(prompt.strip()) else "en"
