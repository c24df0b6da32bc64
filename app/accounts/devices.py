"""What a list of sessions calls a browser: enough to know one's own, and no fingerprint."""

from __future__ import annotations

import re

# The first that is found: Edge calls itself Chrome and Safari, too.
BROWSERS = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "FxiOS": "Firefox", "Chrome": "Chrome"}
BROWSERS |= {"CriOS": "Chrome", "Safari": "Safari"}
SYSTEMS = {"Windows": "Windows", "Android": "Android", "iPhone": "iPhone", "iPad": "iPad", "Mac OS X": "macOS"}
SYSTEMS |= {"CrOS": "ChromeOS", "Linux": "Linux"}


def device_name(user_agent: str | None) -> str:
    """`Firefox, Linux`; empty where the browser does not say."""
    text = (user_agent or "")[:400]
    found = (first(names, text) for names in (BROWSERS, SYSTEMS))
    return ", ".join(name for name in found if name)


def first(names: dict[str, str], text: str) -> str:
    """The name of the first mark that stands in a text as a word."""
    return next((name for mark, name in names.items() if re.search(rf"\b{mark}\b", text)), "")
