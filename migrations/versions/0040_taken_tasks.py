"""Tasks that were taken leave the list of those that wait before they stand in the way of the next claim.

A claim reads that index from its head, where the entries of taken tasks stay until a vacuum. By PostgreSQL's own
settings one comes when a fifth of the table has changed, and passes the indexes by where few pages are touched: of a
million tasks each claim then walks over up to 200,000 dead entries. Measured after some tens of thousands: 193 pages a
claim, 0.2 ms of CPU; 7 after a vacuum.
"""

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "alter table tasks set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, "
        "vacuum_index_cleanup = on)"
    )


def downgrade() -> None:
    op.execute(
        "alter table tasks reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, vacuum_index_cleanup)"
    )
