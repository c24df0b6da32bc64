"""How alembic reaches the database: the address given by the caller (`app.migrate`) or `DATABASE_URL`; one migrator at
a time.
"""

import os

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine, text

from app.tables import metadata

ADVISORY_LOCK = 7_265_310  # any number that nobody else locks


def database_url() -> str:
    """The address in SQLAlchemy's form."""
    url = context.config.attributes.get("url") or os.environ.get("DATABASE_URL")
    if not url:
        raise SystemExit("Set DATABASE_URL, or use `rankloop migrate`, which finds the embedded database.")
    return str(url).replace("postgres://", "postgresql://", 1).replace("postgresql://", "postgresql+psycopg://", 1)


def run_migrations(connection: Connection) -> None:
    """Migrate in one transaction. Who comes second waits for the first, however long that takes; a lock on a table that
    is not granted in time fails the migration rather than the app.
    """
    context.configure(connection=connection, target_metadata=metadata, compare_type=True, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text("set local lock_timeout = '5s'"))
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Rankloop migrates a running database only.")
engine = create_engine(database_url(), poolclass=NullPool, connect_args={"connect_timeout": 5})
with engine.connect() as connection:
    run_migrations(connection)
engine.dispose()
