"""What the database holds after the load, against what was promised."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import psycopg

QUERIES = {
    # Counted from the rows themselves, not from the counter that is to keep them right.
    "over_assigned": """
        select count(*) from tasks t where not is_gold and overlap < (
            select count(*) from leases l where l.task_id = t.id and state in ('open', 'answered'))""",
    "counted_wrongly": """
        select count(*) from tasks t where num_taken <> (
            select count(*) from leases l where l.task_id = t.id and state in ('open', 'answered'))""",
    "twice_to_one_person": """
        select count(*) from (
            select from rankings where supersedes_id is null group by task_id, annotator_id having count(*) > 1) x""",
    "incomplete": """
        select count(*) from rankings r where (select count(*) from ranking_places p where p.ranking_id = r.id) <> (
            select count(*) from task_completions c where c.task_id = r.task_id)""",
}


def audit(url: str, acknowledged: Mapping[str, str]) -> dict[str, Any]:
    """How many tasks have too many people, and how many acknowledged answers are not stored; every figure must be 0."""
    with psycopg.connect(url) as connection:
        found: dict[str, Any] = {name: _count(connection, query) for name, query in QUERIES.items()}
        rows = connection.execute(
            "select id from rankings where id = any(%s)", [[uuid.UUID(ranking) for ranking in acknowledged.values()]]
        )
        stored = {str(row[0]) for row in rows}
    found["acknowledged"] = len(acknowledged)
    found["acknowledged_and_missing"] = len(set(acknowledged.values()) - stored)
    return found


def _count(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
