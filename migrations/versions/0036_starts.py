"""A training may go on from the live reward model, and PPO begin at version 1."""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("reward_start", sa.Text(), server_default="sft", nullable=False))
    op.add_column("projects", sa.Column("policy_start", sa.Text(), server_default="round", nullable=False))
    op.create_check_constraint(op.f("ck_projects_reward_start"), "projects", "reward_start in ('sft', 'live')")
    op.create_check_constraint(op.f("ck_projects_policy_start"), "projects", "policy_start in ('round', 'sft')")


def downgrade() -> None:
    op.drop_column("projects", "policy_start")
    op.drop_column("projects", "reward_start")
