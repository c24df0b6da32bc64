"""Blind comparisons of two versions: tasks for them, from which nothing ever learns."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

OLD_ROW = """
        begin
            if exists (
                select from rankings r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where r.id = new.ranking_id and (p.split = 'test' or r.is_surplus or t.is_gold or exists (select from rejections x where x.ranking_id = r.id))
            ) then
                raise exception 'ranking % may not go to a dataset', new.ranking_id
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return new;
        end"""  # noqa: E501
NEW_ROW = OLD_ROW.replace("or t.is_gold or", "or t.is_gold or t.purpose <> 'learn' or")
# What was ranked for a comparison is never learned from, and the other way round.
KEEP_PURPOSE = """
        begin
            raise exception 'task % keeps its purpose', new.id
                using errcode = 'check_violation', constraint = 'ck_tasks_keep_purpose';
        end"""
CHECK_COMPARED = """
        begin
            if new.task_id is not null and not exists (
                select from tasks where id = new.task_id and prompt_id = new.prompt_id and purpose = 'compare'
            ) then
                raise exception 'task % does not compare versions on prompt %', new.task_id, new.prompt_id
                    using errcode = 'check_violation', constraint = 'ck_compared_prompts_task';
            end if;
            if exists (select from prompts where id = new.prompt_id and split = 'train') then
                raise exception 'prompt % was learned from and compares nothing', new.prompt_id
                    using errcode = 'check_violation', constraint = 'ck_compared_prompts_held_out';
            end if;
            return new;
        end"""


def upgrade() -> None:
    op.add_column("projects", sa.Column("compare_share", sa.Double(), server_default="0.25", nullable=False))
    op.create_check_constraint(op.f("ck_projects_compare_share"), "projects", "compare_share between 0 and 1")
    op.add_column("tasks", sa.Column("purpose", sa.Text(), server_default="learn", nullable=False))
    op.create_check_constraint(op.f("ck_tasks_purpose"), "tasks", "purpose in ('learn', 'compare')")
    op.create_index(
        "ix_tasks_compare",
        "tasks",
        ["project_id", "number"],
        postgresql_where=sa.text("purpose = 'compare' and num_taken < overlap and withdrawn_at is null"),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("against_id", sa.Uuid(), nullable=False),
        sa.Column("version_run_id", sa.Uuid(), nullable=False),
        sa.Column("against_run_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), server_default="sampling", nullable=False),
        sa.Column("figures", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("version_id <> against_id", name=op.f("ck_comparisons_two_versions")),
        sa.CheckConstraint(
            "state in ('sampling', 'ranking', 'better', 'worse', 'undecided', 'stopped')",
            name=op.f("ck_comparisons_state"),
        ),
        sa.CheckConstraint(
            "(state in ('sampling', 'ranking')) = (closed_at is null)", name=op.f("ck_comparisons_closed")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_comparisons_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_comparisons_version_id")),
        sa.ForeignKeyConstraint(["against_id"], ["versions.id"], name=op.f("fk_comparisons_against_id")),
        sa.ForeignKeyConstraint(["version_run_id"], ["runs.id"], name=op.f("fk_comparisons_version_run_id")),
        sa.ForeignKeyConstraint(["against_run_id"], ["runs.id"], name=op.f("fk_comparisons_against_run_id")),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_comparisons_created_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_comparisons_project_id_number")),
    )
    op.create_index(
        "uq_comparisons_open",
        "comparisons",
        ["version_id", "against_id"],
        unique=True,
        postgresql_where=sa.text("state in ('sampling', 'ranking')"),
    )
    op.create_index("ix_comparisons_runs", "comparisons", ["version_run_id"])
    op.create_index("ix_comparisons_against_runs", "comparisons", ["against_run_id"])
    op.create_table(
        "compared_prompts",
        sa.Column("comparison_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("of_version", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("of_against", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["comparisons.id"],
            name=op.f("fk_compared_prompts_comparison_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id"], ["prompts.id"], name=op.f("fk_compared_prompts_prompt_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_compared_prompts_task_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("comparison_id", "prompt_id", name=op.f("pk_compared_prompts")),
        sa.UniqueConstraint("task_id", name=op.f("uq_compared_prompts_task_id")),
    )
    op.create_index("ix_compared_prompts_prompt", "compared_prompts", ["prompt_id"])
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${NEW_ROW}$$")
    op.execute(f"create function keep_task_purpose() returns trigger language plpgsql as $${KEEP_PURPOSE}$$")
    op.execute(f"create function check_compared_prompt() returns trigger language plpgsql as $${CHECK_COMPARED}$$")
    op.execute(
        "create trigger tasks_keep_purpose before update of purpose on tasks for each row"
        " when (new.purpose is distinct from old.purpose) execute function keep_task_purpose()"
    )
    op.execute(
        "create trigger compared_prompts_allowed before insert or update on compared_prompts"
        " for each row execute function check_compared_prompt()"
    )


def downgrade() -> None:
    op.drop_table("compared_prompts")
    op.drop_table("comparisons")
    op.execute("drop trigger tasks_keep_purpose on tasks")
    op.execute("drop function check_compared_prompt()")
    op.execute("drop function keep_task_purpose()")
    op.execute(f"create or replace function check_dataset_row() returns trigger language plpgsql as $${OLD_ROW}$$")
    op.drop_index("ix_tasks_compare", table_name="tasks")
    op.drop_column("tasks", "purpose")
    op.drop_column("projects", "compare_share")
