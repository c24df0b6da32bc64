"""What is kept in memory has an end, in number or in size, and what was asked for last outlives the rest."""

from __future__ import annotations

from app.remembering import Remembered


def test_what_was_asked_for_last_is_remembered() -> None:
    kept: Remembered[str, int] = Remembered(2)
    assert (kept.get("a"), kept.keep("a", 1), kept.keep("b", 2), kept.get("a")) == (None, 1, 2, 1)
    kept.keep("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_what_is_large_takes_the_room_of_many() -> None:
    kept: Remembered[str, str] = Remembered(10, size=lambda key, value: len(key) + len(value))
    kept.keep("a", "1234")
    kept.keep("b", "1234")
    kept.keep("b", "12")
    kept.keep("c", "1")
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("1234", "12", "1")
    kept.keep("d", "1234")
    assert (kept.get("a"), kept.get("b"), kept.get("c"), kept.get("d")) == (None, "12", "1", "1234")
    assert kept.keep("e", "12345678901") == "12345678901"
    assert (kept.get("d"), kept.get("e")) == (None, None)
