"""Two languages: every sentence on a page has its Chinese one, and numbers, dates and durations read right in both."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta

import pytest

from app import validation
from app.i18n import (
    format_ago,
    format_bytes,
    format_datetime,
    format_duration,
    format_ends,
    format_number,
    format_ordinal,
    format_percent,
    pick_language,
    template_words,
    translate,
    translate_count,
)
from tests.messages import CATALOGUE, catalogue_text, read_catalogue, sentences, updated

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PAIRS = [
    (english, chinese)
    for message in read_catalogue()
    if message.id
    for english in ([message.id] if isinstance(message.id, str) else message.id[1:])
    for chinese in ([message.string] if isinstance(message.string, str) else message.string or [""])
]


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def test_templates_hold_sentences() -> None:
    assert len(sentences()) > 300


def test_every_sentence_of_a_page_has_its_chinese_one() -> None:
    known = read_catalogue()
    waiting = {message.id for message in known if not any(message.string)}
    missing = {sentence: file for sentence, file in sentences().items() if sentence not in known or sentence in waiting}
    assert missing == {}, "`make messages` adds them to the catalogue; their Chinese is yours to write"


def test_the_catalogue_holds_nothing_that_is_said_nowhere() -> None:
    assert CATALOGUE.read_text(encoding="utf-8") == catalogue_text(updated(read_catalogue())), "run `make messages`"


def test_both_languages_fill_the_same_gaps() -> None:
    assert {english: chinese for english, chinese in PAIRS if fields(english) != fields(chinese)} == {}


def test_every_chinese_sentence_says_something() -> None:
    assert [english for english, chinese in PAIRS if not chinese.strip()] == []


def test_chinese_pages_say_you_in_one_way() -> None:
    """您 throughout, as strangers are spoken to."""
    assert [chinese for _, chinese in PAIRS if "你" in chinese] == []


def test_what_a_form_refuses_is_told_in_chinese() -> None:
    known = read_catalogue()
    told = [*validation.SENTENCES.values(), *validation.PATTERNS.values(), validation.OTHER_PATTERN]
    assert [sentence for sentence in told if sentence not in known] == []


def test_nothing_stays_nothing() -> None:
    assert translate("zh", "") == ""


def test_a_sentence_is_translated_and_filled() -> None:
    assert translate("zh", "Answer {letter}", letter="A") == "回答 A"


def test_an_unknown_sentence_stays_english() -> None:
    assert translate("zh", "No such sentence.") == "No such sentence."


def test_one_and_many() -> None:
    counted = [translate_count("en", "{n} answer", "{n} answers", count) for count in (0, 1, 2, 1200)]
    assert counted == ["0 answers", "1 answer", "2 answers", "1,200 answers"]
    assert translate_count("zh", "{n} answer", "{n} answers", 1) == "1 个回答"


@pytest.mark.parametrize(
    ("cookie", "header", "language"),
    [
        ("zh", "en", "zh"),
        ("en", "zh-CN", "en"),
        ("xx", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "en-GB,zh;q=0.5", "en"),
        (None, "de,zh-TW;q=0.7,en;q=0.3", "zh"),
        (None, "zh;q=0.2, en;q=0.4", "en"),
        (None, "zh;q=0", "en"),
        (None, "de", "en"),
        (None, "zh;q=nonsense", "en"),
        (None, "," * 5000, "en"),
        (None, "", "en"),
        (None, None, "en"),
    ],
)
def test_the_language_is_the_cookies_else_the_browsers(cookie: str | None, header: str | None, language: str) -> None:
    assert pick_language(cookie, header) == language


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (-5, "just now", "刚刚"),
        (59, "just now", "刚刚"),
        (60, "1 minute ago", "1 分钟前"),
        (3599, "59 minutes ago", "59 分钟前"),
        (7200, "2 hours ago", "2 小时前"),
        (86400 * 3, "3 days ago", "3 天前"),
    ],
)
def test_how_long_ago(seconds: int, english: str, chinese: str) -> None:
    moment = NOON - timedelta(seconds=seconds)
    assert (format_ago("en", moment, NOON), format_ago("zh", moment, NOON)) == (english, chinese)


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0, "0 s", "0 秒"),
        (89, "89 s", "89 秒"),
        (91, "2 min", "2 分钟"),
        (600, "10 min", "10 分钟"),
        (7500, "2 h 05 min", "2 小时 05 分"),
    ],
)
def test_how_long(seconds: float, english: str, chinese: str) -> None:
    assert (format_duration("en", seconds), format_duration("zh", seconds)) == (english, chinese)


def test_dates() -> None:
    assert format_datetime("en", NOON) == "21 Nov 2026, 12:00 UTC"
    assert format_datetime("zh", NOON) == "2026年11月21日 12:00 UTC"


def test_numbers() -> None:
    assert format_number("en", 1200) == "1,200"
    assert format_number("en", -0.5, 2) == "−0.50"
    assert format_percent("en", 0.7341) == "73.4 %"
    assert format_percent("zh", 0.7341) == "73.4%"
    assert format_ends("en", {"low": -0.314, "high": 1200}) == "−0.31 – 1,200.00"
    assert format_ends("en", None) == ""


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (93_100_000, "93.1 MB"),
        (10**16, "10,000.0 TB"),
    ],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert format_bytes("en", num_bytes) == text


def test_what_is_not_known_is_a_dash() -> None:
    words = template_words("en")
    assert {words[name](None) for name in ("number", "percent", "filesize", "when", "ago", "duration")} == {"–"}


def test_places() -> None:
    assert [format_ordinal("en", place) for place in (1, 2, 3, 4, 11, 12, 13, 21)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st",
    ]  # fmt: skip
    assert format_ordinal("zh", 2) == "第 2"
