"""What people can be asked: the languages that they read, and the skills that an owner of the site gives them, or an
admin of a project for that project.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import roles, service
from app.accounts.audit import audit
from app.accounts.models import Membership, User
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
    user.languages = read_languages(languages)
    await told(session, user, actor_id)
    return user


async def set_abilities(
    session: AsyncSession, *, user_id: uuid.UUID, languages: str, skills: str, actor_id: uuid.UUID
) -> User:
    """The languages and the skills of somebody, in every project.

    Raises:
        Invalid: there are too many, or one is no tag.
    """
    user = await service.get_user(session, user_id)
    user.languages, user.skills = read_languages(languages), read_skills(skills)
    await told(session, user, actor_id)
    return user


async def set_in_project(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    user_id: uuid.UUID,
    languages: str,
    skills: str,
    actor_id: uuid.UUID,
) -> Membership:
    """What a member is asked in one project: more skills than in others; of their languages only these, if any.

    Raises:
        NotFound: this person has no role of their own there.
        Invalid: there are too many, or one is no tag.
    """
    member = await roles.get_membership(session, user_id=user_id, project_id=project_id)
    member.languages, member.skills = read_languages(languages), read_skills(skills)
    await told(session, member, actor_id, project=str(project_id))
    return member


async def told(session: AsyncSession, changed: User | Membership, actor_id: uuid.UUID, **where: str) -> None:
    """Who changed it, and in which project, is in the log."""
    await session.flush()
    user_id = changed.id if isinstance(changed, User) else changed.user_id
    tags = {"languages": changed.languages, "skills": changed.skills}
    action = "member.abilities" if where else "user.abilities"
    await audit(session, actor_id=actor_id, action=action, subject=str(user_id), **where, **tags)


def read_languages(text: str) -> list[str]:
    """Language tags. Of `zh-Hans` only `zh` tells who can read it."""
    tags = [tag.partition("-")[0] for tag in tags_in(text)]
    return checked("languages", tags, LANGUAGE, "Write language tags, such as en or zh.")


def read_skills(text: str) -> list[str]:
    """Tags of what somebody knows."""
    return checked("skills", tags_in(text), SKILL, "A skill is letters, digits, - and _, at most 40 of them.")


def tags_in(text: str) -> list[str]:
    """What stands between commas or spaces, in small letters."""
    return [tag for tag in re.split(r"[\s,，、;；]+", text.strip().lower()) if tag]


def checked(field: str, tags: Sequence[str], pattern: str, rule: str) -> list[str]:
    """Tags, each once, in order.

    Raises:
        Invalid: there are too many, or one does not look like a tag.
    """
    if any(not re.fullmatch(pattern, tag) for tag in tags):
        raise Invalid.field(field, rule)
    if len(set(tags)) > MOST:
        raise Invalid.field(field, "At most {most} are taken.", most=MOST)
    return sorted(set(tags))
