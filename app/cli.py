"""The app's commands of the program `rankloop`: start, serve, migrate, people, tokens."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.config import Settings
from app.db import DatabaseUnreachable
from app.embedded import EmbeddedPostgresError
from app.errors import RankloopError

Result = TypeVar("Result")
DataDir = Annotated[
    Path, typer.Option(envvar="RANKLOOP_DATA_DIR", help="Folder of the database, the artifacts and the models.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_DATA_DIR = Path(".data")
users = typer.Typer(help="People: add, list, and make their sign-in links.", no_args_is_help=True)
tokens = typer.Typer(help="API tokens: make and revoke.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add the app's commands to the program."""
    from app.operations import cli as operations

    cli.command()(up)
    cli.command()(serve)
    cli.command()(migrate)
    cli.add_typer(users, name="user")
    cli.add_typer(tokens, name="token")
    operations.register(cli)


def fail(message: object) -> typer.Exit:
    """Say what is wrong, and what to do, in one line."""
    typer.echo(f"rankloop: {message}", err=True)
    return typer.Exit(1)


def settings_for(data_dir: Path) -> Settings:
    """Settings from the environment, with this data folder and the address of a database that runs.

    Raises:
        Exit: no database is named and none runs in the data folder.
    """
    from app.embedded import running_url

    settings = Settings(data_dir=data_dir).at_known_address()
    try:
        return settings.model_copy(update={"database_url": settings.require_database_url()})
    except ValueError:
        url = running_url(data_dir)
    if url is None:
        raise fail(f"no database runs in {data_dir}. Start Rankloop (`rankloop up`), or set DATABASE_URL.")
    return settings.model_copy(update={"database_url": url})


def in_transaction(settings: Settings, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
    """Do some work in one transaction; refusals become one line and exit code 1."""
    from app.db import standalone_session

    async def run() -> Result:
        async with standalone_session(settings.require_database_url()) as session:
            return await work(session)

    try:
        return asyncio.run(run())
    except (RankloopError, DatabaseUnreachable) as error:
        raise fail(error) from error


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    web: Annotated[int, typer.Option(min=1, help="Web processes to start on this machine.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Workers to start on this machine.")] = 1,
    demo: Annotated[bool, typer.Option(help="Make the demo project, if there is no project yet.")] = True,
    as_json: AsJson = False,
) -> None:
    """Start everything on one machine: database, web, worker. Ctrl+C ends it all."""
    from app.operations.backup import BackupRefused
    from app.serve import CannotStart
    from app.supervisor import UpOptions
    from app.supervisor import up as run

    try:
        run(UpOptions(data_dir, host=host, port=port, web=web, workers=workers, demo=demo, as_json=as_json))
    except (CannotStart, EmbeddedPostgresError, DatabaseUnreachable, BackupRefused, RankloopError) as error:
        raise fail(error) from error


def serve(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the port; about one a core.")] = 1,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A socket that listens already, by its number.")] = None,
) -> None:
    """Serve the pages and the API. The database must run and be migrated."""
    import socket

    from app.db import check_connection, make_engine
    from app.operations.backup import BackupRefused, refuse_unfinished
    from app.serve import CannotStart, bind
    from app.serve import serve as run

    settings = settings_for(data_dir)

    async def check() -> None:
        engine = make_engine(settings.require_database_url(), pool_size=1)
        try:
            await check_connection(engine)
        finally:
            await engine.dispose()

    try:
        asyncio.run(check())
        refuse_unfinished(settings.require_database_url())
        run(settings, bind(host, port) if fd is None else socket.socket(fileno=fd), processes=processes)
    except (CannotStart, DatabaseUnreachable, BackupRefused) as error:
        raise fail(error) from error


def migrate(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    revision: Annotated[str, typer.Option(help="Which revision to go to.")] = "head",
) -> None:
    """Bring the database to the newest schema."""
    import psycopg
    from sqlalchemy.exc import OperationalError

    from app.migrate import upgrade
    from app.operations.backup import BackupRefused, refuse_unfinished

    settings = settings_for(data_dir)
    try:
        refuse_unfinished(settings.require_database_url())
        upgrade(settings.require_database_url(), revision)
    except OperationalError as error:
        raise fail(f"the database could not be migrated: {str(error.orig).strip()}") from error
    except (BackupRefused, psycopg.OperationalError) as error:
        raise fail(str(error).strip()) from error
    typer.echo(f"The database is at revision {revision}.")


@users.command("create")
def create_user(
    name: str,
    email: Annotated[str, typer.Option(help="Address that names the person in other commands.")],
    role: Annotated[Role, typer.Option(help="What the person may do.")] = Role.ANNOTATOR,
    project: Annotated[
        str | None,
        typer.Option(help="Short name of the one project where; left out: in all, and an admin of all owns the site."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Add a person, and print the one-time sign-in link."""
    from app.accounts import roles, service, sessions
    from app.projects.service import get_project_by_slug

    settings = settings_for(data_dir)

    async def work(session: AsyncSession) -> tuple[str, str]:
        found = await get_project_by_slug(session, project) if project else None
        user = await service.create_user(session, name=name, email=email, role=None if found else role)
        if found:
            await roles.set_member(session, user_id=user.id, project_id=found.id, role=role)
        return str(user.id), await sessions.create_sign_in_link(session, user=user, public_url=settings.public_url)

    user_id, link = in_transaction(settings, work)
    typer.echo(json.dumps({"id": user_id, "link": link}) if as_json else link)


@users.command("link")
def make_link(email: str, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print a one-time sign-in link; it works for 15 minutes."""
    from app.accounts import service, sessions

    settings = settings_for(data_dir)

    async def work(session: AsyncSession) -> str:
        user = await service.get_user_by_email(session, email)
        return await sessions.create_sign_in_link(session, user=user, public_url=settings.public_url)

    typer.echo(in_transaction(settings, work))


@users.command("list")
def list_users(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List everybody."""
    from app.accounts import service

    rows = [
        {"id": str(user.id), "name": user.name, "email": user.email, "role": user.role}
        for user in in_transaction(settings_for(data_dir), service.list_users)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['role'] or '-':<10} {row['email'] or '-':<32} {row['name']}")


@tokens.command("create")
def create_token(
    email: Annotated[str, typer.Argument(help="Whose token it is.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    days: Annotated[int, typer.Option(min=1, help="How long it works.")] = 90,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make an API token and print it, this one time."""
    from app.accounts import service
    from app.accounts import tokens as api_tokens

    async def work(session: AsyncSession) -> str:
        user = await service.get_user_by_email(session, email)
        _, secret = await api_tokens.create_token(session, user_id=user.id, name=name, scopes=scope, days=days)
        return secret

    sys.stdout.write(in_transaction(settings_for(data_dir), work) + "\n")


@tokens.command("revoke")
def revoke_token(
    name: Annotated[str, typer.Argument(help="The token's name.")], data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """End all tokens of this name at once."""
    from app.accounts import tokens as api_tokens

    async def work(session: AsyncSession) -> None:
        await api_tokens.revoke_tokens_named(session, name=name)

    in_transaction(settings_for(data_dir), work)
    typer.echo(f"No token named {name!r} works any more.")
