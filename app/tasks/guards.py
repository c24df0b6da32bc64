"""Whose page it is: a script says for whom it speaks, so that work which waited is never sent as somebody else's."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Depends, Header

from app.accounts.guards import Annotator
from app.accounts.models import User
from app.errors import Conflict


class OtherPerson(Conflict):
    """Somebody else is signed in now. This work stays on this device until its annotator is back."""


async def require_same_person(
    annotator: Annotator, rankloop_person: Annotated[uuid.UUID | None, Header()] = None
) -> User:
    """Who is signed in, if the page was theirs. A plain form says nothing: a lease of somebody else is 404 anyway.

    Raises:
        OtherPerson: it was not.
    """
    if rankloop_person is not None and rankloop_person != annotator.id:
        raise OtherPerson
    return annotator


SamePerson = Annotated[User, Depends(require_same_person)]
