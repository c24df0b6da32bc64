"""How a ranking was made: times, device, hands; and whether its task was fetched ahead or taken offline."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CHECKS = {
    "times": "shown_at <= first_action_at and first_action_at <= submitted_at and shown_at <= submitted_at",
    "active_seconds": "active_seconds between 0 and 86400",
    "device": "device in ('phone', 'tablet', 'desktop')",
    "num_undos": "num_undos between 0 and 10000",
    "inputs": "inputs <@ array['key', 'pointer', 'touch']",
}


def upgrade() -> None:
    for name in ("shown_at", "first_action_at", "submitted_at"):
        op.add_column("rankings", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.add_column("rankings", sa.Column("active_seconds", sa.Double(), nullable=True))
    op.add_column("rankings", sa.Column("device", sa.Text(), nullable=True))
    op.add_column("rankings", sa.Column("num_undos", sa.Integer(), nullable=True))
    op.add_column("rankings", sa.Column("inputs", postgresql.ARRAY(sa.Text()), nullable=True))
    for name in ("is_preloaded", "is_offline"):
        op.add_column("rankings", sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False))
    for name, condition in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_rankings_{name}"), "rankings", condition)


def downgrade() -> None:
    for name in CHECKS:
        op.drop_constraint(op.f(f"ck_rankings_{name}"), "rankings", type_="check")
    for name in ("is_offline", "is_preloaded", "inputs", "num_undos", "device", "active_seconds"):
        op.drop_column("rankings", name)
    for name in ("submitted_at", "first_action_at", "shown_at"):
        op.drop_column("rankings", name)
