"""Migrations on a million rankings: tests/app/test_migrations_with_rows.py, at the size of a large site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from tests.app.test_migrations_with_rows import go_round

pytestmark = pytest.mark.soak
NUM_ROWS = 1_000_000


@pytest.mark.timeout(7200)
def test_a_million_rankings_survive_the_way_down_and_up(
    empty_database_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    begun = perf_counter()
    go_round(empty_database_url, tmp_path, NUM_ROWS)
    record_property("rankings", NUM_ROWS)
    record_property("seconds, filling included", round(perf_counter() - begun))
