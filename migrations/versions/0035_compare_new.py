"""People may be asked about every new policy, without anybody beginning each comparison."""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("compare_new", sa.Text(), server_default="off", nullable=False))
    op.add_column("projects", sa.Column("compare_prompts", sa.Integer(), server_default="200", nullable=False))
    op.create_check_constraint(op.f("ck_projects_compare_new"), "projects", "compare_new in ('off', 'base', 'both')")
    op.create_check_constraint(op.f("ck_projects_compare_prompts"), "projects", "compare_prompts between 1 and 2000")


def downgrade() -> None:
    op.drop_column("projects", "compare_prompts")
    op.drop_column("projects", "compare_new")
