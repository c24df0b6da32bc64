"""How a ranking was made: told by browsers and programs, bounded by the server, kept for good."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.rankings.provenance import UNKNOWN, How, Provenance, read_how
from tests.factories import make_ranking

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASED = NOW - timedelta(minutes=10)


def told(**changes: Any) -> dict[str, Any]:
    """What an honest page tells, whose clock is two hours slow."""
    times = {"shown_at": 100, "first_action_at": 90, "submitted_at": 10, "sent_at": 0}
    slow = NOW - timedelta(hours=2)
    values = {name: (slow - timedelta(seconds=ago)).isoformat() for name, ago in times.items()}
    more = {"active_seconds": 61.5, "device": "phone", "num_undos": 2, "inputs": ["touch", "key", "touch"]}
    return values | more | changes


def read(body: str) -> Provenance:
    return read_how(body, lease_id=uuid.uuid4(), leased_at=LEASED, now=NOW)


def test_times_are_told_by_the_servers_clock() -> None:
    assert read(json.dumps(told())) == Provenance(
        shown_at=NOW - timedelta(seconds=100),
        first_action_at=NOW - timedelta(seconds=90),
        submitted_at=NOW - timedelta(seconds=10),
        active_seconds=61.5,
        device="phone",
        num_undos=2,
        inputs=["key", "touch"],
    )


def test_a_page_without_javascript_tells_nothing() -> None:
    assert read("") == UNKNOWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"active_seconds": -1},
        {"active_seconds": 1e300},
        {"active_seconds": float("nan")},
        {"active_seconds": float("inf")},
        {"active_seconds": 5000},
        {"num_undos": -1},
        {"num_undos": 2**63},
        {"num_undos": True},
        {"device": "toaster"},
        {"inputs": ["key"] * 4},
        {"inputs": ["mind"]},
        {"shown_at": "9999-12-31T23:59:59+00:00"},
        {"shown_at": "0001-01-01T00:00:00+00:00"},
        {"shown_at": "2026-11-21T09:00:00+00:00"},
        {"first_action_at": "2026-11-21T09:59:55+00:00"},
        {"submitted_at": "2026-11-21T10:00:01+00:00"},
        {"sent_at": "2026-11-21T10:00:00"},
        {"model": "canary"},
    ],
)
def test_what_cant_be_true_is_unknown_on_the_page_and_refused_by_the_api(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(told(**wrong))
    assert read(body) == UNKNOWN
    assert "not known" in caplog.text
    with pytest.raises((ValidationError, Invalid)):
        How.model_validate_json(body).provenance(leased_at=LEASED, now=NOW)


@pytest.mark.parametrize("body", ["no JSON", "[]", "null", "{}", '{"sent_at": 1e400}', "\0", "[" * 5000])
def test_no_text_whatever_breaks_it(body: str) -> None:
    assert read(body) == UNKNOWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"shown_at": NOW, "submitted_at": LEASED},
        {"active_seconds": float("nan")},
        {"active_seconds": -1},
        {"device": "toaster"},
        {"num_undos": -1},
        {"inputs": ["mind"]},
    ],
)
async def test_the_database_keeps_the_bounds_too(session: AsyncSession, wrong: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="check constraint"):
        await make_ranking(session, **wrong)


async def test_how_a_ranking_was_made_never_changes(session: AsyncSession) -> None:
    ranking = await make_ranking(session, active_seconds=10)
    with pytest.raises(IntegrityError, match="never changed"):
        await session.execute(text("update rankings set active_seconds = 11 where id = :id"), {"id": ranking.id})
