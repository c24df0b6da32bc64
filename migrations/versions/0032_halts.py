"""A round stops when people turn away from its policy; a second reward model may compare policies in their place."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

GATE, OLD_GATE = "ck_projects_policy_gate", "policy_gate in ('off', 'people')"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("stopped", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
    key = sa.ForeignKey("versions.id")
    op.add_column("comparisons", sa.Column("judge_version_id", sa.Uuid(), key, nullable=True))
    op.add_column("projects", sa.Column("policy_judge", sa.Integer(), nullable=True))
    op.drop_constraint(op.f(GATE), "projects")
    op.create_check_constraint(op.f(GATE), "projects", "policy_gate in ('off', 'people', 'second_reward_model')")


def downgrade() -> None:
    op.drop_constraint(op.f(GATE), "projects")
    op.execute("update projects set policy_gate = 'people' where policy_gate = 'second_reward_model'")
    op.create_check_constraint(op.f(GATE), "projects", OLD_GATE)
    op.drop_column("projects", "policy_judge")
    op.drop_column("comparisons", "judge_version_id")
    op.drop_column("rounds", "stopped")
