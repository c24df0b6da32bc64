"""What was measured of annotators, and the flags that checks raised."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "annotator_records",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=False),
        sa.Column("num_rankings", sa.Integer(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("figures", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("num_rankings >= 0", name=op.f("ck_annotator_records_num_rankings")),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["users.id"], name=op.f("fk_annotator_records_annotator_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_annotator_records_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", name=op.f("pk_annotator_records")),
    )
    op.create_index(op.f("ix_annotator_records_annotator_id"), "annotator_records", ["annotator_id"])
    op.create_table(
        "quality_flags",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=False),
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_by", sa.Uuid(), nullable=True),
        sa.Column("settlement", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            "check_name in ('random', 'reversed', 'first_card', 'longest', 'speeding')",
            name=op.f("ck_quality_flags_check_name"),
        ),
        sa.CheckConstraint("(settled_at is null) = (settlement is null)", name=op.f("ck_quality_flags_settled")),
        sa.CheckConstraint("settlement in ('confirmed', 'dismissed')", name=op.f("ck_quality_flags_settlement")),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["users.id"], name=op.f("fk_quality_flags_annotator_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_quality_flags_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["settled_by"], ["users.id"], name=op.f("fk_quality_flags_settled_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_flags")),
    )
    op.create_index("ix_quality_flags_annotator", "quality_flags", ["annotator_id"])
    op.create_index(
        "uq_quality_flags_open",
        "quality_flags",
        ["project_id", "annotator_id", "check_name"],
        unique=True,
        postgresql_where=sa.text("settled_at is null"),
    )
    # The newest rankings of one person in one project, without reading all of them.
    op.drop_index("ix_rankings_annotator", table_name="rankings")
    op.create_index("ix_rankings_annotator", "rankings", ["annotator_id", "project_id", "number"])


def downgrade() -> None:
    op.drop_index("ix_rankings_annotator", table_name="rankings")
    op.create_index("ix_rankings_annotator", "rankings", ["annotator_id"])
    op.drop_table("quality_flags")
    op.drop_table("annotator_records")
