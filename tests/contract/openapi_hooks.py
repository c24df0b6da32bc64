"""What schemathesis does not know by itself: how JSON lines are sent. Named by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def as_lines(context: Any, value: Any) -> bytes:
    """A text as it is, surrogates and all: the app refuses what is no UTF-8."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
