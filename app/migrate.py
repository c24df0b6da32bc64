"""Migrations by program: bring a database to the newest revision. `migrations/env.py` says how alembic connects."""

from __future__ import annotations

from functools import cache

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.web import ROOT


def alembic_config(url: str) -> Config:
    """What alembic needs to know to work on the database at this address, wherever the package is installed."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at this address to a revision, in one transaction."""
    command.upgrade(alembic_config(url), revision)


@cache
def revisions() -> list[str]:
    """Every revision that this version knows, newest first."""
    script = ScriptDirectory.from_config(alembic_config(""))
    return [step.revision for step in script.walk_revisions()]
