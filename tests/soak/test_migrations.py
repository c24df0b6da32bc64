"""Migrations on a million rankings: tests/app/test_migrations_with_rows.py, at the size of a large site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
from alembic.script import ScriptDirectory

from app.migrate import alembic_config, upgrade
from tests.app.test_migrations_with_rows import check_round_trip

pytestmark = pytest.mark.soak
NUM_ROWS = 1_000_000


@pytest.mark.timeout(7200)
def test_a_million_rankings_survive_the_way_down_and_up(
    empty_database_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seconds: dict[str, float] = {}

    def climb(url: str) -> None:
        """Step by step: how long each may keep others from its tables."""
        for script in reversed(list(ScriptDirectory.from_config(alembic_config(url)).walk_revisions())):
            begun = perf_counter()
            upgrade(url, script.revision)
            seconds[script.revision] = round(perf_counter() - begun, 1)

    begun = perf_counter()
    check_round_trip(empty_database_url, tmp_path, NUM_ROWS, climb)
    record_property("rankings", NUM_ROWS)
    record_property("seconds, filling included", round(perf_counter() - begun))
    record_property("seconds of each migration", seconds)
