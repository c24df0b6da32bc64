"""docs/security.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", PAGE))
    assert len(named) > 25
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_security_test_is_named() -> None:
    ours = {f"tests/security/{path.name}" for path in (ROOT / "tests/security").glob("test_*.py")}
    assert [path for path in sorted(ours - {"tests/security/test_the_page.py"}) if path not in PAGE] == []
