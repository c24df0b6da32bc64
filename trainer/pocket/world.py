"""The pocket world: prompts in English and Chinese, and answers that are good, short, rude, off-topic or looping.

Everything follows from a seed. The words are in `words`; how good an answer is, `utility` says.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import product

from trainer.pocket.words import PHRASEBOOKS, Kind, Phrasebook

HIGHEST_ADDEND = 5
"""Of a sum: so low that the pocket model is right on half of the sums or more, as it is on the other kinds. With 20 it
was right on one in twenty, which no ranking mends, and the best of its many guesses was a ceiling of luck."""
CHINESE_SHARE = 0.3
KIND_SHARES = {
    Kind.STORY: 0.34,
    Kind.HOW_TO: 0.2,
    Kind.ANIMAL: 0.16,
    Kind.CAPITAL: 0.09,
    Kind.COLOUR: 0.06,
    Kind.OPPOSITE: 0.07,
    Kind.SUM: 0.08,
}
COURTESY_SHARE = 0.4
HELD_OUT_SHARE = 1 / 4
MOST_DRAWS_IN_VAIN = 500


class Quality(StrEnum):
    """What an answer of the training text is like."""

    GOOD = "good"
    SHORT = "short"
    RUDE = "rude"
    OFF_TOPIC = "off_topic"
    LOOPING = "looping"


QUALITY_SHARES = {
    Quality.GOOD: 0.6,
    Quality.SHORT: 0.13,
    Quality.RUDE: 0.09,
    Quality.OFF_TOPIC: 0.09,
    Quality.LOOPING: 0.09,
}


@dataclass(frozen=True)
class Request:
    """A prompt of the world, and what it asks for."""

    prompt: str
    language: str
    kind: Kind
    slots: Mapping[str, str]

    @property
    def book(self) -> Phrasebook:
        """The words of the request's language."""
        return PHRASEBOOKS[self.language]


@dataclass(frozen=True)
class Example:
    """One prompt with one answer, as the pocket model is trained on it."""

    request: Request
    answer: str
    quality: Quality


def subjects(book: Phrasebook) -> dict[str, tuple[str, ...]]:
    """What may fill each slot of a prompt, by the slot's name."""
    numbers = tuple(str(number) for number in range(1, HIGHEST_ADDEND + 1))
    return {
        "trait": book.traits,
        "animal": tuple(book.animals),
        "thing": book.things,
        "task": tuple(book.recipes),
        "country": tuple(book.capitals),
        "item": tuple(book.colours),
        "word": tuple(book.opposites),
        "a": numbers,
        "b": numbers,
    }


def draw_request(rng: random.Random) -> Request:
    """Any prompt of the world, by the shares above."""
    language = "zh" if rng.random() < CHINESE_SHARE else "en"
    kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    return draw_request_of(language, kind, rng)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept out of the training text: a quarter of all, by the prompt's hash."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of prompts that are not held out, with answers of every quality."""
    return _examples(random.Random(f"training {seed}"), held_out=False)


def validation_examples(seed: int) -> Iterator[Example]:
    """The same on held-out prompts."""
    return _examples(random.Random(f"validation {seed}"), held_out=True)


def held_out_requests(num_requests: int, seed: int) -> list[Request]:
    """Different prompts that the pocket model was never trained on. Raises ValueError where the world has too few."""
    rng = random.Random(f"held out {seed}")
    found: dict[str, Request] = {}
    num_draws_in_vain = 0
    while len(found) < num_requests:
        request = draw_request(rng)
        if is_held_out(request.prompt) and request.prompt not in found:
            found[request.prompt] = request
            num_draws_in_vain = 0
        elif (num_draws_in_vain := num_draws_in_vain + 1) > MOST_DRAWS_IN_VAIN:
            raise ValueError(
                f"the pocket world has fewer than {num_requests} held-out prompts: {len(found)} were found"
            )
    return list(found.values())


def familiar_requests(held_out: Sequence[Request], seed: int) -> list[Request]:
    """Prompts of the training text that bring each kind of few held-out prompts to its share of the world.

    Different stories are many, and other different prompts few: of many held-out prompts, nearly all ask for stories.
    Where even the training text has too few of a kind, all of them.
    """
    rng = random.Random(f"familiar {seed}")
    found: list[Request] = []
    for language in PHRASEBOOKS:
        num_of = Counter(request.kind for request in held_out if request.language == language)
        for kind, share in KIND_SHARES.items():
            num_wanted = round(num_of[Kind.STORY] * share / KIND_SHARES[Kind.STORY]) - num_of[kind]
            known = [request for request in requests_of(language, kind) if not is_held_out(request.prompt)]
            found += rng.sample(known, max(0, min(num_wanted, len(known))))
    return found


def parse(prompt: str) -> Request | None:
    """What a prompt asks for, or None for a prompt that is not of this world."""
    text = prompt.strip()
    for language, kind, pattern in _patterns():
        if match := pattern.fullmatch(text):
            return Request(text, language, kind, match.groupdict())
    return None


def good_answer(request: Request, rng: random.Random) -> str:
    """An answer that is on topic, complete, true and polite; every other one has a courtesy."""
    book, sentences = request.book, _sentences(request, rng)
    if rng.random() < COURTESY_SHARE:
        sentences = [rng.choice(book.courtesies_before), *sentences]
    if rng.random() < COURTESY_SHARE:
        sentences = [*sentences, rng.choice(book.courtesies_after)]
    if request.kind is Kind.HOW_TO:
        return "\n".join(sentences)
    return book.joiner.join(sentences)


