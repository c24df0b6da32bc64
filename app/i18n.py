"""English and Simplified Chinese: which of the two a person reads, and how texts, numbers and dates look in it.

The English sentence is the key; `app/locale/zh/LC_MESSAGES/messages.po` holds the Chinese ones, a gettext catalogue
that translators' tools open. A sentence that it lacks is shown in English, and a test fails for every such sentence of
a page. `make messages` adds what is new.
"""

import io
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from gettext import GNUTranslations, NullTranslations
from pathlib import Path
from typing import Any

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LANGUAGES = {"en": "English", "zh": "中文"}
HTML_LANGUAGES = {"en": "en", "zh": "zh-Hans"}
DEFAULT_LANGUAGE = "en"
LOCALE_FOLDER = Path(__file__).parent / "locale"
BYTE_UNITS = ("kB", "MB", "GB", "TB")
MAX_HEADER_LENGTH = 400


@cache
def catalogue(language: str) -> NullTranslations:
    """The sentences of one language by their English text; for English, each is its own.

    Compiled when first asked for, so that there is no built file that could be older than its source.
    """
    if language == DEFAULT_LANGUAGE or language not in LANGUAGES:
        return NullTranslations()
    compiled = io.BytesIO()
    with (LOCALE_FOLDER / language / "LC_MESSAGES" / "messages.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return GNUTranslations(compiled)


def translate(language: str, text: str, **values: object) -> str:
    """`text` in `language`, its `{named}` gaps filled with `values`; English where the catalogue lacks it."""
    # gettext keeps the catalogue's head under the empty sentence.
    sentence = catalogue(language).gettext(text) if text else ""
    return sentence.format_map(values) if values else sentence


def translate_count(language: str, one: str, many: str, count: int, **values: object) -> str:
    """As `translate`, with `{n}` set to `count`; English takes `one` for exactly 1, Chinese has one form for all."""
    sentence = catalogue(language).ngettext(one, many, count)
    return sentence.format_map({"n": format_number(language, count), **values})


def pick_language(cookie: str | None, accept_language: str | None) -> str:
    """The cookie's language if it is one of ours, else the best of an Accept-Language header, else English."""
    if cookie in LANGUAGES:
        return cookie
    wanted = sorted(_weighted_languages(accept_language or ""), key=lambda pair: -pair[1])
    return next((language for language, weight in wanted if language in LANGUAGES and weight > 0), DEFAULT_LANGUAGE)


def _weighted_languages(header: str) -> list[tuple[str, float]]:
    """The primary subtags of an Accept-Language header with their weights (RFC 9110, 12.5.4)."""
    pairs = []
    for part in header[:MAX_HEADER_LENGTH].split(","):
        tag, _, parameter = part.strip().partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
        except ValueError:
            weight = 0.0
        pairs.append((tag.strip().lower().partition("-")[0], weight))
    return pairs


def format_number(language: str, value: float | None, digits: int = 0) -> str:
    """`1,200` or `0.613`; a dash for what is not known. Both languages group by thousands."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


MOST_COUNTED = 100


def format_bounded(language: str, count: int, most: int = MOST_COUNTED) -> str:
    """A number of things that were counted up to a bound: of a hundred, `100+` stands for more."""
    return format_number(language, min(count, most)) + ("+" if count > most else "")


def format_percent(language: str, share: float | None, digits: int = 1) -> str:
    """A share of 1 as `73.4 %` (English) or `73.4%` (Chinese)."""
    if share is None:
        return "–"
    return f"{share * 100:.{digits}f}" + ("%" if language == "zh" else " %")


def format_bytes(language: str, num_bytes: int | None) -> str:
    """`93.1 MB`, in powers of 1000."""
    if num_bytes is None:
        return "–"
    if num_bytes < 1000:
        return translate_count(language, "{n} byte", "{n} bytes", num_bytes)
    power = min(len(BYTE_UNITS), int(math.log10(num_bytes)) // 3)
    return f"{num_bytes / 1000**power:,.1f} {BYTE_UNITS[power - 1]}"


def format_datetime(language: str, moment: datetime | None) -> str:
    """`21 Nov 2026, 03:37 UTC`, in Chinese `2026年11月21日 03:37 UTC`."""
    if moment is None:
        return "–"
    moment = moment.astimezone(UTC)
    if language == "zh":
        return f"{moment.year}年{moment.month}月{moment.day}日 {moment:%H:%M} UTC"
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


def format_ago(language: str, moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago a moment was, in its largest unit: `just now`, `5 minutes ago`, `3 days ago`."""
    if moment is None:
        return "–"
    seconds = int(((now or datetime.now(UTC)) - moment).total_seconds())
    if seconds < 60:
        return translate(language, "just now")
    if seconds < 3600:
        return translate_count(language, "{n} minute ago", "{n} minutes ago", seconds // 60)
    if seconds < 86400:
        return translate_count(language, "{n} hour ago", "{n} hours ago", seconds // 3600)
    return translate_count(language, "{n} day ago", "{n} days ago", seconds // 86400)


def format_duration(language: str, seconds: float | None) -> str:
    """A length of time in one or two units: `40 s`, `7 min`, `2 h 05 min`."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 90:
        return translate(language, "{n} s", n=whole)
    minutes = round(whole / 60)
    if minutes < 60:
        return translate(language, "{n} min", n=minutes)
    return translate(language, "{hours} h {minutes} min", hours=minutes // 60, minutes=f"{minutes % 60:02d}")


def format_ends(language: str, interval: Mapping[str, float] | None) -> str:
    """Of an interval, {low, high}: `0.31 – 0.52`; nothing of none."""
    if not interval:
        return ""
    return f"{format_number(language, interval['low'], 2)} – {format_number(language, interval['high'], 2)}"


def format_ordinal(language: str, place: int) -> str:
    """The name of a place: `1st`, `2nd`, `11th`; in Chinese `第 1`."""
    if language == "zh":
        return f"第 {place}"
    ending = "th" if 10 < place % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def template_words(language: str) -> dict[str, Any]:
    """What every template gets: `_`, `n_`, the language, and the formatters bound to it."""
    bound: dict[str, Callable[..., str]] = {
        "_": translate,
        "n_": translate_count,
        "number": format_number,
        "ends": format_ends,
        "bounded": format_bounded,
        "percent": format_percent,
        "filesize": format_bytes,
        "when": format_datetime,
        "ago": format_ago,
        "duration": format_duration,
        "ordinal": format_ordinal,
    }
    words: dict[str, Any] = {name: partial(function, language) for name, function in bound.items()}
    return words | {"language": language, "html_language": HTML_LANGUAGES[language], "languages": LANGUAGES}
