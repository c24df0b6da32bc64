"""An ideal answer may begin as a model's draft, where the project allows it, but for a control share."""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    no = sa.text("false")
    op.add_column("projects", sa.Column("drafts_demonstrations", sa.Boolean(), server_default=no, nullable=False))
    key = sa.ForeignKey("completions.id")
    op.add_column("writings", sa.Column("draft_id", sa.Uuid(), key, nullable=True))
    op.add_column("writings", sa.Column("is_assisted", sa.Boolean(), server_default=no, nullable=False))
    op.create_check_constraint(
        op.f("ck_writings_assisted_by_a_draft"), "writings", "not is_assisted or draft_id is not null"
    )
    op.create_index(
        "ix_writings_drafted", "writings", ["project_id", "number"], postgresql_where=sa.text("draft_id is not null")
    )
    op.execute(
        "create trigger assisted_for_ever before update of is_assisted, draft_id on writings for each row "
        "when ((old.is_assisted, old.draft_id) is distinct from (new.is_assisted, new.draft_id)) "
        "execute function refuse_change()"
    )


def downgrade() -> None:
    op.execute("drop trigger assisted_for_ever on writings")
    op.drop_index("ix_writings_drafted", table_name="writings")
    op.drop_column("writings", "is_assisted")
    op.drop_column("writings", "draft_id")
    op.drop_column("projects", "drafts_demonstrations")
