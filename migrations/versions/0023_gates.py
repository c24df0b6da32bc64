"""What a new version must show before it goes live, and whether it did; training by the clock."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

CHECKS = {
    "reward_gate": "reward_gate in ('off', 'held_out')",
    "policy_gate": "policy_gate in ('off', 'people')",
    "train_every_hours": "train_every_hours is null or train_every_hours between 1 and 8760",
}


def upgrade() -> None:
    op.add_column("versions", sa.Column("gate", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("projects", sa.Column("reward_gate", sa.Text(), server_default="held_out", nullable=False))
    op.add_column("projects", sa.Column("policy_gate", sa.Text(), server_default="off", nullable=False))
    op.add_column("projects", sa.Column("train_every_hours", sa.Integer(), nullable=True))
    for name, rule in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_projects_{name}"), "projects", rule)


def downgrade() -> None:
    for name in reversed(CHECKS):
        op.drop_column("projects", name)
    op.drop_column("versions", "gate")
