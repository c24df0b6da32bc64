"""Roles per project. A role that a person had everywhere stays one in every project."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROLES = "role in ('annotator', 'reviewer', 'trainer', 'admin')"
OLD_ROLES = "role in ('annotator', 'trainer', 'admin')"


def upgrade() -> None:
    op.create_table(
        "memberships",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(ROLES, name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_memberships_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "project_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_project_id"), "memberships", ["project_id"])
    op.alter_column("users", "role", nullable=True)
    op.drop_constraint(op.f("ck_users_role"), "users")
    op.create_check_constraint(op.f("ck_users_role"), "users", ROLES)


def downgrade() -> None:
    """Whoever had no role everywhere, or one that is not known any more, is an annotator again."""
    op.drop_constraint(op.f("ck_users_role"), "users")
    op.execute("update users set role = 'annotator' where role is null or role = 'reviewer'")
    op.create_check_constraint(op.f("ck_users_role"), "users", OLD_ROLES)
    op.alter_column("users", "role", nullable=False)
    op.drop_table("memberships")
