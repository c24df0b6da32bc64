"""When a task is reviewed is a setting of its project; and a project's prompts in their order, for the list of them."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("review_above", sa.Double(), server_default="0.5", nullable=False))
    op.create_check_constraint(op.f("ck_projects_review_above"), "projects", "review_above between 0 and 1")
    op.create_index("ix_prompts_project", "prompts", ["project_id", "number"])


def downgrade() -> None:
    op.drop_index("ix_prompts_project", table_name="prompts")
    op.drop_constraint(op.f("ck_projects_review_above"), "projects", type_="check")
    op.drop_column("projects", "review_above")
