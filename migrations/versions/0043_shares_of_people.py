"""A project may say how many of the rankings that it learns from are one person's at most."""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("max_annotator_share", sa.Double(), nullable=True))
    rule = "max_annotator_share is null or (max_annotator_share > 0 and max_annotator_share <= 1)"
    # lock: the table holds a row a project
    op.create_check_constraint(op.f("ck_projects_max_annotator_share"), "projects", rule)


def downgrade() -> None:
    op.drop_column("projects", "max_annotator_share")
