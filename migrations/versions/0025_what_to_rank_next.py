"""What is ranked first: a project's way, and with each task why it stands where it stands, by which score."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

WAYS = "('random', 'disagreement', 'expected_gain', 'novelty')"


def upgrade() -> None:
    op.add_column("projects", sa.Column("rank_next", sa.Text(), server_default="random", nullable=False))
    op.add_column("projects", sa.Column("random_share", sa.Double(), server_default="0.2", nullable=False))
    op.create_check_constraint(op.f("ck_projects_rank_next"), "projects", f"rank_next in {WAYS}")
    op.create_check_constraint(op.f("ck_projects_random_share"), "projects", "random_share between 0.1 and 1")
    op.add_column("tasks", sa.Column("chosen_by", sa.Text(), server_default="random", nullable=False))
    op.add_column("tasks", sa.Column("score", sa.Double(), nullable=True))
    op.add_column("tasks", sa.Column("judged_run_id", sa.Uuid(), sa.ForeignKey("runs.id"), nullable=True))
    op.add_column("tasks", sa.Column("judged_order", postgresql.ARRAY(sa.Uuid()), nullable=True))
    op.create_check_constraint(op.f("ck_tasks_chosen_by"), "tasks", f"chosen_by in {WAYS}")
    told = "chosen_by = 'random' or (score is not null and judged_run_id is not null)"
    op.create_check_constraint(op.f("ck_tasks_chosen"), "tasks", told)


def downgrade() -> None:
    for name in ("judged_order", "judged_run_id", "score", "chosen_by"):
        op.drop_column("tasks", name)
    for name in ("random_share", "rank_next"):
        op.drop_column("projects", name)
