"""The demo: a project that a newcomer finds at the first start, with prompts of our own and a small real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.loop import sampling
from app.ndjson import read_lines
from app.projects.models import Project
from app.projects.service import create_project, list_projects
from app.prompts.adding import import_prompts

PROMPTS = Path(__file__).parent.parent / "demo" / "prompts.jsonl"
MODEL = "smollm2-135m"
GUIDELINES = """\
Put the answers in the order in which you would rather get them, the best first.

1. **Helpful** – does it do what was asked, clearly and to the point?
2. **Truthful** – is it right? A wrong fact or a wrong result weighs more than clumsy words.
3. **Harmless** – would it hurt, insult or mislead anybody?

Two answers that are equally good, or equally bad, share a place.

The model is small (SmolLM2 with 135 million parameters): its English is readable and often wrong, \
its Chinese is unusable. Rank what is there.
"""


async def ensure_demo(session: AsyncSession) -> Project | None:
    """Make the demo project and queue its first sampling, if there is no project yet. Returns it if it was made."""
    if await list_projects(session):
        return None
    project = await create_project(
        session,
        name="Demo",
        model_alias=MODEL,
        guidelines=GUIDELINES,
        sampling={"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 96},
        lease_minutes=120,
    )
    content = PROMPTS.read_bytes()
    lines = read_lines(one_chunk(content), max_bytes=len(content))
    await import_prompts(session, lines, project=project)
    await sampling.start_sampling(session, project=project)
    return project


async def one_chunk(content: bytes) -> AsyncIterator[bytes]:
    """A whole file, as an upload would bring it."""
    yield content
