"""Browsers in which somebody signed in with a password before: these come first, and nobody else can lock them out.

Such a browser keeps a mark in a cookie: a random number, signed with the hash of the person's password. Nothing is
stored here, and with a new password every mark is worthless ("device cookies" in OWASP's words).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

COOKIE = "rl_browser"
# Only signing in is told.
PATH = "/sign-in"
NUMBER_LENGTH = 32


def mark(stored: str) -> str:
    """What the browser of whoever has this hash of a password keeps."""
    number = secrets.token_hex(NUMBER_LENGTH // 2)
    return number + _signature(number, stored)


def is_known(given: str | None, stored: str) -> bool:
    """Whether this browser's mark was made for who has this hash of a password."""
    number, signature = (given or "")[:NUMBER_LENGTH], (given or "")[NUMBER_LENGTH:]
    return hmac.compare_digest(_signature(number, stored).encode(), signature.encode())


def _signature(number: str, stored: str) -> str:
    return hmac.new(stored.encode(), b"browser " + number.encode(), hashlib.sha256).hexdigest()
