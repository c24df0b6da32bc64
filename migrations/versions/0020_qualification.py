"""Qualification: who may do real work, decided by tasks whose order is known."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

CHECKS = "'random', 'reversed', 'first_card', 'longest', 'speeding'"
# A task is gold if, and only if, its order is known; and it qualifies if that order says so.
MARK = """
        begin
            update tasks set is_gold = (tg_op <> 'DELETE'), is_qualifying = (tg_op <> 'DELETE' and new.is_qualifying)
            where id = coalesce(new.task_id, old.task_id);
            return null;
        end"""
OLD_MARK = """
        begin
            update tasks set is_gold = (tg_op = 'INSERT') where id = coalesce(new.task_id, old.task_id);
            return null;
        end"""
SETTINGS: dict[str, tuple[Any, str, str]] = {
    "qualify_tasks": (sa.Integer(), "0", "between 0 and 25"),
    "qualify_mark": (sa.Double(), "0.7", "between 0 and 1"),
    "qualify_tries": (sa.Integer(), "2", "between 1 and 10"),
    "gold_window": (sa.Integer(), "0", "between 0 and 100"),
}


def upgrade() -> None:
    for name, (kind, default, rule) in SETTINGS.items():
        op.add_column("projects", sa.Column(name, kind, server_default=default, nullable=False))
        op.create_check_constraint(op.f(f"ck_projects_{name}"), "projects", f"{name} {rule}")
    off = sa.text("false")
    op.add_column("tasks", sa.Column("is_qualifying", sa.Boolean(), server_default=off, nullable=False))
    op.create_check_constraint(op.f("ck_tasks_qualifying"), "tasks", "is_gold or not is_qualifying")
    op.add_column("gold_orders", sa.Column("is_qualifying", sa.Boolean(), server_default=off, nullable=False))
    op.create_table(
        "standings",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("num_tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_asked", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("since_number", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state in ('testing', 'qualified', 'failed', 'paused', 'excluded')", name=op.f("ck_standings_state")
        ),
        sa.CheckConstraint("num_done between 0 and num_asked", name=op.f("ck_standings_num_done")),
        sa.CheckConstraint("num_tries >= 0", name=op.f("ck_standings_num_tries")),
        sa.CheckConstraint("score between 0 and 1", name=op.f("ck_standings_score")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_standings_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["users.id"], name=op.f("fk_standings_annotator_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", name=op.f("pk_standings")),
    )
    op.create_index("ix_standings_annotator_id", "standings", ["annotator_id"])
    op.execute(f"create or replace function mark_gold() returns trigger language plpgsql as $${MARK}$$")
    op.execute("drop trigger gold_orders_mark on gold_orders")
    op.execute(
        "create trigger gold_orders_mark after insert or delete or update of is_qualifying on gold_orders"
        " for each row execute function mark_gold()"
    )
    op.drop_constraint(op.f("ck_quality_flags_check_name"), "quality_flags")
    op.create_check_constraint(
        op.f("ck_quality_flags_check_name"), "quality_flags", f"check_name in ({CHECKS}, 'gold', 'qualification')"
    )


def downgrade() -> None:
    op.execute("delete from quality_flags where check_name in ('gold', 'qualification')")
    op.drop_constraint(op.f("ck_quality_flags_check_name"), "quality_flags")
    op.create_check_constraint(op.f("ck_quality_flags_check_name"), "quality_flags", f"check_name in ({CHECKS})")
    op.execute("drop trigger gold_orders_mark on gold_orders")
    op.execute(
        "create trigger gold_orders_mark after insert or delete on gold_orders"
        " for each row execute function mark_gold()"
    )
    op.execute(f"create or replace function mark_gold() returns trigger language plpgsql as $${OLD_MARK}$$")
    op.drop_table("standings")
    op.drop_column("gold_orders", "is_qualifying")
    op.drop_column("tasks", "is_qualifying")
    for name in reversed(SETTINGS):
        op.drop_column("projects", name)
