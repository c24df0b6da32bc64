"""Wire shapes of rounds."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict


class PlanOut(BaseModel):
    """What *Train* would do now. `seconds` is null until something was measured."""

    model_config = ConfigDict(from_attributes=True)

    num_rankings: int
    num_new_rankings: int
    num_episodes: int | None
    seconds: float | None


class RoundOut(BaseModel):
    """A round and what it made."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    number: int
    policy_version_id: uuid.UUID
    sample_run_id: uuid.UUID | None
    dataset_id: uuid.UUID | None
    reward_run_id: uuid.UUID | None
    policy_run_id: uuid.UUID | None
    next_version_id: uuid.UUID | None
    created_at: datetime
    closed_at: datetime | None
