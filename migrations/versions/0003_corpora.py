"""Corpora: texts and worked examples to learn from beside rankings."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Rule 5 holds for corpora as for datasets: what a run learned from stays as it was.
IMMUTABLE = {
    "corpora": "update of project_id, number, name, kind, num_rows, sha256 or delete",
    "corpus_rows": "update or delete",
}


def upgrade() -> None:
    op.create_table(
        "corpora",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind in ('conversations', 'text')", name=op.f("ck_corpora_kind")),
        sa.CheckConstraint("num_rows > 0", name=op.f("ck_corpora_num_rows")),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_corpora_created_by"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_corpora_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corpora")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_corpora_project_id_number")),
    )
    op.create_table(
        "corpus_rows",
        sa.Column("corpus_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["corpus_id"],
            ["corpora.id"],
            name=op.f("fk_corpus_rows_corpus_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("corpus_id", "position", name=op.f("pk_corpus_rows")),
    )
    for table, change in IMMUTABLE.items():
        op.execute(
            f"create trigger {table}_immutable before {change} on {table} for each row execute function refuse_change()"
        )


def downgrade() -> None:
    op.drop_table("corpus_rows")
    op.drop_table("corpora")
