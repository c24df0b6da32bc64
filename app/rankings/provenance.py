"""How a ranking was made: when, on what, with which hands. The annotator's browser tells it, so all is bounded here."""

from __future__ import annotations

import logging
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from app.errors import Invalid

log = logging.getLogger(__name__)
MAX_ACTIVE_SECONDS = 24 * 3600
MAX_UNDOS = 10_000
MAX_HOW_LENGTH = 2000
# A task may wait in a browser for as long as this; clocks of client and server may run apart by so much.
MAX_AGE = timedelta(days=31)
SLACK = timedelta(seconds=5)


class Device(StrEnum):
    """What a ranking was made on, by pointer and width."""

    PHONE = "phone"
    TABLET = "tablet"
    DESKTOP = "desktop"


Input = Literal["key", "pointer", "touch"]


@dataclass(frozen=True)
class Provenance:
    """How a ranking was made, in the server's time. None: not told, or told in a way that can't be true."""

    shown_at: datetime | None = None
    first_action_at: datetime | None = None
    submitted_at: datetime | None = None
    # With the page in view and a sign of life in the last minute.
    active_seconds: float | None = None
    device: str | None = None
    num_undos: int | None = None
    inputs: list[str] | None = None

    def columns(self) -> dict[str, Any]:
        """The columns of `rankings` that hold it."""
        return asdict(self)


UNKNOWN = Provenance()


class How(BaseModel):
    """How the answer came about. The times are the client's own; `sent_at`, in the same clock, says how wrong it is."""

    model_config = ConfigDict(extra="forbid")

    sent_at: AwareDatetime
    shown_at: AwareDatetime | None = None
    first_action_at: AwareDatetime | None = None
    submitted_at: AwareDatetime | None = None
    active_seconds: Annotated[float, Field(ge=0, le=MAX_ACTIVE_SECONDS, allow_inf_nan=False)] | None = None
    device: Device | None = None
    num_undos: Annotated[int, Field(strict=True, ge=0, le=MAX_UNDOS)] | None = None
    inputs: Annotated[list[Input], Field(max_length=3)] | None = None

    def provenance(self, *, leased_at: datetime, now: datetime) -> Provenance:
        """The same in the server's time.

        Raises:
            Invalid: the times run backwards, lie before the lease or after now, or are shorter than the active time.
        """
        times = {name: self._ago(name) for name in ("shown_at", "first_action_at", "submitted_at")}
        told = {name: ago for name, ago in times.items() if ago is not None}
        self._check_order(told, age_of_lease=now - leased_at)
        return Provenance(
            **{name: now - ago for name, ago in told.items()},
            active_seconds=self.active_seconds,
            device=self.device,
            num_undos=self.num_undos,
            inputs=None if self.inputs is None else sorted(set(self.inputs)),
        )

    def _ago(self, name: str) -> timedelta | None:
        """How long before it was sent a moment was."""
        moment: datetime | None = getattr(self, name)
        return None if moment is None else self.sent_at - moment

    def _check_order(self, told: dict[str, timedelta], *, age_of_lease: timedelta) -> None:
        latest = min(age_of_lease, MAX_AGE) + SLACK
        for name, ago in told.items():
            if not timedelta(0) <= ago <= latest:
                raise Invalid.field(f"how.{name}", "lies before the task was given, or after it was sent")
            latest = ago
        if self.active_seconds is not None and {"shown_at", "submitted_at"} <= told.keys():
            elapsed = told["shown_at"] - told["submitted_at"] + SLACK
            if self.active_seconds > elapsed.total_seconds():
                raise Invalid.field("how.active_seconds", "is more than passed between shown_at and submitted_at")


def read_how(text: str, *, lease_id: uuid.UUID, leased_at: datetime, now: datetime) -> Provenance:
    """What the ranking page told, as JSON. No ranking is refused for it: what can't be true is logged, and unknown."""
    if not text:
        return UNKNOWN
    try:
        if len(text) > MAX_HOW_LENGTH:
            raise Invalid.field("how", f"takes at most {MAX_HOW_LENGTH} characters")
        return How.model_validate_json(text).provenance(leased_at=leased_at, now=now)
    except ValidationError as error:
        # Where it is wrong, without what was sent.
        places = [".".join(map(str, item["loc"])) for item in error.errors(include_input=False)]
        log.warning("lease %s: how it was ranked is not known, as the page told, in %s", lease_id, places)
        return UNKNOWN
    except Invalid as error:
        log.warning("lease %s: how it was ranked is not known, as the page told: %s", lease_id, error)
        return UNKNOWN
