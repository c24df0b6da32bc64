"""Wire shapes of prompts and completions."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.examples import example_id, shown
from app.prompts.lines import CompletionIn, Strict


class CompletionsIn(Strict):
    """A batch of answers."""

    model_config = ConfigDict(
        json_schema_extra=shown(
            completions=[
                {
                    "prompt_id": example_id("prompt"),
                    "index": 0,
                    "text": "In Paris.",
                    "seed": 17,
                    "finish_reason": "stop",
                }
            ]
        )
    )

    completions: Annotated[list[CompletionIn], Field(min_length=1, max_length=1000)]


class CompletionsStoredOut(BaseModel):
    """How many answers were new, and how many had come before."""

    stored: int
    repeated: int


class PromptOut(BaseModel):
    """A prompt as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    number: int
    project_id: uuid.UUID
    messages: list[dict[str, str]]
    kind: str
    language: str
    source: str
    split: str
    meta: dict[str, Any]
    num_completions: int
    created_at: datetime
    withdrawn_at: datetime | None


class PromptPage(BaseModel):
    """One page of prompts; send `next_cursor` as `cursor` to get the next."""

    items: list[PromptOut]
    next_cursor: str | None
