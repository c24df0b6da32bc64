"""Gold: tasks whose order is known. Everybody may get them, and nothing that people say of them is learned from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# Rule 1, but for gold: it has a place for everybody.
OLD_GUARD = """
        begin
            if new.num_taken > old.num_taken and new.num_taken > new.overlap then
                raise exception 'task % has no free place', new.id
                    using errcode = 'check_violation', constraint = 'ck_tasks_exact_overlap';
            end if;
            return new;
        end"""
NEW_GUARD = OLD_GUARD.replace(
    "new.num_taken > new.overlap then", "new.num_taken > new.overlap and not new.is_gold then"
)
OLD_ROW = """
        begin
            if exists (
                select from rankings r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where r.id = new.ranking_id and (p.split = 'test' or r.is_surplus or exists (select from rejections x where x.ranking_id = r.id))
            ) then
                raise exception 'ranking % may not go to a dataset', new.ranking_id
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return new;
        end"""  # noqa: E501
NEW_ROW = OLD_ROW.replace("or r.is_surplus or", "or r.is_surplus or t.is_gold or")
# A known order has a place for each answer of its task.
CHECK_ORDER = """
        begin
            if cardinality(new.places) <> (select count(*) from task_completions where task_id = new.task_id) then
                raise exception 'a known order needs a place for every answer of task %', new.task_id
                    using errcode = 'check_violation', constraint = 'ck_gold_orders_complete';
            end if;
            return new;
        end"""
# A task is gold if, and only if, its order is known.
MARK = """
        begin
            update tasks set is_gold = (tg_op = 'INSERT') where id = coalesce(new.task_id, old.task_id);
            return null;
        end"""


def upgrade() -> None:
    op.add_column("projects", sa.Column("gold_share", sa.Double(), server_default="0", nullable=False))
    op.create_check_constraint(op.f("ck_projects_gold_share"), "projects", "gold_share between 0 and 0.5")
    op.add_column("tasks", sa.Column("is_gold", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ix_tasks_gold", "tasks", ["project_id"], postgresql_where=sa.text("is_gold"))
    op.create_table(
        "gold_orders",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("places", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("why", sa.Text(), server_default="", nullable=False),
        sa.Column("marked_by", sa.Uuid(), nullable=True),
        sa.Column("marked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("1 <= all (places) and 9 >= all (places)", name=op.f("ck_gold_orders_places")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_gold_orders_task_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["marked_by"], ["users.id"], name=op.f("fk_gold_orders_marked_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_gold_orders")),
    )
    op.execute(f"create or replace function guard_task_places() returns trigger language plpgsql as $${NEW_GUARD}$$")
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${NEW_ROW}$$")
    op.execute(f"create function check_gold_order() returns trigger language plpgsql as $${CHECK_ORDER}$$")
    op.execute(f"create function mark_gold() returns trigger language plpgsql as $${MARK}$$")
    op.execute(
        "create trigger gold_orders_complete before insert or update of task_id, places on gold_orders"
        " for each row execute function check_gold_order()"
    )
    op.execute(
        "create trigger gold_orders_mark after insert or delete on gold_orders"
        " for each row execute function mark_gold()"
    )


def downgrade() -> None:
    op.drop_table("gold_orders")
    op.execute("drop function mark_gold()")
    op.execute("drop function check_gold_order()")
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${OLD_ROW}$$")
    op.execute(f"create or replace function guard_task_places() returns trigger language plpgsql as $${OLD_GUARD}$$")
    op.drop_index("ix_tasks_gold", table_name="tasks", postgresql_where=sa.text("is_gold"))
    op.drop_column("tasks", "is_gold")
    op.drop_column("projects", "gold_share")
