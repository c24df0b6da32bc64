"""What people can be asked: the languages that they read, and the skills that an owner of the site gives them."""

from __future__ import annotations

import re
import uuid

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service
from app.accounts.models import User
from app.errors import Invalid

MOST = 20
LANGUAGE = r"[a-z]{2,8}"
# As labels have their keys: a tag must look the same in a file, in a form and in an address.
SKILL = r"[\w-]{1,40}"


async def set_languages(session: AsyncSession, *, user_id: uuid.UUID, languages: str, actor_id: uuid.UUID) -> User:
    """The languages that somebody reads, as `en, zh`; none: they get everything.

    Raises:
        Invalid: there are too many, or one is no language tag.
    """
    user = await service.get_user(session, user_id)
    user.languages = read_tags("languages", languages, LANGUAGE, "Write language tags, such as en or zh.")
    await told(session, user, actor_id)
    return user


async def set_abilities(
    session: AsyncSession, *, user_id: uuid.UUID, languages: str, skills: str, actor_id: uuid.UUID
) -> User:
    """The languages and the skills of somebody.

    Raises:
        Invalid: there are too many, or one is no tag.
    """
    user = await set_languages(session, user_id=user_id, languages=languages, actor_id=actor_id)
    user.skills = read_tags("skills", skills, SKILL, "A skill is letters, digits, - and _, at most 40 of them.")
    await told(session, user, actor_id)
    return user


async def told(session: AsyncSession, user: User, actor_id: uuid.UUID) -> None:
    """Who changed it is in the log."""
    await session.flush()
    tags = {"languages": user.languages, "skills": user.skills}
    await service.audit(session, actor_id=actor_id, action="user.abilities", subject=str(user.id), **tags)


def read_tags(field: str, text: str, pattern: str, rule: str) -> list[str]:
    """Tags between commas or spaces, in small letters, each once. Of `zh-Hans` only `zh` tells who can read it."""
    tags = [tag for tag in re.split(r"[\s,，、;；]+", text.strip().lower()) if tag]
    if field == "languages":
        tags = [tag.partition("-")[0] for tag in tags]
    if any(not re.fullmatch(pattern, tag) for tag in tags):
        raise Invalid.field(field, rule)
    if len(set(tags)) > MOST:
        raise Invalid.field(field, "At most {most} are taken.", most=MOST)
    return sorted(set(tags))
