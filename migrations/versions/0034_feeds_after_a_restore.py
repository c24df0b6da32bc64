"""The feeds of rankings and changes stand in the order of transactions, which another cluster counts from elsewhere: an
offset, in `feed_offset`, which a restore moves on, so that what it brought is settled and what comes later sorts after.

A function and no table: the planner puts its number into the query, nobody asks for it, and pg_dump carries it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None

FEEDS = ("rankings", "ranking_changes")
OWN = "(pg_current_xact_id()::text)::bigint"
OFFSET = "create or replace function feed_offset() returns bigint language sql stable parallel safe as $${}$$"
# What is stored from now on stands more than `gap` after all that is there; never nearer than it would without.
MOVE = f"""
    declare
        newest bigint := greatest(0, (select max(transaction_id) from rankings),
            (select max(transaction_id) from ranking_changes));
    begin
        execute format($create${OFFSET.format("select %s::bigint")}$create$,
            greatest(feed_offset(), newest + gap - {OWN}));
    end"""  # noqa: S608 (numbers)


def upgrade() -> None:
    op.execute(OFFSET.format("select 0::bigint"))
    op.execute(f"create function move_feeds_on(gap bigint) returns void language plpgsql as $move${MOVE}$move$")
    # Of a database that was restored into another cluster before there was an offset; 0 for all others.
    op.execute("select move_feeds_on(0)")
    for table in FEEDS:
        op.alter_column(table, "transaction_id", server_default=sa.text(f"{OWN} + feed_offset()"))


def downgrade() -> None:
    for table in FEEDS:
        op.alter_column(table, "transaction_id", server_default=sa.text(OWN))
    op.execute("drop function move_feeds_on(bigint)")
    op.execute("drop function feed_offset()")
