"""Disagreements that reviewers settle, and rankings that they reject or add."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

OLD_ROW = """
        begin
            if exists (
                select from rankings r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where r.id = new.ranking_id and (p.split = 'test' or r.is_surplus)
            ) then
                raise exception 'ranking % may not go to a dataset', new.ranking_id
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return new;
        end"""
# No rejected ranking is learned from, either.
NEW_ROW = OLD_ROW.replace(
    "r.is_surplus)", "r.is_surplus or exists (select from rejections x where x.ranking_id = r.id))"
)
LOG = """
        begin
            insert into ranking_changes (project_id, ranking_id, kind)
                select project_id, id, 'rejected' from rankings where id = new.ranking_id;
            return null;
        end"""


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("disagreement", sa.Double(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_by", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("state in ('open', 'approved', 'rejected', 'corrected')", name=op.f("ck_reviews_state")),
        sa.CheckConstraint("disagreement between 0 and 1", name=op.f("ck_reviews_disagreement")),
        sa.CheckConstraint("(state = 'open') = (settled_at is null)", name=op.f("ck_reviews_settled")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_reviews_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_reviews_task_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["settled_by"], ["users.id"], name=op.f("fk_reviews_settled_by"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
    )
    op.create_index("uq_reviews_open", "reviews", ["task_id"], unique=True, postgresql_where=sa.text("state = 'open'"))
    op.create_index("ix_reviews_project", "reviews", ["project_id", "state", sa.text("disagreement desc")])
    op.create_index("ix_reviews_task", "reviews", ["task_id"])
    op.create_table(
        "rejections",
        sa.Column("ranking_id", sa.Uuid(), nullable=False),
        sa.Column("review_id", sa.Uuid(), nullable=False),
        sa.Column("rejected_by", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("rejected_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["ranking_id"], ["rankings.id"], name=op.f("fk_rejections_ranking_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["review_id"], ["reviews.id"], name=op.f("fk_rejections_review_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["rejected_by"], ["users.id"], name=op.f("fk_rejections_rejected_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("ranking_id", name=op.f("pk_rejections")),
    )
    op.create_index("ix_rejections_review", "rejections", ["review_id"])
    replace_checks("source in ('page', 'api', 'import', 'review')", "source in ('import', 'review')")
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${NEW_ROW}$$")
    op.execute(f"create function log_ranking_rejected() returns trigger language plpgsql as $${LOG}$$")
    op.execute(
        "create trigger rejections_log after insert on rejections for each row execute function log_ranking_rejected()"
    )
    # Erasing a person empties `rejected_by`, and nothing else ever changes.
    op.execute(
        "create trigger rejections_immutable before update of ranking_id, review_id, reason, rejected_at or delete"
        " on rejections for each row execute function refuse_change()"
    )


def replace_checks(sources: str, without_lease: str) -> None:
    """Where rankings may come from, and which of them have no lease."""
    for name in ("source", "has_lease"):
        op.drop_constraint(op.f(f"ck_rankings_{name}"), "rankings", type_="check")
    op.create_check_constraint(op.f("ck_rankings_source"), "rankings", sources)
    op.create_check_constraint(op.f("ck_rankings_has_lease"), "rankings", f"(lease_id is null) = ({without_lease})")


def downgrade() -> None:
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${OLD_ROW}$$")
    op.drop_table("rejections")
    op.execute("drop function log_ranking_rejected()")
    op.drop_table("reviews")
    replace_checks("source in ('page', 'api', 'import')", "source = 'import'")
