"""Overlap for a share of the tasks: the others are ranked once, and a new N does not hold for them."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

OLD_FOLLOW = """
    begin
        update tasks set overlap = new.overlap
            where project_id = new.id and overlap = old.overlap and run_id is not null and withdrawn_at is null;
        return null;
    end"""
NEW_FOLLOW = OLD_FOLLOW.replace("run_id is not null", "run_id is not null and not is_single")


def upgrade() -> None:
    op.add_column("projects", sa.Column("overlap_share", sa.Double(), server_default="1", nullable=False))
    op.create_check_constraint(op.f("ck_projects_overlap_share"), "projects", "overlap_share between 0 and 1")
    op.add_column("tasks", sa.Column("is_single", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(f"create or replace function follow_overlap() returns trigger language plpgsql as $${NEW_FOLLOW}$$")


def downgrade() -> None:
    op.execute(f"create or replace function follow_overlap() returns trigger language plpgsql as $${OLD_FOLLOW}$$")
    op.drop_column("tasks", "is_single")
    op.drop_column("projects", "overlap_share")
