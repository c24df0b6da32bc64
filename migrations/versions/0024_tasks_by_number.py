"""A project's tasks in their order: the list of them sorted all at every page."""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_tasks_project", "tasks", ["project_id", "number"])


def downgrade() -> None:
    op.drop_index("ix_tasks_project", table_name="tasks")