def answer_of_quality(request: Request, quality: Quality, rng: random.Random) -> str:
    """An answer of the wished quality to a prompt."""
    if quality is Quality.SHORT:
        return _short_answer(request, rng)
    if quality is Quality.RUDE:
        return rng.choice(request.book.rudeness)
    if quality is Quality.OFF_TOPIC:
        return _answer_to_another(request, rng)
    if quality is Quality.LOOPING:
        return request.book.joiner.join([_sentences(request, rng)[0]] * rng.randint(3, 5))
    return good_answer(request, rng)


def _examples(rng: random.Random, *, held_out: bool) -> Iterator[Example]:
    while True:
        request = draw_request(rng)
        if is_held_out(request.prompt) is not held_out:
            continue
        quality = rng.choices(list(QUALITY_SHARES), list(QUALITY_SHARES.values()))[0]
        yield Example(request, answer_of_quality(request, quality, rng), quality)


def draw_request_of(language: str, kind: Kind, rng: random.Random) -> Request:
    """Any prompt of a kind in a language."""
    book = PHRASEBOOKS[language]
    template = rng.choice(book.prompts[kind])
    slots = {name: rng.choice(values) for name, values in subjects(book).items() if "{" + name + "}" in template}
    return Request(template.format_map(slots), language, kind, slots)


def requests_of(language: str, kind: Kind) -> list[Request]:
    """Every prompt of a kind in a language."""
    book = PHRASEBOOKS[language]
    fillings = subjects(book)
    found = []
    for template in book.prompts[kind]:
        names = [name for name in fillings if "{" + name + "}" in template]
        for values in product(*(fillings[name] for name in names)):
            slots = dict(zip(names, values, strict=True))
            found.append(Request(template.format_map(slots), language, kind, slots))
    return found


@cache
def _patterns() -> list[tuple[str, Kind, re.Pattern[str]]]:
    return [
        (language, kind, _pattern(template, book))
        for language, book in PHRASEBOOKS.items()
        for kind, templates in book.prompts.items()
        for template in templates
    ]


def _pattern(template: str, book: Phrasebook) -> re.Pattern[str]:
    text = re.escape(template)
    for name, values in subjects(book).items():
        options = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
        text = text.replace(re.escape("{" + name + "}"), f"(?P<{name}>{options})")
    return re.compile(text)


def _sentences(request: Request, rng: random.Random) -> list[str]:
    if request.kind is Kind.STORY:
        return _story(request, rng)
    if request.kind is Kind.HOW_TO:
        return _instructions(request, rng)
    if request.kind is Kind.ANIMAL:
        return _portrait(request, rng)
    template = rng.choice(request.book.replies[request.kind])
    return [_capitalised(template.format(answer=right_answer(request), **request.slots))]


def right_answer(request: Request) -> str:
    """The one true answer to a question for a fact or a sum. Raises ValueError for the kinds that have none."""
    book, slots = request.book, request.slots
    if request.kind is Kind.CAPITAL:
        return book.capitals[slots["country"]]
    if request.kind is Kind.COLOUR:
        return book.colours[slots["item"]]
    if request.kind is Kind.OPPOSITE:
        return book.opposites[slots["word"]]
    if request.kind is Kind.SUM:
        return str(int(slots["a"]) + int(slots["b"]))
    raise ValueError(f"a prompt of the kind {request.kind} has no single right answer")


def _story(request: Request, rng: random.Random) -> list[str]:
    book, animal = request.book, request.slots["animal"]
    facts = book.animals[animal]
    friend = rng.choice([name for name in book.animals if name != animal])
    moral = rng.choice(book.morals)
    more = {"home": facts.home, "food": facts.food, "friend": friend, "moral": moral}
    return [_capitalised(rng.choice(wordings).format(**request.slots, **more)) for wordings in book.story]


def _instructions(request: Request, rng: random.Random) -> list[str]:
    task = request.slots["task"]
    opening = rng.choice(request.book.how_to_openings).format(task=task)
    stop = "。" if request.language == "zh" else "."
    steps = request.book.recipes[task]
    return [opening, *(f"{number}. {_capitalised(step)}{stop}" for number, step in enumerate(steps, start=1))]


def _portrait(request: Request, rng: random.Random) -> list[str]:
    animal = request.slots["animal"]
    facts = request.book.animals[animal]
    slots = {"animal": animal, "home": facts.home, "food": facts.food, "voice": facts.voice}
    return [rng.choice(wordings).format(**slots) for wordings in request.book.portrait]


def _short_answer(request: Request, rng: random.Random) -> str:
    stop = "。" if request.language == "zh" else "."
    if request.kind is Kind.HOW_TO:
        return _capitalised(request.book.recipes[request.slots["task"]][0]) + stop
    if request.kind in (Kind.STORY, Kind.ANIMAL):
        return _sentences(request, rng)[0]
    return _capitalised(right_answer(request)) + stop


def _answer_to_another(request: Request, rng: random.Random) -> str:
    kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    other = draw_request_of(request.language, kind, rng)
    while set(other.slots.values()) & set(request.slots.values()):
        other = draw_request_of(request.language, kind, rng)
    return good_answer(other, rng)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
