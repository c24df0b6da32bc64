"""A dataset has a name, a licence, and a card that says how it was made; like all of it, they never change."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

OLD = ["project_id", "number", "filter", "counts", "num_rows", "sha256"]
NEW = ["name", "licence", "card"]


def protect(columns: list[str]) -> None:
    """Let nothing but the pseudonyms' key change."""
    op.execute("drop trigger datasets_immutable on datasets")
    op.execute(
        f"create trigger datasets_immutable before update of {', '.join(columns)} or delete on datasets"
        " for each row execute function refuse_change()"
    )


def upgrade() -> None:
    op.add_column("datasets", sa.Column("name", sa.Text, server_default="", nullable=False))
    op.add_column("datasets", sa.Column("licence", sa.Text, server_default="", nullable=False))
    op.add_column("datasets", sa.Column("card", JSONB, server_default="{}", nullable=False))
    protect(OLD + NEW)


def downgrade() -> None:
    protect(OLD)
    for name in reversed(NEW):
        op.drop_column("datasets", name)
